//! Limits the requests whose bodies are not complete, so that slow or silent senders leave room for others.

use crate::model::{Code, Failure};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A body that is complete within this time is not limited in number. Most bodies arrive with their headers or right after them, so
/// their requests are answered even when other clients use up the limits.
pub(super) const PROMPT: Duration = Duration::from_millis(50);

/// The requests whose bodies are not complete, all together and per peer. A peer is an IPv4 address or an IPv6 network of 64 bits.
#[derive(Debug)]
pub(super) struct Peers {
    max: usize,
    max_per_peer: usize,
    unfinished: AtomicUsize,
    /// The peers that have connections.
    connected: Mutex<HashMap<IpAddr, Arc<Counts>>>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Changed under the lock of [`Peers::connected`].
    connections: AtomicUsize,
    unfinished: AtomicUsize,
}

/// The peer of one connection.
#[derive(Debug)]
pub(super) struct Peer {
    peers: Arc<Peers>,
    address: IpAddr,
    counts: Arc<Counts>,
}

/// A request whose body is not complete.
#[derive(Debug)]
pub(super) struct Unfinished<'a>(&'a Peer);

impl Peers {
    pub(super) fn new(max: usize, max_per_peer: usize) -> Arc<Peers> {
        Arc::new(Peers { max, max_per_peer, unfinished: AtomicUsize::new(0), connected: Mutex::default() })
    }

    /// The peer of a new connection.
    pub(super) fn of(self: &Arc<Self>, address: IpAddr) -> Peer {
        let address = network(address);
        let mut peers = self.lock();
        let counts = Arc::clone(peers.entry(address).or_default());
        counts.connections.fetch_add(1, Ordering::Relaxed);
        Peer { peers: Arc::clone(self), address, counts }
    }

    /// A panic while the lock is held leaves a complete map.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Counts>>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Counts a request whose body is not complete until the result is dropped.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS` at one of the two limits.
    pub(super) fn unfinished(&self) -> Result<Unfinished<'_>, Failure> {
        let Peers { max, max_per_peer, .. } = *self.peers;
        if !enter(&self.counts.unfinished, max_per_peer) {
            let message = format!(
                "{max_per_peer} requests from {} have not sent their whole body, which is the limit                  (server.max_unfinished_per_peer): try again shortly",
                self.address
            );
            return Err(Failure::new(Code::TooManyRequests, message));
        }
        if !enter(&self.peers.unfinished, max) {
            self.counts.unfinished.fetch_sub(1, Ordering::Relaxed);
            let message = format!(
                "{max} requests have not sent their whole body, which is the limit (server.max_unfinished): try again shortly"
            );
            return Err(Failure::new(Code::TooManyRequests, message));
        }
        Ok(Unfinished(self))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut peers = self.peers.lock();
        if self.counts.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            peers.remove(&self.address);
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.counts.unfinished.fetch_sub(1, Ordering::Relaxed);
        self.0.peers.unfinished.fetch_sub(1, Ordering::Relaxed);
    }
}

fn enter(count: &AtomicUsize, limit: usize) -> bool {
    let enter = |count: usize| (count < limit).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_ok()
}

/// What counts as one peer. A host with IPv6 usually has a network of 64 bits to itself.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_peer_leaves_room_for_others() {
        let peers = Peers::new(5, 3);
        let (greedy, other) = (peers.of(address("10.0.0.1")), peers.of(address("10.0.0.2")));
        let held: Vec<_> = std::iter::from_fn(|| greedy.unfinished().ok()).take(10).collect();
        assert_eq!(held.len(), 3);
        let refused = greedy.unfinished().unwrap_err();
        assert_eq!(refused.code, Code::TooManyRequests);
        assert!(refused.message.contains("3 requests from 10.0.0.1"), "{refused}");
        let others = [other.unfinished().unwrap(), other.unfinished().unwrap()];
        let refused = other.unfinished().unwrap_err();
        assert!(refused.message.starts_with("5 requests have not"), "{refused}");
        drop(others);
        drop(held);
        let all: Vec<_> = std::iter::from_fn(|| greedy.unfinished().ok()).take(10).collect();
        assert_eq!(all.len(), 3, "a refusal takes no place");
    }

    #[test]
    fn connections_of_a_peer_share_its_limit() {
        let peers = Peers::new(100, 1);
        for (one, same) in [("10.0.0.1", "::ffff:10.0.0.1"), ("2001:db8::1", "2001:db8::ffff:2")] {
            let (one, same) = (peers.of(address(one)), peers.of(address(same)));
            let held = one.unfinished().unwrap();
            assert!(same.unfinished().is_err(), "{one:?} and {same:?} are one peer");
            drop(held);
            drop(one);
            assert!(same.unfinished().is_ok());
        }
        assert!(peers.lock().is_empty(), "peers without connections are forgotten");
    }
}
