//! alerts: says that something is wrong, once when it begins and once when it ends, to the targets of the configuration.
//!
//! - `app` gives it [`Source`]s, which list what is wrong now ([`Finding`]). The thread `alerts` looks every [`Config::check_interval`].
//!   The book (`book.rs`) turns findings into [`Alert`]s: it begins and ends them, damps those that come and go, and groups those of one rule.
//! - What is told is put into the outbox, in one transaction with the state of its alerts (`store.rs`): after a restart nothing is told twice and
//!   nothing is missing. One thread for each target delivers in order, at least once (`sender.rs`). A message is dropped only because of its age or
//!   because too many wait, and that is counted.
//! - Lifecycle events go the same way (`follow.rs`): each change of the audit trail once, by its number, and versions that become ready or fail.
//! - [`Alerts`] is the handle of the admin plane: the list, silences and tests.
//! - docs/ALERTS.md has the rules, the messages and how a receiver checks a signature.
//!
//! Uses: access (patterns), ledger (reader), machine (priority), model, outbound, telemetry.
//!
//! Invariant: no request and no change of traffic waits for this room, and it knows no other room's figures.
//!
//! To add a rule: a variant of [`Rule`], a source in `src/app/watch/`, its row in docs/ALERTS.md.

mod book;
mod burn;
mod event;
mod finding;
mod follow;
mod handle;
mod message;
mod rule;
mod run;
mod sender;
mod silence;
mod store;
mod target;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_run;
#[cfg(test)]
mod tests_sender;

pub use burn::{Burn, Burning};
pub use event::{Event, EventKind, Training};
pub use finding::{About, Alert, ChangeBefore, Finding, Look, Now, Source, Told};
pub use handle::{Alerts, AlertsError, TargetStatus};
pub use rule::{NotARule, Rule, Severity};
pub use silence::{LONGEST_SILENCE, MOST_SILENCES, Matcher, Silence};
pub use target::{Hidden, Kind, MOST_TARGETS, Send, Target, is_address};

use crate::ledger::LedgerReader;
use crate::model::{ModelName, Version};
use crate::outbound::Client;
use crate::telemetry::Telemetry;
use book::Book;
use crossbeam_channel::{Receiver, Sender};
use handle::Inner;
use run::Runner;
use sender::Outlet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::Store;

/// `[alerts]`: what is told, and to whom.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Default true. False: nothing is looked at, and nothing is told.
    pub enabled: bool,
    /// The time between two looks. Default 5 s: a person reacts in minutes, and a look at 2,000 models takes milliseconds.
    pub check_interval: Duration,
    /// How long something must be gone before its alert ends. Default 1 min: what comes back within it is the same alert.
    pub end_after: Duration,
    /// Rules that are switched off. Default none.
    pub off: Vec<Rule>,
    /// The share of a model's requests that may fail. Default 0.001, the 99.9 % that many services promise.
    pub error_budget: f64,
    /// The name of this server in messages. Default empty: the name of the host.
    pub name: String,
    /// The address of the admin plane, before the path of each link. Default empty: links are paths.
    pub console: String,
    /// The most messages that wait for one target; with more, the oldest are dropped. Default 10,000: a day with one message every nine seconds.
    pub outbox: usize,
    /// The age after which a message that could not be delivered is dropped. Default 3 days: a weekend.
    pub keep_for: Duration,
    /// Who is told. Default nobody: the list of alerts is there all the same.
    pub targets: Vec<Target>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            enabled: true,
            check_interval: Duration::from_secs(5),
            end_after: Duration::from_mins(1),
            off: Vec::new(),
            error_budget: 0.001,
            name: String::new(),
            console: String::new(),
            outbox: 10_000,
            keep_for: Duration::from_hours(72),
            targets: Vec::new(),
        }
    }
}

/// The longest time between two messages about one rule.
const GROUP: Duration = Duration::from_secs(30);

/// What the room is given.
pub struct Inputs {
    pub ledger: LedgerReader,
    pub sources: Vec<Source>,
    /// The versions that are ready or failed; `None` while versions are loaded at the start. The same list means that nothing changed.
    pub versions: Box<dyn FnMut() -> Option<Arc<Vec<VersionState>>> + std::marker::Send>,
}

