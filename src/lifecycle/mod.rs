//! lifecycle: loads, serves, replaces and unloads versions: source → load → verify → warm → ready → serving → draining → unloaded.
//!
//! - One manager, on a thread of its own, handles a closed enum of events. Only it writes the registry and the ledger.
//! - A change is checked (which may fail and changes nothing), stored in the ledger, published, and then reported, in this order.
//! - A request that an operator sent is carried out even when nobody waits for the answer.
//! - The states are one enum, and one function moves a version between them. Policies are pure functions.
//! - Background threads at low priority load, verify and warm. Memory is freed on a thread of its own.
//! - A version whose runs do not end, or that ended the process, is set aside: `failed`, unpublished, and not waited for.
//! - Where approvals are required, a change that gives a version un-pinned traffic needs one by a second person (`approval.rs`).
//! - A half-copied or broken version never disturbs the versions that serve.
//! - A stored document that cannot be read disables its own model only. When the manager panics, the server stops being ready.
//!
//! Uses: registry (writer), backend, compare, machine, marks, route, ledger, model_settings, prepare, source, shadow (figures), model,
//! telemetry.
//!
//! Invariant: nothing here knows a request in progress.
//!
//! To add an operator request: a method of [`Handle`], a variant of its command, and its arm in `operators.rs`.

mod approval;
mod crashes;
mod dispatch;
mod drain;
#[cfg(test)]
pub(crate) mod fake;
mod handle;
mod journal;
mod keep_warm;
mod load_queue;
mod loaders;
mod manager;
mod memory;
mod model_record;
mod operators;
mod peers;
mod policy;
mod publisher;
mod push;
mod reconcile;
mod results;
mod retire;
mod rollback;
mod services;
mod set_aside;
mod shared_push;
mod state;
#[cfg(test)]
mod tests;
mod traffic;
mod version_record;

pub(crate) use crashes::store_crashes;
pub use crashes::{CrashLimit, CrashedVersion};
pub use handle::{
    Actor, ApprovalState, Handle, LoadOutcome, Promote, Promotion, Retired, ReviewRequest, Rollback, RolledBack,
    RolloutCommit,
};
#[cfg(test)]
pub use handle::{Published, Reviewed};
pub(crate) use journal::Journal;
pub use loaders::Patience;
pub use peers::{FollowOutcome, Followed};
pub(crate) use peers::{Peers, Proposed};
pub use set_aside::SetAside;

pub use crate::prepare::{TimeLimits, TrustedKeys};

use crate::compare::Tolerance;
use crate::machine::Available;
use crate::model_settings::Recording;
use crate::prepare::Loader;
use crate::registry::Writer;
use crate::shadow::Figures;
use crate::source::{self, Awaited};
use crate::telemetry::Telemetry;
use manager::{Event, Manager, Parts};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;

/// Settings of the manager.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of the versions: `models/<model>/<version>/model.onnx`.
    pub models_dir: PathBuf,
    /// Another directory of versions, which is filled from other places. What `models_dir` has too comes from there.
    pub mirrored: Option<PathBuf>,
    /// What the first look waits for.
    pub awaited: Awaited,
    /// How long a version's files must be unchanged before they are read.
    pub settle: Duration,
    /// How often to read the whole directory: network file systems send no change notices.
    pub rescan: Duration,
    /// How many bytes of model files may be loaded together.
    pub memory_budget: u64,
    /// How many versions are loaded at the same time.
    pub load_threads: usize,
    /// How long the stages of a version may take.
    pub time_limits: TimeLimits,
    /// A version must be signed by one of these, where there are any.
    pub trusted_keys: TrustedKeys,
    pub patience: Patience,
    /// How long to wait for the requests on a version that is being unloaded.
    pub drain_timeout: Duration,
    /// How long a version that `versions` in `model.toml` leaves out stays ready after a document named it last, for models that do
    /// not set it.
    pub keep_warm: Duration,
    pub policy: Policy,
    /// Every model needs approvals. Otherwise those whose `model.toml` says so.
    pub approval_required: bool,
    /// Reads how much memory this process may still take.
    pub available: fn() -> Option<Available>,
    /// How far a shadow's number may be from the primary's, for models that do not set it.
    pub tolerance: Tolerance,
    /// The most bytes of the tensors of one answer, for models that do not set it.
    pub max_answer: usize,
    /// Where predictions are recorded. `None` records none.
    pub recording: Option<Recording>,
    /// Versions that are not loaded, because they ended the process before. As if [`Handle::set_aside`] was called before anything
    /// is loaded.
    pub set_aside: Vec<SetAside>,
}

