//! The workers: what they take from the lanes, and how they run batches, single requests and parts of split requests.

use super::batch::{BatchItem, Selected, select};
use super::executor::{Config, expired};
use super::idle::{IdleWorkers, OtherCpuLoad};
use super::lanes::{LaneId, Lanes, Turn};
use super::queue::{Queued, Slot};
use super::runner::{NoOutput, RunOutput, Runner};
use super::split_run::SplitRun;
use super::watchdog::{
    Callers, Limit, OnLook, also_look_at, is_aside, is_replaced, replace_when_lost, step_aside_when_slow,
};
use crate::machine;
use crate::model::{Checked, Code, Failure, Priority, panic_message};
use std::collections::VecDeque;
use std::io;
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
    pub(super) priority: Priority,
    /// Its place in the lane.
    pub(super) slot: Slot,
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

impl Queued for Job {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

/// The jobs of a run in progress. The worker takes them back when the run has ended.
#[derive(Debug)]
struct InRun(Mutex<Vec<Job>>);

impl InRun {
    fn new(jobs: Vec<Job>) -> Arc<InRun> {
        Arc::new(InRun(Mutex::new(jobs)))
    }

    fn take(&self) -> Vec<Job> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Callers for InRun {
    fn all_left(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().all(Job::is_cancelled)
    }
}

/// Jobs of one turn that are still to be run together.
struct Group {
    jobs: Vec<Job>,
    /// They ran far longer than expected, and were ended so that the others could run.
    was_ended: bool,
}

/// A run is slow where it takes this many times its expected time. A batch is ended then, so that one slow request does not hold the others:
/// its halves run. A single request goes on with a lower priority.
const SLOW: u32 = 20;
/// A run is not slow before this.
const SLOW_AT_LEAST: Duration = Duration::from_millis(100);
/// One more worker is started where a request waits and every worker has been in its run for this long: a version whose runs are long
/// must not keep the others waiting.
const ALL_BUSY_FOR: Duration = Duration::from_millis(250);
/// The most workers, in multiples of [`Config::workers`]. One version uses at most [`Config::workers`] of them.
const MOST_WORKERS: usize = 4;
/// A worker that is not needed any more ends after it was idle for this long.
const IDLE_FOR: Duration = Duration::from_secs(10);

/// How much less of the workers a lane of batch priority gets than one of interactive priority: enough that interactive requests hardly
/// notice it, and not so little that batch requests never run.
const BATCH_WEIGHT: u32 = 16;

/// Identifies a version's lane by the runner's address, and the priority. The lane holds no reference, so it keeps nothing loaded. A version
/// loaded later at the same address inherits the time used by the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LaneKey {
    runner: usize,
    priority: Priority,
}

impl LaneKey {
    pub(super) fn of(runner: &Arc<Runner>, priority: Priority) -> LaneKey {
        LaneKey { runner: Arc::as_ptr(runner).addr(), priority }
    }
}

impl LaneId for LaneKey {
    fn weight(self) -> u32 {
        match self.priority {
            Priority::Interactive => 1,
            Priority::Batch => BATCH_WEIGHT,
        }
    }

    fn of_same_version(self) -> impl Iterator<Item = LaneKey> {
        Priority::ALL
            .into_iter()
            .filter(move |other| *other != self.priority)
            .map(move |priority| LaneKey { priority, ..self })
    }
}

/// What the workers share.
#[derive(Debug)]
pub(super) struct Pool {
    /// See [`Config`].
    inline_below: Duration,
    cores: NonZeroUsize,
    workers: NonZeroUsize,
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
    /// Workers that take work. Those that were replaced are not counted.
    live: usize,
    /// All workers ever started.
    started: usize,
    /// The work in progress of live workers.
    working: Vec<Working>,
    /// The work in progress of workers that stepped aside: at most [`MOST_WORKERS`] times [`Config::workers`], so that slow runs of many
    /// versions do not start a thread each.
    aside: Vec<Working>,
    stopping: bool,
}

/// What a live worker does now.
#[derive(Debug)]
struct Working {
    worker: usize,
    began: Instant,
    /// The lane whose turn it is; `None` for a part of another worker's run.
    lane: Option<LaneKey>,
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

    fn begin_work(&mut self, worker: usize, lane: Option<LaneKey>) {
        self.working.push(Working { worker, began: Instant::now(), lane });
    }

