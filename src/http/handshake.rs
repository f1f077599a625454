//! TLS of one plane: handshakes, limited in number and in what they cost other connections of their thread.

use super::peers::network;
use super::wire::Wire;
use crate::access::ClientCertificate;
use crate::telemetry::{Scope, names};
use crate::tls::{self, Tls};
use metrics::Counter;
use rustls::HandshakeKind;
use std::collections::{BTreeMap, HashMap};
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The most handshakes that are incomplete at the same time on one plane. A handshake takes two round trips: a second on the worst
/// networks, so that this is 500 new connections per second there. Each holds about 10 KiB, or 64 KiB if its client sends as much.
const MAX_HANDSHAKES: usize = 512;

/// How long a client whose handshake failed may take to read why.
const ALERT_TIME: Duration = Duration::from_secs(1);

/// TLS of one plane.
#[derive(Debug)]
pub(crate) struct Secure {
    tls: Arc<Tls>,
    slots: Arc<Slots>,
    results: [Counter; Outcome::ALL.len()],
}

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Full,
    Resumed,
    Failed,
    NotTls,
    Closed,
}

impl Outcome {
    const ALL: [Outcome; 5] = [Outcome::Full, Outcome::Resumed, Outcome::Failed, Outcome::NotTls, Outcome::Closed];

    fn as_str(self) -> &'static str {
        match self {
            Outcome::Full => "full",
            Outcome::Resumed => "resumed",
            Outcome::Failed => "failed",
            Outcome::NotTls => "not_tls",
            Outcome::Closed => "closed",
        }
    }
}

/// A client that completed its handshake.
pub(super) struct Secured {
    pub stream: Box<TlsStream<Wire>>,
    pub is_http2: bool,
    pub client: Option<Arc<ClientCertificate>>,
}

impl Secure {
    /// `max_connections` is the limit of the plane: handshakes take half of it at most.
    pub(crate) fn new(tls: Arc<Tls>, plane: &'static str, scope: &Scope, max_connections: usize) -> Arc<Secure> {
        let max = MAX_HANDSHAKES.min(max_connections / 2).max(1);
        let results = Outcome::ALL
            .map(|outcome| scope.counter(&names::TLS_HANDSHAKES, &[("plane", plane), ("result", outcome.as_str())]));
        Arc::new(Secure { tls, slots: Arc::new(Slots { max, waiting: Mutex::default() }), results })
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.results[outcome as usize].increment(1);
    }

    /// Takes a place among the incomplete handshakes.
    pub(super) fn slot(&self, address: IpAddr) -> Slot {
        Slots::take(&self.slots, network(address))
    }

    /// Completes a handshake. Its caller limits the time.
    ///
    /// # Errors
    /// What the client sent is not a handshake that can be completed.
    pub(super) async fn handshake(&self, wire: Wire) -> io::Result<Secured> {
        let accepting = TlsAcceptor::from(self.tls.current()).accept(wire);
        let stream = match in_turn(accepting.into_fallible()).await {
            Ok(stream) => stream,
            Err((error, mut wire)) => {
                self.count(Outcome::Failed);
                // A client may send anything, so this is not for the usual log.
                tracing::debug!(%error, "a TLS handshake failed");
                // The client may have sent its request already. If that were not read, the kernel would drop the alert that says why.
                let _ = tokio::time::timeout(ALERT_TIME, wire.shutdown()).await;
                return Err(error);
            }
        };
        let (_, session) = stream.get_ref();
        let is_http2 = session.alpn_protocol() == Some(b"h2");
        let is_resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        let client = session.peer_certificates().and_then(|chain| chain.first()).map(tls::ClientCertificate::read);
        let client = client.transpose().map_err(|reason| {
            self.count(Outcome::Failed);
            tracing::debug!(reason, "the certificate of a client cannot be read");
            io::Error::other(reason)
        })?;
        self.count(if is_resumed { Outcome::Resumed } else { Outcome::Full });
        Ok(Secured { is_http2, client: client.map(known), stream: Box::new(stream) })
    }
}

/// What the roles of callers depend on.
fn known(client: tls::ClientCertificate) -> Arc<ClientCertificate> {
    let names = [client.dns_names, client.emails, client.uris].concat();
    Arc::new(ClientCertificate { subject: client.common_name.unwrap_or_default(), names })
}

// === the number of handshakes ===

/// The incomplete handshakes of a plane. For one more than `max`, the oldest one of the peer with the most of them is closed: a peer that
/// holds many takes no place from the others.
#[derive(Debug)]
struct Slots {
    max: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    count: usize,
    peers: HashMap<IpAddr, BTreeMap<u64, Arc<Notify>>>,
}

/// One incomplete handshake, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    peer: IpAddr,
    number: u64,
    closed: Arc<Notify>,
}

