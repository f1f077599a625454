//! The loading threads: they read, load, verify and warm versions at low priority.

use super::memory;
use super::push::{Push, Staged};
use crate::machine::lower_priority;
use crate::model::{Code, Failure, VersionId};
use crate::prepare::{Digests, Job, Loader, Outcome, artifact_digests, bring_up};
use crate::registry::State;
use crate::source::Fingerprint;
use crate::telemetry::Telemetry;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

/// A task for a loading thread.
#[derive(Debug)]
pub(super) enum Task {
    BringUp(Box<Job>),
    /// Hash the files of a loaded version that changed.
    Compare {
        id: VersionId,
        dir: PathBuf,
        fingerprint: Fingerprint,
    },
    /// Check a pushed file and prepare its version's directory.
    Stage(Box<Push>),
}

/// A message from a loading thread.
#[derive(Debug)]
pub(super) enum LoaderMessage {
    /// A version that is being brought up reached a state.
    Reached { id: VersionId, state: State },
    /// A task ended. Exactly one for each [`Task`].
    Done(TaskResult),
}

#[derive(Debug)]
pub(super) enum TaskResult {
    BroughtUp { id: VersionId, bytes: u64, outcome: Outcome },
    Compared { id: VersionId, fingerprint: Fingerprint, digests: Option<Digests> },
    Staged { push: Box<Push>, staged: Result<Staged, Failure> },
}

/// Sends a message; returns `false` when the receiver is gone. Blocks while the receiver's queue is full.
pub(super) type Report<T> = Arc<dyn Fn(T) -> bool + Send + Sync>;

/// The pool of loading threads. It accepts only as many tasks as it has idle threads.
#[derive(Debug)]
pub(super) struct Loaders {
    /// Bounded by the number of threads. Never full, because only idle threads get tasks.
    tasks: Sender<Task>,
    idle: usize,
}

/// Stack size. Engines recurse over a model's graph when they load it.
const STACK: usize = 16 << 20;
/// The nice value of the loading threads, so that serving goes first.
const NICENESS: i32 = 10;

impl Loaders {
    /// Starts the threads. They end when this is dropped.
    ///
    /// # Errors
    /// When the system refuses a new thread.
    pub(super) fn start(
        threads: usize,
        engines: &Arc<dyn Loader>,
        telemetry: &Telemetry,
        report: &Report<LoaderMessage>,
    ) -> std::io::Result<Loaders> {
        let threads = threads.max(1);
        let (tasks, waiting) = bounded(threads);
        for i in 0..threads {
            let (waiting, engines, telemetry, report) =
                (waiting.clone(), Arc::clone(engines), telemetry.clone(), Arc::clone(report));
            std::thread::Builder::new()
                .name(format!("load-{i}"))
                .stack_size(STACK)
                .spawn(move || run(&waiting, &*engines, &telemetry, &*report))?;
        }
        Ok(Loaders { tasks, idle: threads })
    }

    #[must_use]
    pub(super) fn has_idle(&self) -> bool {
        self.idle > 0
    }

    /// Gives a task to an idle thread. Call it only when [`Loaders::has_idle`].
    pub(super) fn give(&mut self, task: Task) {
        debug_assert!(self.idle > 0, "a task was given to busy threads");
        self.idle = self.idle.saturating_sub(1);
        // Fails only when every thread died. Their loop catches panics, so none dies.
        let _ = self.tasks.send(task);
    }

    /// A thread finished its task.
    pub(super) fn done(&mut self) {
        self.idle += 1;
    }
}

fn run(
    tasks: &Receiver<Task>,
    engines: &dyn Loader,
    telemetry: &Telemetry,
    report: &(dyn Fn(LoaderMessage) -> bool + Send + Sync),
) {
    lower_priority("load", NICENESS);
    while let Ok(task) = tasks.recv() {
        let result = match task {
            Task::BringUp(job) => {
                let say = |state| {
                    // Fails only when the manager has ended.
                    report(LoaderMessage::Reached { id: job.id.clone(), state });
                };
                let outcome = bring_up(&job, engines, telemetry, &say);
                if !matches!(outcome, Outcome::Ready(_)) {
                    memory::trim();
                }
                TaskResult::BroughtUp { bytes: job.fingerprint.bytes, id: job.id, outcome }
            }
            Task::Compare { id, dir, fingerprint } => {
                let digests = catch_unwind(AssertUnwindSafe(|| artifact_digests(&dir).ok())).ok().flatten();
                TaskResult::Compared { id, fingerprint, digests }
            }
            Task::Stage(push) => {
                let staged = catch_unwind(AssertUnwindSafe(|| push.stage(engines))).unwrap_or_else(|panic| {
                    let words = crate::model::panic_message(&*panic);
                    Err(Failure::new(Code::InvalidRequest, "the engine panicked on this file").with_internal(words))
                });
                memory::trim();
                TaskResult::Staged { push, staged }
            }
        };
        if !report(LoaderMessage::Done(result)) {
            return;
        }
    }
}