    /// A worker ends a piece of work. `before`: its thread's processor time at the begin.
    fn end_work(&mut self, worker: usize, before: Duration) {
        self.working.retain(|working| working.worker != worker);
        self.aside.retain(|working| working.worker != worker);
        self.worked += machine::thread_time().saturating_sub(before);
    }
}

impl Pool {
    pub(super) fn new(config: &Config) -> Pool {
        let state = State {
            lanes: Lanes::new(config.queue.max(1), config.workers.get()),
            idle: IdleWorkers::new(),
            worked: Duration::ZERO,
            other_load: OtherCpuLoad::new(Instant::now(), machine::process_time()),
            live: 0,
            started: 0,
            working: Vec::new(),
            aside: Vec::new(),
            stopping: false,
        };
        Pool {
            inline_below: config.inline_below,
            cores: config.cores,
            workers: config.workers,
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

    /// Tells the door how long a further request of this lane would wait at most.
    pub(super) fn publish_wait(&self, state: &State, runner: &Runner, key: LaneKey) {
        runner.set_wait(key.priority, self.shared_by_workers(state.lanes.work_of_all(key)));
    }

    /// How long the workers take for this much worker time.
    pub(super) fn shared_by_workers(&self, work: Duration) -> Duration {
        work / u32::try_from(self.workers.get()).unwrap_or(u32::MAX)
    }

    pub(super) fn wake_worker(&self) {
        self.work.notify_one();
    }

    /// Stops the workers when no job waits any more.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.work.notify_all();
    }

    /// Starts a worker.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start_worker(self: &Arc<Self>) -> io::Result<()> {
        let mut state = self.lock();
        let (pool, worker) = (Arc::clone(self), state.started);
        std::thread::Builder::new().name(format!("infer-{worker}")).spawn(move || pool.work(worker))?;
        (state.live, state.started) = (state.live + 1, state.started + 1);
        Ok(())
    }

    /// Starts a worker beside one whose run is slow, which ends after its run. False where it could not be started.
    fn relieve_worker(self: &Arc<Self>, worker: usize) -> bool {
        let most = self.workers.get() * MOST_WORKERS;
        let may_start = self.lock().aside.len() < most;
        if !may_start || self.start_worker().is_err() {
            return false;
        }
        let mut state = self.lock();
        state.live -= 1;
        // Its lane's turn goes on: the version has no more threads than before.
        if let Some(at) = state.working.iter().position(|working| working.worker == worker) {
            let working = state.working.swap_remove(at);
            state.aside.push(working);
        }
        true
    }

    /// Starts a worker in place of one whose run does not end. False where it could not be started.
    fn replace_worker(self: &Arc<Self>, worker: usize) -> bool {
        let mut state = self.lock();
        if let Some(at) = state.aside.iter().position(|working| working.worker == worker) {
            // Another worker has its place already.
            if let Some(lane) = state.aside.swap_remove(at).lane {
                state.lanes.lose_worker(lane);
            }
            return true;
        }
        drop(state);
        if let Err(error) = self.start_worker() {
            tracing::error!(%error, "a worker could not be replaced");
            return false;
        }
        let mut state = self.lock();
        state.live -= 1;
        // Its lane may use another worker. It ends its turn by `Lanes::charge` if it comes back.
        let lane = state.working.iter().find(|working| working.worker == worker).and_then(|working| working.lane);
        state.working.retain(|working| working.worker != worker);
        if let Some(lane) = lane {
            state.lanes.lose_worker(lane);
        }
        true
    }

    /// Has the watchdog start workers where all are busy for long.
    pub(super) fn watch(self: &Arc<Self>) {
        let pool = Arc::downgrade(self);
        also_look_at(pool);
    }