/// A version that is ready or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionState {
    pub model: ModelName,
    pub version: Version,
    /// Ready: the digest of its files. Failed: why.
    pub what: Result<String, String>,
}

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// Ends the threads.
#[derive(Debug)]
pub struct Stop {
    stop: Sender<()>,
    ended: Receiver<()>,
}

/// Opens the database in the data directory and starts the threads.
///
/// # Errors
/// When an address, a key or the authorities of a target cannot be read, or a thread cannot be started.
pub fn start(config: Config, dir: &Path, inputs: Inputs, telemetry: &Telemetry) -> io::Result<(Alerts, Stop)> {
    let (stop, stopping) = crossbeam_channel::bounded(1);
    let (end, ended) = crossbeam_channel::bounded(0);
    let stop = Stop { stop, ended };
    if !config.enabled {
        return Ok((Alerts::idle(telemetry), stop));
    }
    for target in &config.targets {
        let wrong = |reason: String| io::Error::other(format!("alerts.targets: {}: {reason}", target.name));
        let address = target.address().map_err(wrong)?;
        Client::new(address, target.ca.clone()).map_err(|error| wrong(error.to_string()))?;
        target.secret.as_ref().map(Hidden::read).transpose().map_err(wrong)?;
    }
    let alerts = Alerts::open(&config, Store::open(dir), telemetry);
    let mut wake = Vec::new();
    for outlet in &alerts.0.outlets {
        let (waker, woken) = crossbeam_channel::bounded(1);
        let shared = sender::Shared {
            store: Arc::clone(&alerts.0.store),
            book: Arc::clone(&alerts.0.book),
            sender: alerts.0.sender.clone(),
            keep_for: config.keep_for,
        };
        let (outlet, stopping, end) = (Arc::clone(outlet), stopping.clone(), end.clone());
        std::thread::Builder::new().name("alert-send".to_owned()).spawn(move || {
            let _ends = end;
            sender::run(&outlet, &shared, &woken, &stopping);
        })?;
        wake.push(waker);
    }
    let runner = Runner::new(alerts.clone(), config, inputs, wake, telemetry.process());
    std::thread::Builder::new().name("alerts".to_owned()).spawn(move || {
        let _ends = end;
        runner.run(&stopping);
    })?;
    Ok((alerts, stop))
}

impl Stop {
    /// Waits until the threads have ended, or the time is over. What was not delivered is delivered after the next start.
    pub fn stop(self, within: Duration) {
        // Every thread sees that the sender is gone.
        drop(self.stop);
        let _ = sender::wait_ended(&self.ended, within);
    }
}

impl Alerts {
    /// Without alerts and targets, and nothing on the disk.
    #[must_use]
    pub fn idle(telemetry: &Telemetry) -> Alerts {
        Alerts::open(&Config { targets: Vec::new(), ..Config::default() }, Store::in_memory(), telemetry)
    }

    fn open(config: &Config, store: Store, telemetry: &Telemetry) -> Alerts {
        let unreadable = |error: rusqlite::Error| tracing::error!(%error, "the database of alerts cannot be read");
        let stored = store.alerts().map_err(unreadable).unwrap_or_default();
        let silences = store.silences().map_err(unreadable).unwrap_or_default();
        let names: Vec<&str> = config.targets.iter().map(|target| target.name.as_str()).collect();
        match store.remove_others(&names) {
            Ok(0) => {}
            Ok(messages) => {
                tracing::warn!(messages, "messages to targets that are not configured any more were removed");
            }
            Err(error) => unreadable(error),
        }
        let group = GROUP.min(config.check_interval.saturating_mul(6));
        let book = Book::new(stored, config.end_after, group, Instant::now());
        let outlets = config.targets.iter().map(|target| Arc::new(Outlet::new(target.clone(), telemetry))).collect();
        let gateway = if config.name.is_empty() { host_name() } else { config.name.clone() };
        let console = config.console.trim_end_matches('/').to_owned();
        Alerts(Arc::new(Inner {
            book: Arc::new(Mutex::new(book)),
            silences: Mutex::new(silences),
            store: Arc::new(store),
            outlets,
            sender: message::Sender { gateway, console },
        }))
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).take(128).collect();
    if name.is_empty() { "sluicegate".to_owned() } else { name }
}
