//! The thread of one target: delivers its messages in order, at least once, and tries again after a failure.

use super::book::Book;
use super::finding::{Alert, Told};
use super::message::{Message, Sender, signature};
use super::store::{Store, Waiting};
use super::target::{Kind, Target};
use crate::outbound::{Client, OutboundError};
use crate::telemetry::{Telemetry, names};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use jiff::Timestamp;
use metrics::{Counter, Gauge};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the outbox is looked at when nobody says that there is something new.
const LOOK: Duration = Duration::from_secs(5);
/// The pauses after failures: 1 s, 2 s, and so on up to this.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How often a message is tried that the receiver calls wrong: it will not become right, but the receiver may be repaired.
const TRIES_OF_REFUSED: u32 = 6;
/// How often firing alerts are sent again to Alertmanager, which ends those that it does not hear of (`resolve_timeout`, five minutes).
const REFRESH: Duration = Duration::from_mins(1);

/// Reasons for which messages are dropped.
pub(super) const DROPPED: [&str; 4] = ["age", "full", "refused", "unreadable"];

/// A target while the server runs.
#[derive(Debug)]
pub(super) struct Outlet {
    pub target: Target,
    pub status: Mutex<Status>,
    sent: Counter,
    failed: Counter,
    dropped: [Counter; DROPPED.len()],
    depth: Gauge,
}

/// What happened to the messages of a target, since the start.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub sent: u64,
    /// Failed tries.
    pub failed: u64,
    pub dropped: u64,
    pub last_sent: Option<Timestamp>,
    /// Why the last try failed; `None` after a success.
    pub last_error: Option<String>,
}

/// Why a message was not delivered.
struct Failed {
    words: String,
    /// The receiver calls the message wrong.
    refused: bool,
}

/// What all senders share.
pub(super) struct Shared {
    pub store: Arc<Store>,
    pub book: Arc<Mutex<Book>>,
    pub sender: Sender,
    /// The age after which a message is dropped.
    pub keep_for: Duration,
}

// === impl Outlet ===

impl Outlet {
    pub(super) fn new(target: Target, telemetry: &Telemetry) -> Outlet {
        let scope = telemetry.process();
        let labels = [("target", target.name.as_str())];
        let dropped = DROPPED.map(|reason| {
            scope.counter(&names::ALERT_DROPPED, &[("target", target.name.as_str()), ("reason", reason)])
        });
        let (sent, failed) = (scope.counter(&names::ALERT_SENT, &labels), scope.counter(&names::ALERT_FAILED, &labels));
        let depth = scope.gauge(&names::ALERT_OUTBOX, &labels);
        depth.set(0.0);
        Outlet { status: Mutex::default(), sent, failed, dropped, depth, target }
    }

    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts messages that were dropped, and says so.
    pub(super) fn count_dropped(&self, reason: &'static str, messages: usize) {
        let count = messages as u64;
        self.status().dropped += count;
        if let Some(at) = DROPPED.iter().position(|known| *known == reason) {
            self.dropped[at].increment(count);
        }
        tracing::error!(target = self.target.name, messages, reason, "messages to a target of alerts were dropped");
    }

    /// Sends one message now.
    ///
    /// # Errors
    /// In words that do not show the address.
    pub(super) fn try_now(&self, message: &Message) -> Result<(), String> {
        let mut client = None;
        post(&self.target, &mut client, message).map_err(|failed| failed.words)
    }

    fn count_sent(&self) {
        self.sent.increment(1);
        let mut status = self.status();
        status.sent += 1;
        if status.last_error.take().is_some() {
            tracing::info!(target = self.target.name, "messages to the target of alerts are delivered again");
        }
        status.last_sent = Some(Timestamp::now());
    }

    /// Each failure counts, but only the first of a row is logged.
    fn count_failed(&self, words: &str) {
        self.failed.increment(1);
        let mut status = self.status();
        status.failed += 1;
        if status.last_error.replace(words.to_owned()).is_none() {
            tracing::error!(
                target = self.target.name,
                error = words,
                "a message to a target of alerts cannot be delivered; it is tried again"
            );
        }
    }
}