    /// The loop of a worker. A panic ends neither the worker nor the process.
    fn work(self: &Arc<Self>, worker: usize) {
        let pool = Arc::downgrade(self);
        replace_when_lost(move || pool.upgrade().is_some_and(|pool| pool.replace_worker(worker)));
        let pool = Arc::downgrade(self);
        step_aside_when_slow(move || pool.upgrade().is_some_and(|pool| pool.relieve_worker(worker)));
        // Unwind safety: what a panic passed through is dropped with it, and a lock it poisoned is used as it is.
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| while self.work_once(worker) {})) {
            tracing::error!(panic = panic_message(&*panic), "a worker panicked while it looked for work");
        }
    }

    /// Takes and does one piece of work. False where the pool has stopped.
    fn work_once(&self, worker: usize) -> bool {
        let Some(work) = self.next(worker) else { return false };
        let (began, time_before) = (Instant::now(), machine::thread_time());
        match work {
            Work::Turn(turn, selected) => {
                // Unwind safety: what a panic passed through is dropped with it, and its callers are answered `INTERNAL`. The
                // lanes are not touched meanwhile. Engines' panics do not get here ([`Runner::run`]).
                let ended = catch_unwind(AssertUnwindSafe(|| self.run_selected(selected, began)));
                let mut state = self.lock();
                if is_replaced() {
                    state.lanes.charge(turn.key(), began.elapsed());
                } else {
                    state.lanes.end_turn(&turn, began.elapsed());
                }
                state.end_work(worker, time_before);
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
                state.end_work(worker, time_before);
            }
        }
        if is_aside() {
            // This worker would have taken what its lane could not give to another one meanwhile.
            self.wake_worker();
            return false;
        }
        !is_replaced()
    }

    /// Waits for work and takes it. `None` where the pool has stopped. Jobs that wait come before parts of split runs.
    fn next(&self, worker: usize) -> Option<Work> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            let mut of_runner = None;
            let taken = state.lanes.take(|jobs| {
                let runner = jobs.front().map(|job| Arc::clone(&job.runner));
                let selected =
                    runner.as_ref().map(|runner| select(runner, jobs, Instant::now(), None)).unwrap_or_default();
                of_runner = runner;
                selected
            });
            self.publish_waiting(&state);
            if let (Some(runner), Some((turn, _))) = (of_runner, &taken) {
                self.publish_wait(&state, &runner, turn.key());
            }
            if let Some((turn, selected)) = taken {
                state.idle.record_turn(waited);
                state.begin_work(worker, Some(turn.key()));
                return Some(Work::Turn(turn, selected));
            }
            if let Some(help) = state.idle.take_help() {
                state.begin_work(worker, None);
                return Some(Work::Help(help));
            }
            if state.stopping {
                return None;
            }
            state.idle.begin();
            let timed_out;
            (state, timed_out) = if state.live > self.workers.get() {
                let waited = self.work.wait_timeout(state, IDLE_FOR).unwrap_or_else(PoisonError::into_inner);
                (waited.0, waited.1.timed_out())
            } else {
                (self.work.wait(state).unwrap_or_else(PoisonError::into_inner), false)
            };
            state.idle.end();
            waited = true;
            if timed_out && state.live > self.workers.get() && state.lanes.waiting() == 0 {
                state.live -= 1;
                return None;
            }
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

    /// Runs requests together and answers each. If that fails or takes far too long, runs each half of them, down to single requests, so
    /// that a request fails only for itself. What took too long comes last, so that the others do not wait for it.
    fn run_batch(&self, batch: Vec<Job>, mut began: Instant) {
        let mut groups = VecDeque::from([Group { jobs: batch, was_ended: false }]);
        while let Some(Group { mut jobs, was_ended }) = groups.pop_front() {
            if jobs.len() <= 1 {
                let ends_early = !groups.is_empty() && !was_ended;
                let ended = jobs.pop().and_then(|job| self.run_single(job, began, ends_early));
                groups.extend(ended.map(|job| Group { jobs: vec![job], was_ended: true }));
            } else {
                let (outputs, mut first) = run_together(jobs, began);
                if let Some(outputs) = outputs {
                    // The run is counted once: by the first request whose caller is still there.
                    let mut counts = true;
                    for (job, output) in first.into_iter().zip(outputs) {
                        let delivered = reply(Ok(RunOutput { counts, ..output }), job, began);
                        counts &= !delivered;
                    }
                } else {
                    let now = Instant::now();
                    let second = first.split_off(first.len() / 2);
                    let wanted = |jobs: Vec<Job>| jobs.into_iter().filter_map(|job| still_wanted(job, now)).collect();
                    groups.extend([first, second].map(|jobs| Group { jobs: wanted(jobs), was_ended: false }));
                }
            }
            began = Instant::now();
        }
    }

    /// Runs one request, split across idle workers where that is worth it, and answers it. With `ends_early`, the run is ended where it
    /// takes far longer than expected, and the job comes back.
    fn run_single(&self, job: Job, began: Instant, ends_early: bool) -> Option<Job> {
        let job = still_wanted(job, began)?;
        let (runner, request, deadline) = (Arc::clone(&job.runner), Arc::clone(&job.request), job.deadline);
        let lane = LaneKey::of(&runner, job.priority);
        let jobs = vec![job];
        let until = if ends_early { early_limit(&runner, &jobs, began) } else { deadline };
        let slow_from = slow_after(&runner, request.elements()).and_then(|after| began.checked_add(after));
        let in_run = InRun::new(jobs);
        let callers: Arc<dyn Callers> = in_run.clone();
        let whole = || runner.run_within(&request, Limit { until: Some(until), callers: Some(&callers), slow_from });
        let split = if ends_early { None } else { self.split(&runner, &request, deadline, lane, &callers) };
        let result = match split {
            None => whole(),
            Some(run) => match self.run_split(&runner, &run) {
                Some(output) => Ok(output),
                // A part failed. The whole request runs as one, and gives the engine's own error if it fails too.
                None if Instant::now() >= deadline || callers.all_left() => Err(NoOutput::Interrupted),
                None => whole().inspect(|_| runner.counters().split_failed()),
            },
        };
        // The memory of the request is freed before its caller goes on.
        drop((callers, request, runner));
        let job = in_run.take().pop()?;
        if ends_early && matches!(result, Err(NoOutput::Interrupted)) {
            return still_wanted(job, Instant::now());
        }
        reply(result.map_err(NoOutput::failure), job, began);
        None
    }

    /// Splits a request and asks idle workers for help. `None` where splitting is not worth it.
    fn split(
        &self,
        runner: &Arc<Runner>,
        request: &Arc<Checked>,
        deadline: Instant,
        lane: LaneKey,
        callers: &Arc<dyn Callers>,
    ) -> Option<Arc<SplitRun>> {
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
        let run = Arc::new(SplitRun::new(runner, request, parts, deadline, callers)?);
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
        Some(RunOutput { answer, queue: Duration::ZERO, infer: began.elapsed(), batch_rows, requests: 1, counts: true })
    }
}

