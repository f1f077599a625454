//! lifecycle: the life of one version: source → load → verify → warm → ready → serving → draining → unloaded.
//!
//! - One manager, on a thread of its own, takes a closed enum of events and is the only writer of the registry and the ledger.
//! - A change is *prepare* (may fail, touches nothing) then *apply* (cannot fail): ledger first (durable), then publish, then
//!   announce.
//! - One enum of states and one function that moves it; policies are pure functions.
//! - Loads, verification and warming happen on background threads at low priority; memory is freed on a thread of its own.
//! - A half-copied or broken version never disturbs what serves.
//!
//! Uses: registry (writer), backend, compare, route, ledger, model_settings, prepare, source, shadow (figures), model, telemetry, machine.
//!
//! Invariant: nothing here knows a live request.
//!
//! To add an operator's command: a method of [`Handle`], a variant of its command, its arm in `operators.rs`.

mod dispatch;
mod drain;
#[cfg(test)]
pub(crate) mod fake;
mod handle;
mod journal;
mod keep_warm;
mod loaders;
mod manager;
mod memory;
mod operators;
mod policy;
mod push;
mod reconcile;
mod results;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod traffic;

pub use handle::{Actor, Handle, LoadOutcome, Promote, Promotion, Published, RolledBack, RolloutCommit};
pub use journal::Journal;

use crate::compare::Tolerance;
use crate::ledger::LedgerWriter;
use crate::model_settings::Recording;
use crate::prepare::Loader;
use crate::registry::Writer;
use crate::shadow::Figures;
use crate::source;
use crate::telemetry::Telemetry;
use manager::{Event, Manager, Parts};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;

/// How versions come and go.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where versions come from: `models/<model>/<version>/model.onnx`.
    pub models_dir: PathBuf,
    /// How long a version's files must be still before they are read. 700 ms: slow copies pause for less, and a version is taken
    /// up within 2 s of its last write.
    pub settle: Duration,
    /// Between looks at the whole directory. 5 s: network file systems do not tell when files change.
    pub rescan: Duration,
    /// Bytes of model files that may be loaded together.
    pub memory_budget: u64,
    /// Versions prepared at once.
    pub load_threads: usize,
    /// For the requests on a version that was taken out to end.
    pub drain_timeout: Duration,
    /// How long a version that `versions` in `model.toml` would drop stays ready after a document named it last, where the model does
    /// not say. 10 min: what is wrong with a version mostly shows within minutes.
    pub keep_warm: Duration,
    pub policy: Policy,
    /// How far a shadow's number may be from the primary's, where `model.toml` does not say.
    pub tolerance: Tolerance,
    /// Where predictions are recorded; `None`: nowhere.
    pub recording: Option<Recording>,
}

/// What happens when a version does not fit into the memory budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It fails, with the numbers, and is tried again when bytes are given back.
    #[default]
    KeepServing,
    /// Versions that no traffic document names are unloaded first.
    MakeRoom,
}

/// Ends the manager.
#[derive(Debug)]
pub struct Stop {
    events: mpsc::Sender<Event>,
    manager: JoinHandle<()>,
}

/// Events waiting for the manager. Nothing is lost when it is full: operators and threads wait for room.
const WAITING_EVENTS: usize = 256;
/// Who does what happens of itself, in the audit trail.
const SYSTEM: &str = "system";

impl Default for Config {
    fn default() -> Config {
        Config {
            models_dir: PathBuf::from("models"),
            settle: Duration::from_millis(700),
            rescan: Duration::from_secs(5),
            memory_budget: u64::MAX,
            load_threads: 1,
            drain_timeout: Duration::from_secs(30),
            keep_warm: Duration::from_mins(10),
            policy: Policy::KeepServing,
            tolerance: Tolerance::default(),
            recording: None,
        }
    }
}

/// Starts the manager on a thread of its own: what the ledger kept is published when this answers, though nothing is loaded yet.
///
/// # Errors
/// When the ledger cannot be read, or the system gives no thread.
pub fn start(
    config: Config,
    engines: Arc<dyn Loader>,
    writer: Writer,
    ledger: LedgerWriter,
    figures: Figures,
    telemetry: Telemetry,
) -> io::Result<(Handle, Stop)> {
    start_with(config, engines, writer, Box::new(ledger), figures, telemetry)
}

/// The same with any [`Journal`].
///
/// # Errors
/// As [`start`].
#[expect(clippy::needless_pass_by_value, reason = "each loading thread holds the engines from here on")]
pub fn start_with(
    config: Config,
    engines: Arc<dyn Loader>,
    writer: Writer,
    journal: Box<dyn Journal>,
    figures: Figures,
    telemetry: Telemetry,
) -> io::Result<(Handle, Stop)> {
    let (events, waiting) = mpsc::channel(WAITING_EVENTS);
    let loaders = loaders::Loaders::start(config.load_threads, &engines, &telemetry, &events)?;
    let drains = drain::Drains::start(events.clone())?;
    let changes = events.clone();
    let report = move |look| changes.blocking_send(Event::Looked(look)).is_ok();
    let wake = source::watch(config.models_dir.clone(), config.settle, config.rescan, report)?;
    let mut manager =
        Manager::new(config, Parts { writer, journal, figures, telemetry, loaders, drains, source: wake });
    if let Err(error) = manager.recall() {
        manager.source.stop();
        return Err(error);
    }
    let thread = std::thread::Builder::new().name("manager".to_owned()).spawn(move || manager.run(waiting))?;
    Ok((Handle { commands: events.clone() }, Stop { events, manager: thread }))
}

impl Stop {
    /// Takes everything out, waits for the requests that hold a version for at most `within`, frees what is free, and ends.
    /// Blocking. Operators who still ask are told that the server is stopping.
    pub fn stop(self, within: Duration) {
        // Fails only when the manager has ended already.
        let _ = self.events.blocking_send(Event::Stop(within));
        if self.manager.join().is_err() {
            tracing::error!("the manager panicked");
        }
    }
}