impl Slots {
    fn take(slots: &Arc<Slots>, peer: IpAddr) -> Slot {
        let mut waiting = slots.lock();
        while waiting.count >= slots.max {
            // A newcomer counts, so that of two peers with equally many the one that wants more gives way.
            let held = |(address, all): &(&IpAddr, &BTreeMap<_, _>)| all.len() + usize::from(**address == peer);
            let Some((&most, _)) = waiting.peers.iter().max_by_key(held) else { break };
            waiting.remove(most, None);
        }
        let (number, closed) = (waiting.next, Arc::new(Notify::new()));
        waiting.next += 1;
        waiting.count += 1;
        waiting.peers.entry(peer).or_default().insert(number, Arc::clone(&closed));
        drop(waiting);
        Slot { slots: Arc::clone(slots), peer, number, closed }
    }

    /// A panic while the lock is held leaves complete state.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Removes a handshake, or the oldest one of the peer, which is closed.
    fn remove(&mut self, peer: IpAddr, number: Option<u64>) {
        let Some(all) = self.peers.get_mut(&peer) else { return };
        let removed = match number {
            Some(number) => all.remove(&number).is_some(),
            None => all.pop_first().is_some_and(|(_, closed)| {
                closed.notify_one();
                true
            }),
        };
        self.count -= usize::from(removed);
        if all.is_empty() {
            self.peers.remove(&peer);
        }
    }
}

impl Slot {
    /// Returns when this handshake has to make room for another one.
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().remove(self.peer, Some(self.number));
    }
}

// === what a handshake costs others ===

thread_local! {
    /// The turn to compute a step of a handshake on this thread. Each thread has one runtime.
    static TURN: Arc<Semaphore> = Arc::new(Semaphore::new(1));
}

/// Whether the handshake has something to do.
struct Woken {
    flag: AtomicBool,
    task: Waker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.flag.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

/// Awaits a handshake. Its steps take hundreds of microseconds, and thousands of clients may want one at the same time. One step is computed
/// on this thread between two looks at all its sockets, so that requests wait for one step at most.
async fn in_turn<F: Future>(handshake: F) -> F::Output {
    let mut handshake = pin!(handshake);
    let turn = TURN.with(Arc::clone);
    let woken =
        poll_fn(|cx| Poll::Ready(Arc::new(Woken { flag: AtomicBool::new(true), task: cx.waker().clone() }))).await;
    let waker = Waker::from(Arc::clone(&woken));
    loop {
        poll_fn(|_| if woken.flag.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }).await;
        // It is never closed; without a permit the step is computed at once.
        let permit = turn.acquire().await;
        let polled = handshake.as_mut().poll(&mut Context::from_waker(&waker));
        // Wakes this task after the runtime has looked at the sockets.
        tokio::task::yield_now().await;
        drop(permit);
        if let Poll::Ready(done) = polled {
            return done;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(max: usize) -> Arc<Slots> {
        Arc::new(Slots { max, waiting: Mutex::default() })
    }

    fn is_closed(slot: &Slot) -> bool {
        let mut closed = pin!(slot.closed());
        closed.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_peer_with_the_most_handshakes_gives_way_with_its_oldest_one() {
        let slots = slots(5);
        let take = |last: u8| Slots::take(&slots, IpAddr::from([10, 0, 0, last]));
        let patient = take(1);
        let greedy: Vec<Slot> = (0..4).map(|_| take(2)).collect();
        let other = take(3);
        let more: Vec<Slot> = (0..3).map(|_| take(2)).collect();
        assert_eq!(greedy.iter().map(is_closed).collect::<Vec<_>>(), [true, true, true, true]);
        assert!(!is_closed(&patient) && !is_closed(&other) && !more.iter().any(is_closed));
        assert_eq!(slots.lock().count, 5);
        drop((patient, greedy, other, more));
        assert_eq!(slots.lock().count, 0, "those that were closed are not counted twice");
        assert!(slots.lock().peers.is_empty());
    }

    #[test]
    fn a_single_place_goes_to_the_newest() {
        let slots = slots(1);
        let take = |last: u8| Slots::take(&slots, IpAddr::from([10, 0, 0, last]));
        let (first, second) = (take(1), take(2));
        assert!(is_closed(&first) && !is_closed(&second));
        assert_eq!(slots.lock().count, 1);
    }

    #[tokio::test]
    async fn a_handshake_that_is_woken_while_it_waits_for_its_turn_goes_on() {
        let gate = Arc::new(Notify::new());
        let opener = Arc::clone(&gate);
        let handshake = async move {
            for _ in 0..3 {
                gate.notified().await;
            }
        };
        let open = async {
            for _ in 0..3 {
                opener.notify_one();
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            }
        };
        let both = async { tokio::join!(in_turn(handshake), open) };
        tokio::time::timeout(std::time::Duration::from_secs(10), both).await.unwrap();
    }
}
