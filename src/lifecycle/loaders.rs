//! The threads that read, load, verify and warm, at low priority.

use super::manager::Event;
use super::memory;
use super::push::{Push, Staged};
use crate::model::{Code, Failure, VersionId};
use crate::prepare::Loader;
use crate::prepare::{Digests, Job, Outcome, artifact_digests, bring_up};
use crate::source::Fingerprint;
use crate::telemetry::Telemetry;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Something to do that takes long.
#[derive(Debug)]
pub enum Work {
    BringUp(Box<Job>),
    /// Hash the files of a loaded version that changed.
    Compare {
        id: VersionId,
        dir: PathBuf,
        fingerprint: Fingerprint,
    },
    /// Look at a file somebody pushes, and put it beside its place.
    Stage(Box<Push>),
}

/// What came of it; exactly one per [`Work`].
#[derive(Debug)]
pub enum Done {
    BroughtUp { id: VersionId, bytes: u64, outcome: Outcome },
    Compared { id: VersionId, fingerprint: Fingerprint, digests: Option<Digests> },
    Staged { push: Box<Push>, staged: Result<Staged, Failure> },
}

/// The threads, as the manager has them: it gives them no more work than they have hands.
#[derive(Debug)]
pub struct Loaders {
    /// Bounded by the number of threads; never full, as work is given to idle ones alone.
    work: Sender<Work>,
    idle: usize,
}

/// Engines recurse over a model's graph when they load it.
const STACK: usize = 16 << 20;
/// Nice value of the loading threads: they take what serving leaves.
const NICENESS: i32 = 10;

impl Loaders {
    /// Starts the threads. They end when this is dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        threads: usize,
        engines: &Arc<dyn Loader>,
        telemetry: &Telemetry,
        events: &mpsc::Sender<Event>,
    ) -> std::io::Result<Loaders> {
        let threads = threads.max(1);
        let (work, waiting) = bounded(threads);
        for i in 0..threads {
            let (waiting, engines, telemetry, events) =
                (waiting.clone(), Arc::clone(engines), telemetry.clone(), events.clone());
            std::thread::Builder::new()
                .name(format!("load-{i}"))
                .stack_size(STACK)
                .spawn(move || run(&waiting, &*engines, &telemetry, &events))?;
        }
        Ok(Loaders { work, idle: threads })
    }

    #[must_use]
    pub fn has_idle(&self) -> bool {
        self.idle > 0
    }

    /// Gives work to an idle thread. To be called only when there is one.
    pub fn give(&mut self, work: Work) {
        debug_assert!(self.idle > 0, "work is given to idle threads alone");
        self.idle = self.idle.saturating_sub(1);
        // Fails only when every thread died, which their loop does not do.
        let _ = self.work.send(work);
    }

    /// A thread is done.
    pub fn done(&mut self) {
        self.idle += 1;
    }
}

fn run(waiting: &Receiver<Work>, engines: &dyn Loader, telemetry: &Telemetry, events: &mpsc::Sender<Event>) {
    crate::machine::lower_priority("load", NICENESS);
    while let Ok(work) = waiting.recv() {
        let done = match work {
            Work::BringUp(job) => {
                let say = |state| {
                    // Fails only when the manager has stopped, and then nobody asks.
                    let _ = events.blocking_send(Event::Came { id: job.id.clone(), state });
                };
                let outcome = bring_up(&job, engines, telemetry, &say);
                if !matches!(outcome, Outcome::Ready(_)) {
                    memory::trim();
                }
                Done::BroughtUp { bytes: job.fingerprint.bytes, id: job.id, outcome }
            }
            Work::Compare { id, dir, fingerprint } => {
                let digests = catch_unwind(AssertUnwindSafe(|| artifact_digests(&dir).ok())).ok().flatten();
                Done::Compared { id, fingerprint, digests }
            }
            Work::Stage(push) => {
                let staged = catch_unwind(AssertUnwindSafe(|| push.stage(engines))).unwrap_or_else(|panic| {
                    let words = crate::model::panic_message(&*panic);
                    Err(Failure::new(Code::InvalidRequest, "the engine panicked on this file").with_internal(words))
                });
                memory::trim();
                Done::Staged { push, staged }
            }
        };
        if events.blocking_send(Event::Done(done)).is_err() {
            return;
        }
    }
}
