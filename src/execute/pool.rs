//! The workers: what they take from the lanes, and how they run batches, single requests and parts of split requests.

use super::batch::{BatchItem, Selected, select};
use super::executor::{Config, expired};
use super::idle::{IdleWorkers, OtherCpuLoad};
use super::lanes::{Lanes, Turn};
use super::runner::{RunOutput, Runner};
use super::split_run::SplitRun;
use crate::machine;
use crate::model::{Checked, Failure, panic_message};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A request that waits for a worker.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) runner: Arc<Runner>,
    pub(super) request: Arc<Checked>,
    pub(super) deadline: Instant,
    pub(super) queued: Instant,
    /// The worker time it is expected to take.
    pub(super) cost: Duration,
    /// Closed when the caller went away. Dropped without an answer only by a panic.
    pub(super) reply: oneshot::Sender<Result<RunOutput, Failure>>,
}

impl BatchItem for Job {
    fn request(&self) -> &Arc<Checked> {
        &self.request
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_cancelled(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Identifies a version's lane by the runner's address. The lane holds no reference, so it keeps nothing loaded. A version loaded
/// later at the same address inherits the time used by the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LaneKey(usize);

impl LaneKey {
    pub(super) fn of(runner: &Arc<Runner>) -> LaneKey {
        LaneKey(Arc::as_ptr(runner).addr())
    }
}

/// What the workers share.
#[derive(Debug)]
pub(super) struct Pool {
    /// See [`Config`].
    inline_below: Duration,
    cores: NonZeroUsize,
    state: Mutex<State>,
    /// How many jobs wait, as of the last change. Every request reads it without the lock.
    waiting: AtomicUsize,
    /// A worker has something to do.
    work: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    /// Each lane is bounded by [`Config::queue`]. A request that finds it full is refused.
    pub(super) lanes: Lanes<LaneKey, Job>,
    pub(super) idle: IdleWorkers<Help>,
    /// Processor time that workers have used, without runs in progress.
    worked: Duration,
    other_load: OtherCpuLoad,
    stopping: bool,
}

/// A part of another worker's run.
#[derive(Debug)]
pub(super) struct Help {
    lane: LaneKey,
    run: Arc<SplitRun>,
}

/// What a worker does next.
#[derive(Debug)]
enum Work {
    Turn(Turn<LaneKey>, Selected<Job>),
    Help(Help),
}

impl State {
    /// The number of workers to ask for help now: those that are idle while no job waits. With `pinned`, all of them. Otherwise as many as
    /// there are free cores, and none if workers were busy recently.
    fn helpers(&mut self, now: Instant, process: Duration, cores: NonZeroUsize, pinned: bool) -> usize {
        let other = self.other_load.cores(now, process.saturating_sub(self.worked));
        let available = if self.lanes.waiting() == 0 { self.idle.available() } else { 0 };
        if pinned {
            return available;
        }
        if !self.idle.is_quiet() {
            return 0;
        }
        // One core is for this worker. Half a busy core still gives a helper more time than it costs the other thread.
        let free = cores.get() as f64 - 0.5 - other;
        (1..=available).take_while(|helpers| *helpers as f64 <= free).count()
    }
}

impl Pool {
    pub(super) fn new(config: &Config) -> Pool {
        let state = State {
            lanes: Lanes::new(config.queue.max(1)),
            idle: IdleWorkers::new(),
            worked: Duration::ZERO,
            other_load: OtherCpuLoad::new(Instant::now(), machine::process_time()),
            stopping: false,
        };
        Pool {
            inline_below: config.inline_below,
            cores: config.cores,
            state: Mutex::new(state),
            waiting: AtomicUsize::new(0),
            work: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Makes the number of waiting jobs visible to [`Pool::waiting`].
    pub(super) fn publish_waiting(&self, state: &State) {
        self.waiting.store(state.lanes.waiting(), Ordering::Relaxed);
    }

    pub(super) fn wake_worker(&self) {
        self.work.notify_one();
    }

    /// Stops the workers when no job waits any more.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.work.notify_all();
    }

    /// The loop of a worker. A panic ends neither the worker nor the process.
    pub(super) fn work(&self) {
        // Unwind safety: what a panic passed through is dropped with it, and a lock it poisoned is used as it is.
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| while self.work_once() {})) {
            tracing::error!(panic = panic_message(&*panic), "a worker panicked while it looked for work");
        }
    }

    /// Takes and does one piece of work. False where the pool has stopped.
    fn work_once(&self) -> bool {
        let Some(work) = self.next() else { return false };
        let (began, worked) = (Instant::now(), machine::thread_time());
        match work {
            Work::Turn(turn, selected) => {
                // Unwind safety: what a panic passed through is dropped with it, and its callers are answered `INTERNAL`. The
                // lanes are not touched meanwhile. Engines' panics do not get here ([`Runner::run`]).
                let ended = catch_unwind(AssertUnwindSafe(|| self.run_selected(selected, began)));
                let mut state = self.lock();
                state.lanes.end_turn(&turn, began.elapsed());
                state.worked += machine::thread_time().saturating_sub(worked);
                drop(state);
                if let Err(panic) = ended {
                    tracing::error!(
                        panic = panic_message(&*panic),
                        "a worker panicked; the requests of this run are answered INTERNAL"
                    );
                }
            }
            Work::Help(Help { lane, run }) => {
                // One part only, as a job may wait by now.
                run.run_one();
                let mut state = self.lock();
                state.lanes.charge(lane, began.elapsed());
                state.worked += machine::thread_time().saturating_sub(worked);
            }
        }
        true
    }

    /// Waits for work and takes it. `None` where the pool has stopped. Jobs that wait come before parts of split runs.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            let taken = state.lanes.take(|jobs| {
                let runner = jobs.front().map(|job| Arc::clone(&job.runner));
                let selected = runner.map(|runner| select(&runner, jobs, Instant::now())).unwrap_or_default();
                let Selected { batch, expired, cancelled } = &selected;
                let cost = batch.iter().chain(expired).chain(cancelled).map(|job| job.cost).sum();
                (selected, cost)
            });
            self.publish_waiting(&state);
            if let Some((turn, selected)) = taken {
                state.idle.record_turn(waited);
                return Some(Work::Turn(turn, selected));
            }
            if let Some(help) = state.idle.take_help() {
                return Some(Work::Help(help));
            }
            if state.stopping {
                return None;
            }
            state.idle.begin();
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle.end();
            waited = true;
        }
    }

    fn run_selected(&self, Selected { batch, expired: late, cancelled }: Selected<Job>, began: Instant) {
        if let Some(job) = late.first().or(cancelled.first()) {
            job.runner.counters().dropped(late.len(), cancelled.len());
        }
        drop(cancelled);
        for job in late {
            reply(Err(expired()), job, began);
        }
        self.run_batch(batch, began);
    }

    /// Runs requests together and answers each. If that fails, runs each half of them, down to single requests, so that a request
    /// fails only for itself.
    fn run_batch(&self, mut batch: Vec<Job>, began: Instant) {
        if batch.len() <= 1 {
            if let Some(job) = batch.pop() {
                self.run_single(job, began);
            }
            return;
        }
        let requests: Vec<&Checked> = batch.iter().map(|job| &*job.request).collect();
        let outputs = batch.first().and_then(|job| job.runner.run_together(&requests));
        if let Some(outputs) = outputs {
            // The run is counted once: by the first request whose caller is still there.
            let mut counts = true;
            for (job, output) in batch.into_iter().zip(outputs) {
                let delivered = reply(Ok(RunOutput { counts, ..output }), job, began);
                counts &= !delivered;
            }
            return;
        }
        let second = batch.split_off(batch.len() / 2);
        self.run_batch(batch, Instant::now());
        self.run_batch(second, Instant::now());
    }

    /// Runs one request, split across idle workers where that is worth it, and answers it.
    fn run_single(&self, job: Job, began: Instant) {
        let Some(job) = still_wanted(job, began) else { return };
        let Some(run) = self.split(&job.runner, &job.request) else {
            let result = job.runner.run(&job.request);
            reply(result, job, began);
            return;
        };
        let output = self.run_split(&job.runner, &run);
        drop(run);
        if let Some(output) = output {
            reply(Ok(output), job, began);
            return;
        }
        // A part failed. The whole request runs as one, and gives the engine's own error if it fails too.
        let Some(job) = still_wanted(job, Instant::now()) else { return };
        let result = job.runner.run(&job.request).inspect(|_| job.runner.counters().split_failed());
        reply(result, job, began);
    }

    /// Splits a request and asks idle workers for help. `None` where splitting is not worth it.
    fn split(&self, runner: &Arc<Runner>, request: &Arc<Checked>) -> Option<Arc<SplitRun>> {
        if !runner.may_split(request) {
            return None;
        }
        let (now, process) = (Instant::now(), machine::process_time());
        let mut state = self.lock();
        let helpers = state.helpers(now, process, self.cores, runner.placement().spread == Some(true));
        let parts = runner.parts(request, 1 + helpers, self.inline_below);
        if parts < 2 {
            return None;
        }
        let run = Arc::new(SplitRun::new(runner, request, parts)?);
        let lane = LaneKey::of(runner);
        (1..parts).for_each(|_| state.idle.ask_for_help(Help { lane, run: Arc::clone(&run) }));
        drop(state);
        (1..parts).for_each(|_| self.work.notify_one());
        Some(run)
    }

    /// Runs the parts of a split request on this worker and the helpers. `None` where a part failed.
    fn run_split(&self, runner: &Runner, run: &Arc<SplitRun>) -> Option<RunOutput> {
        let began = Instant::now();
        while run.run_one() {}
        // A helper that has not started by now would find no part, and must not keep the version loaded.
        self.lock().idle.withdraw(|help| Arc::ptr_eq(&help.run, run));
        let answer = run.answer()?;
        runner.counters().split();
        let batch_rows = run.rows_of_largest_part();
        Some(RunOutput { answer, queue: Duration::ZERO, infer: began.elapsed(), batch_rows, counts: true })
    }
}