impl OnLook for Pool {
    /// Starts one more worker where a request waits and all workers have been in their runs for long.
    fn look(self: Arc<Self>, now: Instant) {
        if self.waiting() == 0 {
            return;
        }
        let state = self.lock();
        let busy = state.working.iter().filter(|work| now.saturating_duration_since(work.began) >= ALL_BUSY_FOR);
        let needed = !state.stopping
            && state.lanes.has_turn()
            && busy.count() >= state.live
            && state.live < self.workers.get() * MOST_WORKERS;
        drop(state);
        if needed && let Err(error) = self.start_worker() {
            tracing::error!(%error, "all workers are in long runs, and no other could be started");
        }
    }
}

/// Runs jobs as one batch, and returns them with the outputs. `None` where that failed, or took so long that their halves should run.
fn run_together(batch: Vec<Job>, now: Instant) -> (Option<Vec<RunOutput>>, Vec<Job>) {
    let Some(runner) = batch.first().map(|job| Arc::clone(&job.runner)) else { return (None, batch) };
    let requests: Vec<Arc<Checked>> = batch.iter().map(|job| Arc::clone(&job.request)).collect();
    let until = early_limit(&runner, &batch, now);
    let in_run = InRun::new(batch);
    let callers: Arc<dyn Callers> = in_run.clone();
    let limit = Limit { until: Some(until), callers: Some(&callers), ..Limit::default() };
    let outputs = runner.run_together(&requests.iter().map(|request| &**request).collect::<Vec<_>>(), limit);
    (outputs, in_run.take())
}

/// When a run that others wait for is ended: at the latest deadline of its callers, and earlier where it takes far longer than expected.
fn early_limit(runner: &Runner, batch: &[Job], now: Instant) -> Instant {
    let deadlines = || batch.iter().map(|job| job.deadline);
    let (earliest, latest) = (deadlines().min().unwrap_or(now), deadlines().max().unwrap_or(now));
    // What is left then is for another attempt.
    let most = earliest.saturating_duration_since(now).mul_f64(0.75);
    let elements = batch.iter().map(|job| job.request.elements()).sum();
    let slow = slow_after(runner, elements).unwrap_or(most);
    latest.min(now + slow.min(most).max(SLOW_AT_LEAST))
}

/// How long a run of this many elements takes at least that is slow. `None` before the first run.
fn slow_after(runner: &Runner, elements: usize) -> Option<Duration> {
    let expected = runner.cost().estimate(elements)?;
    Some(expected.saturating_mul(SLOW).max(SLOW_AT_LEAST))
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

/// Answers a job that lost its place to one of another caller.
pub(super) fn give_up_place(job: Job, retry_after: Duration) {
    let failure = Failure::new(
        Code::Overloaded,
        "the queue of this version is full, and its last place went to a caller with fewer waiting requests; try again shortly",
    );
    let queued = job.queued;
    reply(Err(failure.with_retry_after(retry_after)), job, queued);
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
        let pool = Pool::new(&Config { inline_below: Duration::ZERO, queue: 9, ..Config::default() });
        pool.stop();
        let lane = LaneKey::of(&runner, Priority::Interactive);
        let callers: Arc<dyn Callers> = InRun::new(Vec::new());
        let run = Arc::new(SplitRun::new(&runner, &request, 2, Instant::now(), &callers).unwrap());
        pool.lock().idle.ask_for_help(Help { lane, run });
        let (reply, _answer) = oneshot::channel();
        let queued = Instant::now();
        let deadline = queued + Duration::from_mins(1);
        let job =
            Job { runner, request, deadline, queued, priority: Priority::Interactive, slot: Slot::default(), reply };
        assert!(pool.lock().lanes.push(lane, job).is_none());
        assert!(matches!(pool.next(0), Some(Work::Turn(..))));
        assert!(matches!(pool.next(0), Some(Work::Help(..))));
        assert!(pool.next(0).is_none());
    }
}
