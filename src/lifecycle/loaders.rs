//! The loading threads: they read, load, verify and warm versions at low priority.
//!
//! A task that takes long holds nobody else: after [`Patience::slow`] in one stage another thread may be started beside it. A task that
//! exceeds its time limit is given up. Its thread is left behind, because an engine's load cannot be ended from outside, and another
//! thread takes its place. What it returns later is dropped; its memory stays reserved until then.

use super::memory::{self, FileBytes};
use super::push::{Push, Staged};
use super::shared_push::PushReply;
use crate::machine::lower_priority;
use crate::model::{Code, Failure, VersionId};
use crate::prepare::{Digests, Job, Loader, Outcome, TimeLimits, artifact_digests, bring_up};
use crate::registry::{Stage, State};
use crate::source::Fingerprint;
use crate::telemetry::Telemetry;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// A task for a loading thread.
#[derive(Debug)]
pub(super) enum Task {
    BringUp(Box<Job>, FileBytes),
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
pub(super) struct LoaderMessage {
    /// The task, as [`Loaders::give`] numbered it.
    pub task: u64,
    pub news: LoaderNews,
}

#[derive(Debug)]
pub(super) enum LoaderNews {
    /// A version that is being brought up reached a state.
    Reached(State),
    /// The task ended. Exactly one for each [`Task`].
    Done(TaskResult),
}

#[derive(Debug)]
pub(super) enum TaskResult {
    BroughtUp { id: VersionId, outcome: Outcome },
    Compared { id: VersionId, fingerprint: Fingerprint, digests: Option<Digests> },
    Staged { push: Box<Push>, staged: Result<Staged, Failure> },
}

/// Sends a message; returns `false` when the receiver is gone. Blocks while the receiver's queue is full.
pub(super) type Report<T> = Arc<dyn Fn(T) -> bool + Send + Sync>;

/// The pool of loading threads. It accepts only as many tasks as may run at the same time.
pub(super) struct Loaders {
    spawn: Spawn,
    /// Bounded by [`MAX_WAITING`]. Never full, because a task is given only where a thread waits for one.
    tasks: Sender<Given>,
    limits: TimeLimits,
    patience: Patience,
    /// Tasks that may run at the same time, not counting slow ones.
    threads: usize,
    /// Threads that wait for a task.
    waiting: usize,
    running: BTreeMap<u64, Running>,
    last_task: u64,
}

/// A task that is being worked on.
#[derive(Debug)]
pub(super) struct Running {
    pub what: Work,
    pub stage: Stage,
    /// When the stage began.
    since: Instant,
    pub files: FileBytes,
    /// Why its result is dropped, if it is.
    pub dropped: Option<Dropped>,
    /// It no longer delays the readiness of the server, and [`Loaders::overdue`] has said so.
    long: bool,
    /// Another thread takes the place of its thread.
    replaced: bool,
    progress: Arc<Progress>,
}

/// Why the result of a task is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Its version should not be loaded any more.
    Cancelled,
    /// It exceeded its time limit. Whoever waited for it was told.
    GivenUp,
}

/// What a task is about, and who waits for it.
#[derive(Debug)]
pub(super) enum Work {
    BringUp(VersionId),
    Compare(VersionId),
    /// `None` when the operator was answered.
    Push(VersionId, Option<PushReply>),
}

/// A task on its way to a thread.
struct Given {
    number: u64,
    task: Task,
    progress: Arc<Progress>,
}

/// Whether a task's thread goes on with other tasks. The thread and the manager both try to decide it, and the first one wins.
#[derive(Debug, Default)]
struct Progress(AtomicU8);

const RUNNING: u8 = 0;
/// The thread is done with the task and takes another one.
const DONE: u8 = 1;
/// The thread ends after the task.
const LEFT_BEHIND: u8 = 2;

/// A task that has taken too long.
#[derive(Debug)]
pub(super) enum Overdue {
    /// A version that no longer delays the readiness of the server.
    Long(VersionId),
    /// A version whose stage exceeded its limit.
    Version {
        id: VersionId,
        stage: Stage,
        bytes: u64,
    },
    Compare(VersionId),
    Push {
        id: VersionId,
        reply: Option<PushReply>,
        bytes: u64,
    },
}

/// How long to wait in which case, within one stage. The time to read the files is added to the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Then a task is slow, and others need not wait for it: another thread is started beside it. 5 s: most stages of most versions take
    /// less than a second.
    pub slow: Duration,
    /// Then a version does not delay the readiness of the server, unless a traffic document names it. 30 s: a rollout of a fleet waits
    /// for each replica, typically for a minute or more.
    pub long: Duration,
    /// How long after the time limit a thread may take to end its task by itself, as runs have limits of their own. 3 s.
    pub grace: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { slow: Duration::from_secs(5), long: Duration::from_secs(30), grace: Duration::from_secs(3) }
    }
}