/// Delivers messages until it is told to stop. What is not delivered then stays in the outbox.
pub(super) fn run(outlet: &Outlet, shared: &Shared, wake: &Receiver<()>, stop: &Receiver<()>) {
    let mut client: Option<Client> = None;
    let mut failures: u32 = 0;
    let mut refreshed = Instant::now();
    loop {
        let depth = shared.store.waiting(&outlet.target.name);
        outlet.depth.set(depth.as_ref().map_or(0.0, |waiting| *waiting as f64));
        let done = match shared.store.next(&outlet.target.name) {
            Ok(Some(waiting)) => deliver(outlet, shared, &mut client, &waiting, failures),
            Ok(None) => {
                if outlet.target.kind == Kind::Alertmanager && refreshed.elapsed() >= REFRESH {
                    refreshed = Instant::now();
                    refresh(outlet, shared, &mut client);
                }
                None
            }
            Err(error) => {
                tracing::error!(%error, "the outbox of alerts cannot be read");
                Some(false)
            }
        };
        let pause = match done {
            Some(true) => {
                failures = 0;
                Duration::ZERO
            }
            Some(false) => {
                failures = failures.saturating_add(1);
                pause_after(failures)
            }
            None => LOOK,
        };
        // A new message does not shorten the pause after a failure.
        let woken = if done.is_none() { wake } else { &crossbeam_channel::never() };
        let over = crossbeam_channel::after(pause);
        crossbeam_channel::select! {
            recv(stop) -> _ => return,
            recv(woken) -> _ => {},
            recv(over) -> _ => {},
        }
    }
}

/// Doubles from a second, and varies by a fifth, so that many servers do not come back at the same moment.
fn pause_after(failures: u32) -> Duration {
    let pause = Duration::from_secs(1 << failures.saturating_sub(1).min(9)).min(LONGEST_PAUSE);
    pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// Tries the oldest message. `Some(true)`: it is done with, delivered or dropped.
pub(super) fn deliver(
    outlet: &Outlet,
    shared: &Shared,
    client: &mut Option<Client>,
    waiting: &Waiting,
    failures: u32,
) -> Option<bool> {
    let remove = || match shared.store.remove(waiting.id) {
        Ok(()) => Some(true),
        Err(error) => {
            tracing::error!(%error, "a delivered message cannot be removed from the outbox of alerts; it is sent again");
            Some(false)
        }
    };
    // A clock that was set back makes no message old.
    let age = Timestamp::now().duration_since(waiting.created);
    if age.is_positive() && age.unsigned_abs() > shared.keep_for {
        outlet.count_dropped("age", 1);
        return remove();
    }
    let Ok(message) = serde_json::from_str::<Message>(&waiting.body) else {
        outlet.count_dropped("unreadable", 1);
        return remove();
    };
    match post(&outlet.target, client, &message) {
        Ok(()) => {
            outlet.count_sent();
            remove()
        }
        Err(failed) => {
            outlet.count_failed(&failed.words);
            if failed.refused && failures + 1 >= TRIES_OF_REFUSED {
                outlet.count_dropped("refused", 1);
                return remove();
            }
            Some(false)
        }
    }
}

/// Sends what fires again. A failure only counts: the next try is a minute later.
pub(super) fn refresh(outlet: &Outlet, shared: &Shared, client: &mut Option<Client>) {
    let firing: Vec<Alert> = {
        let book = shared.book.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |alert: &&Alert| alert.told == Told::Begin && alert.severity >= outlet.target.min_severity;
        book.firing().filter(told).cloned().collect()
    };
    for message in Message::still_firing(&firing, &shared.sender, Timestamp::now()) {
        match post(&outlet.target, client, &message) {
            Ok(()) => outlet.count_sent(),
            Err(failed) => return outlet.count_failed(&failed.words),
        }
    }
}

fn post(target: &Target, client: &mut Option<Client>, message: &Message) -> Result<(), Failed> {
    let failed = |words: String| Failed { words, refused: false };
    let now = Timestamp::now();
    let body = message.render(target.kind, now);
    let seconds = now.as_second();
    let mut headers = vec![("idempotency-key", message.key.clone())];
    if let Some(secret) = &target.secret {
        let secret = secret.read().map_err(failed)?;
        headers.push(("x-sluicegate-timestamp", seconds.to_string()));
        headers.push(("x-sluicegate-signature", signature(&secret, seconds, &body)));
    }
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut used = if let Some(client) = client.take() {
        client
    } else {
        let address = target.address().map_err(failed)?;
        Client::new(address, target.ca.clone()).map_err(|error| failed(error.to_string()))?
    };
    // After a failure the client is made again, with the address and the authorities as they are then.
    used.post_json_with(body, &headers, target.timeout).map_err(|error| Failed {
        refused: matches!(error, OutboundError::Status(400 | 413 | 415 | 422)),
        words: error.to_string(),
    })?;
    *client = Some(used);
    Ok(())
}

/// Waits until the threads have ended, or the time is over.
pub(super) fn wait_ended(ended: &Receiver<()>, within: Duration) -> bool {
    // Every thread drops its sender when it ends.
    matches!(ended.recv_timeout(within), Err(RecvTimeoutError::Disconnected))
}
