//! What one connection and one peer hold.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Full;

/// What the requests of one connection hold. Clones share one count.
#[derive(Debug, Clone)]
pub struct Account(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    held: AtomicUsize,
    most: usize,
    peer: Option<Arc<PeerCounts>>,
}

#[derive(Debug)]
pub(super) struct PeerCounts {
    held: AtomicUsize,
    most: usize,
}

/// The peers that have connections, by address. Used when a connection opens, not for its requests.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<HashMap<IpAddr, Weak<PeerCounts>>>);

impl Account {
    pub(super) fn connection(most: usize, peer: Option<Arc<PeerCounts>>) -> Account {
        Account(Arc::new(Counts { held: AtomicUsize::new(0), most, peer }))
    }

    /// Bytes that the connection's requests hold. Small requests are not counted here.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// The most that a single request may hold, whatever else is held.
    pub(super) fn most(&self) -> usize {
        self.0.most
    }

    pub(super) fn take(&self, bytes: usize) -> Result<(), Full> {
        take(&self.0.held, self.0.most, bytes, "connection")?;
        if let Some(peer) = &self.0.peer
            && let Err(full) = take(&peer.held, peer.most, bytes, "client")
        {
            self.0.held.fetch_sub(bytes, Ordering::Relaxed);
            return Err(full);
        }
        Ok(())
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.0.held.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(peer) = &self.0.peer {
            peer.held.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

fn take(held: &AtomicUsize, most: usize, bytes: usize, who: &'static str) -> Result<(), Full> {
    let add = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= most);
    held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map(drop).map_err(|held| Full::Caller {
        who,
        held,
        most,
    })
}

impl Peers {
    /// The counts of a peer. Peers without connections are forgotten as the map grows.
    pub(super) fn of(&self, address: IpAddr, most: usize) -> Arc<PeerCounts> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = peers.get(&address).and_then(Weak::upgrade) {
            return known;
        }
        if peers.len() == peers.capacity() {
            peers.retain(|_, peer| peer.strong_count() > 0);
        }
        let counts = Arc::new(PeerCounts { held: AtomicUsize::new(0), most });
        peers.insert(address, Arc::downgrade(&counts));
        counts
    }
}