/// How to start a thread.
struct Spawn {
    engines: Arc<dyn Loader>,
    telemetry: Telemetry,
    report: Report<LoaderMessage>,
    tasks: Receiver<Given>,
    started: usize,
}

/// Stack size. Engines recurse over a model's graph when they load it.
const STACK: usize = 16 << 20;
/// The nice value of the loading threads, so that serving goes first.
const NICENESS: i32 = 10;
/// How many slow tasks have another thread beside them. Each takes a core and memory.
const MAX_SLOW: usize = 4;
/// How many threads are left behind and replaced. With more, loads wait until one of them ends: each holds a core and memory.
const MAX_LEFT_BEHIND: usize = 8;
/// Limit for the tasks between the manager and the threads: more than there are ever threads.
const MAX_WAITING: usize = 128;

impl Loaders {
    /// Starts the threads. They end when this is dropped.
    ///
    /// # Errors
    /// When the system refuses a new thread.
    pub(super) fn start(
        threads: usize,
        (limits, patience): (TimeLimits, Patience),
        engines: &Arc<dyn Loader>,
        telemetry: &Telemetry,
        report: &Report<LoaderMessage>,
    ) -> std::io::Result<Loaders> {
        let threads = threads.clamp(1, MAX_WAITING / 2);
        let (tasks, waiting) = bounded(MAX_WAITING);
        let mut spawn = Spawn {
            engines: Arc::clone(engines),
            telemetry: telemetry.clone(),
            report: Arc::clone(report),
            tasks: waiting,
            started: 0,
        };
        for _ in 0..threads {
            spawn.one()?;
        }
        Ok(Loaders {
            spawn,
            tasks,
            limits,
            patience,
            threads,
            waiting: threads,
            running: BTreeMap::new(),
            last_task: 0,
        })
    }

    /// Whether a task can be given now. Starts a thread where one more may run and none waits.
    pub(super) fn has_idle(&mut self, now: Instant) -> bool {
        let busy = self.running.values().filter(|running| !running.replaced).count();
        let slow = self
            .running
            .values()
            .filter(|running| !running.replaced && now >= running.after(self.patience.slow))
            .count();
        if busy >= self.threads + slow.min(MAX_SLOW) {
            return false;
        }
        if self.waiting == 0 {
            match self.spawn.one() {
                Ok(()) => self.waiting = 1,
                Err(error) => tracing::error!(%error, "another loading thread cannot be started"),
            }
        }
        self.waiting > 0
    }

    /// Gives a task to a waiting thread. Call it only when [`Loaders::has_idle`].
    pub(super) fn give(&mut self, mut task: Task) {
        debug_assert!(self.waiting > 0, "a task was given to busy threads");
        self.waiting = self.waiting.saturating_sub(1);
        self.last_task += 1;
        let (what, files) = match &mut task {
            Task::BringUp(job, files) => (Work::BringUp(job.id.clone()), *files),
            Task::Compare { id, fingerprint, .. } => {
                (Work::Compare(id.clone()), FileBytes::of_model(fingerprint.bytes))
            }
            Task::Stage(push) => (Work::Push(push.id.clone(), push.reply.take()), FileBytes::of_model(push.bytes)),
        };
        let progress: Arc<Progress> = Arc::default();
        let (since, number) = (Instant::now(), self.last_task);
        let running = Running {
            what,
            stage: Stage::Load,
            since,
            files,
            dropped: None,
            long: false,
            replaced: false,
            progress: Arc::clone(&progress),
        };
        self.running.insert(number, running);
        // Fails only when every thread died. Their loop catches panics, so none dies.
        let _ = self.tasks.send(Given { number, task, progress });
    }

    /// A thread reports that its version reached a state. `None` where nobody waits for the version any more.
    pub(super) fn reached(&mut self, task: u64, state: State) -> Option<VersionId> {
        let running = self.running.get_mut(&task).filter(|r| r.dropped.is_none())?;
        running.stage = if state == State::Verifying { Stage::Verify } else { Stage::Warm };
        (running.since, running.long) = (Instant::now(), false);
        match &running.what {
            Work::BringUp(id) => Some(id.clone()),
            Work::Compare(_) | Work::Push(..) => None,
        }
    }

    /// A thread finished its task.
    pub(super) fn done(&mut self, task: u64) -> Option<Running> {
        let running = self.running.remove(&task)?;
        if !running.replaced {
            self.waiting += 1;
        }
        Some(running)
    }

    /// Drops the result of a version that is being brought up. Nobody waits for it.
    pub(super) fn cancel(&mut self, id: &VersionId) {
        let of_version = |r: &&mut Running| matches!(&r.what, Work::BringUp(running) if running == id);
        self.running.values_mut().filter(of_version).for_each(|running| {
            running.dropped.get_or_insert(Dropped::Cancelled);
        });
    }

