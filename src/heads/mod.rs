//! heads: sends the newest hash of the audit trail out of the data directory: to the log, a file and a webhook.
//!
//! - [`Heads::start`] starts one thread. It looks once a second for a new event, and gives its number and hash to each place that is
//!   configured, at most once per [`Config::interval`]. Each place also gets the head at start, once an hour, and at the stop.
//! - A place that fails is tried again after 1 s, then 2 s, and so on up to a minute, with the newest head of that time. A head that was
//!   replaced by a newer one before it could be sent is not sent: the newer one proves the older events too.
//! - The webhook has a deadline ([`Config::webhook_timeout`]). With `https://` it proves who it is. Nothing that changes the ledger waits for this thread.
//!
//! Uses: ledger (reader), outbound, telemetry.
//!
//! Invariant: this room only reads the ledger.
//!
//! To add a place: a variant of `Place` with its label for the metrics.

mod place;
#[cfg(test)]
mod tests;

use crate::ledger::{Head, LedgerReader};
use crate::telemetry::{Telemetry, names};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use metrics::{Counter, Gauge};
use place::Place;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where heads go, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The least time between two heads. Default 10 s: it is the time in which events could be cut off unnoticed, and a line of the log
    /// every 10 s is little even while a rollout changes something with every step.
    pub interval: Duration,
    /// A file that each head is appended to, as a line of JSON. Default none. It belongs on another machine or another disk.
    pub file: Option<PathBuf>,
    /// The address that each head is posted to as JSON: `http://…` or `https://…`. Default none.
    pub webhook: Option<String>,
    /// The file with the authorities that sign the webhook's certificate. Default none: those that the system trusts.
    pub webhook_ca: Option<PathBuf>,
    /// The time limit of a post. Default 5 s: long enough for a busy receiver, and a receiver that hangs does not delay the next head long.
    pub webhook_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            interval: Duration::from_secs(10),
            file: None,
            webhook: None,
            webhook_ca: None,
            webhook_timeout: Duration::from_secs(5),
        }
    }
}

/// How often the ledger is asked for its newest event. A query takes microseconds.
const LOOK: Duration = Duration::from_secs(1);
/// A head is sent again after this time without a new event, so that logs that are rotated have one.
const REPEAT: Duration = Duration::from_hours(1);
/// The longest pause after failures.
const MAX_PAUSE: Duration = Duration::from_mins(1);
/// The time limit of a post at the stop.
const LAST_POST: Duration = Duration::from_secs(1);

/// The running thread.
#[derive(Debug)]
pub struct Heads {
    stop: Sender<()>,
    ended: Receiver<()>,
}

/// Sends heads to one place.
struct Sending {
    place: Place,
    /// The last head that was sent, and when.
    sent: Option<(u64, Instant)>,
    failures: u32,
    /// Not before, after a failure.
    not_before: Option<Instant>,
    heads: Counter,
    failed: Counter,
}

// === impl Heads ===

impl Heads {
    /// # Errors
    /// When the authorities that the webhook needs cannot be read, or the thread cannot be started.
    pub fn start(config: &Config, ledger: LedgerReader, telemetry: &Telemetry) -> io::Result<Heads> {
        let scope = telemetry.process();
        let places = Place::all(config).map_err(io::Error::other)?.into_iter().map(|place| {
            let labels = [("to", place.label())];
            let (heads, failed) =
                (scope.counter(&names::AUDIT_HEADS, &labels), scope.counter(&names::AUDIT_HEAD_FAILURES, &labels));
            Sending { place, sent: None, failures: 0, not_before: None, heads, failed }
        });
        let (places, newest, interval) = (places.collect(), scope.gauge(&names::AUDIT_EVENTS, &[]), config.interval);
        let (stop, stopping) = crossbeam_channel::bounded(1);
        let (end, ended) = crossbeam_channel::bounded(0);
        std::thread::Builder::new().name("audit-heads".to_owned()).spawn(move || {
            let _ends = end;
            run(places, &ledger, &newest, interval, &stopping);
        })?;
        Ok(Heads { stop, ended })
    }

    /// Sends the last head to every place, and waits until that is done or the time is over.
    pub fn stop(self, within: Duration) {
        let _ = self.stop.try_send(());
        // The thread drops its sender when it ends.
        let _ = self.ended.recv_timeout(within);
    }
}

fn run(mut places: Vec<Sending>, ledger: &LedgerReader, newest: &Gauge, interval: Duration, stop: &Receiver<()>) {
    let mut unreadable = false;
    loop {
        let stopping = !matches!(stop.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout));
        match ledger.head() {
            Ok(head) => {
                unreadable = false;
                newest.set(head.id as f64);
                for sending in &mut places {
                    sending.give(&head, interval, stopping);
                }
            }
            Err(error) if !unreadable => {
                tracing::error!(%error, "the newest event of the audit trail cannot be read");
                unreadable = true;
            }
            Err(_) => {}
        }
        if stopping {
            return;
        }
    }
}

// === impl Sending ===

impl Sending {
    /// Sends the head if it is time.
    fn give(&mut self, head: &Head, interval: Duration, last: bool) {
        let now = Instant::now();
        let due = match self.sent {
            None => true,
            Some((id, _)) if last => id != head.id,
            Some((id, at)) => {
                let passed = now.saturating_duration_since(at);
                passed >= REPEAT || (id != head.id && passed >= interval)
            }
        };
        let may = last || self.not_before.is_none_or(|at| now >= at);
        if !(due && may) {
            return;
        }
        match self.place.send(head, last.then_some(LAST_POST)) {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!(to = self.place.label(), "heads of the audit trail are sent again");
                }
                self.heads.increment(1);
                (self.sent, self.failures, self.not_before) = (Some((head.id, now)), 0, None);
            }
            Err(error) => {
                // Each failure counts, but only the first of a row is logged.
                if self.failures == 0 {
                    tracing::error!(
                        to = self.place.label(),
                        error,
                        "the head of the audit trail cannot be sent; it is tried again"
                    );
                }
                self.failed.increment(1);
                self.failures = self.failures.saturating_add(1);
                let pause = Duration::from_secs(1 << self.failures.saturating_sub(1).min(6)).min(MAX_PAUSE);
                self.not_before = Some(Instant::now() + pause);
            }
        }
    }
}