/// What to do when a version does not fit into the memory budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It fails, with the numbers, and is tried again when memory is freed. The old version serves until the new one is ready.
    #[default]
    KeepServing,
    /// Versions that no traffic document names are unloaded first, for models that fill the machine.
    MakeRoom,
}

/// Where changes are stored.
pub(crate) struct Stores {
    pub journal: Box<dyn Journal>,
    /// The other gateways of a fleet; `None` for a gateway alone.
    pub peers: Option<Box<dyn Peers>>,
}

/// Stops the manager.
#[derive(Debug)]
pub struct Stop {
    events: mpsc::Sender<Event>,
    manager: JoinHandle<()>,
}

/// Capacity of the manager's queue. Nothing is lost when it is full: senders wait.
const WAITING_EVENTS: usize = 256;
/// The actor of automatic changes in the audit trail.
const SYSTEM: &str = "system";

/// Starts the manager on a thread of its own. When this returns, the stored documents are published, and nothing is loaded yet.
///
/// # Errors
/// When the ledger cannot be read, or the system refuses a new thread.
#[expect(clippy::needless_pass_by_value, reason = "each loading thread holds the engines from here on")]
pub(crate) fn start(
    config: Config,
    engines: Arc<dyn Loader>,
    writer: Writer,
    stores: Stores,
    figures: Figures,
    telemetry: Telemetry,
) -> io::Result<(Handle, Stop)> {
    let (events, waiting) = mpsc::channel(WAITING_EVENTS);
    let clock = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let loader_events = report(&events, Event::Loader);
    let loaders = loaders::Loaders::start(
        config.load_threads,
        (config.time_limits, config.patience),
        &engines,
        &telemetry,
        &loader_events,
    )?;
    let drains = drain::Drains::start(report(&events, Event::Freed))?;
    let looked = report(&events, Event::Looked);
    let roots = [Some(config.models_dir.clone()), config.mirrored.clone()].into_iter().flatten().collect();
    let awaited = config.awaited.clone();
    let wake = source::watch(roots, config.settle, config.rescan, awaited, move |look| looked(look))?;
    let Stores { journal, peers } = stores;
    let mut manager = Manager::new(
        config,
        Parts { writer, journal, peers, figures, telemetry, loaders, drains, source: wake.clone() },
    );
    let thread = manager.restore().and_then(|()| {
        let run = move || manager::run(manager, waiting, &clock);
        std::thread::Builder::new().name("manager".to_owned()).spawn(run)
    });
    let manager = thread.inspect_err(|_| wake.stop())?;
    Ok((Handle { commands: events.clone() }, Stop { events, manager }))
}

/// A sender of one kind of message to the manager, for threads that need not know the others.
fn report<T: 'static>(events: &mpsc::Sender<Event>, wrap: fn(T) -> Event) -> loaders::Report<T> {
    let events = events.clone();
    Arc::new(move |message| events.blocking_send(wrap(message)).is_ok())
}

impl Stop {
    /// Unloads every version, waits at most `within` for requests that hold one, and ends the manager. Blocking. Operators that
    /// still wait are told that the server is stopping.
    pub fn stop(self, within: Duration) {
        // Fails only when the manager has ended already.
        let _ = self.events.blocking_send(Event::Stop(within));
        if self.manager.join().is_err() {
            tracing::error!("the manager panicked while it ended");
        }
    }
}