    /// The replies to operators whose pushes are being worked on.
    pub(super) fn take_replies(&mut self) -> Vec<PushReply> {
        let reply = |running: &mut Running| match &mut running.what {
            Work::Push(_, reply) => reply.take(),
            Work::BringUp(_) | Work::Compare(_) => None,
        };
        self.running.values_mut().filter_map(reply).collect()
    }

    /// Gives up what exceeded its time limit, and leaves its threads behind. Each task is reported once for each reason.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        let mut left_behind = self.left_behind();
        for running in self.running.values_mut().filter(|running| running.dropped != Some(Dropped::GivenUp)) {
            if let Work::BringUp(id) = &running.what
                && !running.long
                && now >= running.after(self.patience.long)
            {
                running.long = true;
                overdue.push(Overdue::Long(id.clone()));
            }
            if now < running.give_up_at(&self.limits, self.patience.grace) {
                continue;
            }
            if left_behind < MAX_LEFT_BEHIND {
                // It fails where the thread has just ended the task: its message is on the way.
                if !running.progress.decide(LEFT_BEHIND) {
                    continue;
                }
                running.replaced = true;
                left_behind += 1;
            } else {
                tracing::error!(
                    "{left_behind} loading threads do not end: loads wait for one of them; restart the server"
                );
            }
            running.dropped = Some(Dropped::GivenUp);
            let bytes = running.files.all;
            overdue.push(match &mut running.what {
                Work::BringUp(id) => Overdue::Version { id: id.clone(), stage: running.stage, bytes },
                Work::Compare(id) => Overdue::Compare(id.clone()),
                Work::Push(id, reply) => Overdue::Push { id: id.clone(), reply: reply.take(), bytes },
            });
        }
        overdue
    }

    /// The files of all versions that are being loaded.
    pub(super) fn loading(&self) -> impl Iterator<Item = FileBytes> {
        let is_load = |running: &&Running| !matches!(running.what, Work::Compare(_));
        self.running.values().filter(is_load).map(|running| running.files)
    }

    /// Threads whose task was given up and has not ended.
    #[must_use]
    pub(super) fn left_behind(&self) -> usize {
        self.running.values().filter(|running| running.replaced).count()
    }

    /// When a task becomes slow, long or overdue.
    #[must_use]
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let patience = self.patience;
        let running = self.running.values().filter(|running| running.dropped != Some(Dropped::GivenUp));
        let times = running
            .flat_map(|r| [r.after(patience.slow), r.after(patience.long), r.give_up_at(&self.limits, patience.grace)]);
        times.filter(|at| *at > now).min()
    }
}

impl Running {
    fn after(&self, time: Duration) -> Instant {
        let time = time.saturating_add(TimeLimits::reading_time(self.files.all));
        // A time that the clock cannot express never comes.
        self.since.checked_add(time).unwrap_or(self.since + Duration::from_hours(24 * 365))
    }

    fn give_up_at(&self, limits: &TimeLimits, grace: Duration) -> Instant {
        let limit = limits.of(self.stage, self.files.all).saturating_add(grace);
        self.since.checked_add(limit).unwrap_or(self.since + Duration::from_hours(24 * 365))
    }
}

impl Progress {
    /// Decides what the thread does next. Returns false where that was decided already.
    fn decide(&self, to: u8) -> bool {
        self.0.compare_exchange(RUNNING, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Spawn {
    fn one(&mut self) -> std::io::Result<()> {
        let (tasks, engines) = (self.tasks.clone(), Arc::clone(&self.engines));
        let (telemetry, report) = (self.telemetry.clone(), Arc::clone(&self.report));
        std::thread::Builder::new()
            .name(format!("load-{}", self.started))
            .stack_size(STACK)
            .spawn(move || run(&tasks, &*engines, &telemetry, &*report))?;
        self.started += 1;
        Ok(())
    }
}

impl std::fmt::Debug for Loaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaders").field("running", &self.running).finish_non_exhaustive()
    }
}

fn run(
    tasks: &Receiver<Given>,
    engines: &dyn Loader,
    telemetry: &Telemetry,
    report: &(dyn Fn(LoaderMessage) -> bool + Send + Sync),
) {
    lower_priority("load", NICENESS);
    while let Ok(Given { number, task, progress }) = tasks.recv() {
        let say = |state| {
            // Fails only when the manager has ended.
            report(LoaderMessage { task: number, news: LoaderNews::Reached(state) });
        };
        let result = work(task, engines, telemetry, &say);
        let goes_on = progress.decide(DONE);
        if !report(LoaderMessage { task: number, news: LoaderNews::Done(result) }) || !goes_on {
            return;
        }
    }
}

fn work(task: Task, engines: &dyn Loader, telemetry: &Telemetry, say: &dyn Fn(State)) -> TaskResult {
    match task {
        Task::BringUp(job, _) => {
            let outcome = bring_up(&job, engines, telemetry, say);
            if !matches!(outcome, Outcome::Ready(_)) {
                memory::trim();
            }
            TaskResult::BroughtUp { id: job.id, outcome }
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
    }
}