/// Returns the job if its deadline is ahead and its caller is there. Otherwise counts and answers it.
fn still_wanted(job: Job, now: Instant) -> Option<Job> {
    if now >= job.deadline {
        job.runner.counters().dropped(1, 0);
        reply(Err(expired()), job, now);
        return None;
    }
    if job.is_cancelled() {
        job.runner.counters().dropped(0, 1);
        return None;
    }
    Some(job)
}

/// Answers a job. Returns false where its caller went away.
fn reply(result: Result<RunOutput, Failure>, job: Job, began: Instant) -> bool {
    let Job { runner, request, queued, reply, .. } = job;
    // The request's memory is freed before the caller goes on.
    drop((runner, request));
    let result = result.map(|output| RunOutput { queue: began.saturating_duration_since(queued), ..output });
    reply.send(result).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::tests::{request, scripted};

    #[test]
    fn waiting_jobs_come_before_parts_of_split_runs() {
        let model = scripted();
        let (runner, request) = (Arc::new(Runner::new(model.clone())), request(&model));
        let cores = NonZeroUsize::MIN;
        let pool = Pool::new(&Config { inline_below: Duration::ZERO, queue: 9, workers: cores, cores });
        pool.stop();
        let lane = LaneKey::of(&runner);
        let run = Arc::new(SplitRun::new(&runner, &request, 2).unwrap());
        pool.lock().idle.ask_for_help(Help { lane, run });
        let (reply, _answer) = oneshot::channel();
        let queued = Instant::now();
        let job =
            Job { runner, request, deadline: queued + Duration::from_mins(1), queued, cost: Duration::ZERO, reply };
        pool.lock().lanes.push(lane, job, Duration::ZERO);
        assert!(matches!(pool.next(), Some(Work::Turn(..))));
        assert!(matches!(pool.next(), Some(Work::Help(..))));
        assert!(pool.next().is_none());
    }
}
