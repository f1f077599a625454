//! Where a run happens.

use super::batch::{Formed, Waiting, form};
use super::idle::{Beside, Idle};
use super::lanes::{Lanes, Turn};
use super::runner::{Ran, Runner};
use super::spread::Spread;
use crate::machine;
use crate::model::{Checked, Code, Failure};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How runs are placed.
#[derive(Debug, Clone)]
pub struct Config {
    /// A run expected to take no longer than this happens at once on the thread that read the request. The default, 200 µs, is
    /// some ten times what a hand-off to a worker and back costs, and short enough that a connection on the same thread waits
    /// for it unnoticed.
    pub inline_below: Duration,
    /// Requests that may wait for a worker, of each version; one more is refused with `OVERLOADED`.
    pub queue: usize,
    /// Threads that run what is not run at once.
    pub workers: NonZeroUsize,
    /// Of the machine, for everything.
    pub cores: NonZeroUsize,
}

struct Job {
    runner: Arc<Runner>,
    request: Arc<Checked>,
    deadline: Instant,
    queued: Instant,
    /// What it is expected to take of a worker.
    cost: Duration,
    /// Closed when the caller went away.
    reply: oneshot::Sender<Result<Ran, Failure>>,
}

impl Waiting for Job {
    fn request(&self) -> &Arc<Checked> {
        &self.request
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_left(&self) -> bool {
        self.reply.is_closed()
    }
}

/// A version by its place in memory, which a lane does not hold: a lane that is remembered keeps nothing loaded. One that comes to stand
/// in the same place takes over what the one before it used.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key(usize);

impl Key {
    fn of(runner: &Arc<Runner>) -> Key {
        Key(Arc::as_ptr(runner).addr())
    }
}

/// The workers and the lanes in front of them. Dropping it ends the workers when nothing waits.
pub struct Executor {
    config: Config,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("config", &self.config).finish_non_exhaustive()
    }
}

struct Shared {
    /// See [`Config`].
    inline_below: Duration,
    cores: NonZeroUsize,
    state: Mutex<State>,
    /// How many wait, as of the last change: read without the lock, by every request.
    waiting: AtomicUsize,
    /// A worker has something to do.
    work: Condvar,
}

struct State {
    /// Each lane is bounded by [`Config::queue`]; a request that finds it full is refused.
    lanes: Lanes<Key, Job>,
    idle: Idle<Help>,
    /// Processor time that workers have had, runs under way not counted.
    worked: Duration,
    beside: Beside,
    over: bool,
}

impl State {
    /// Workers to ask for help now: those that idle, as long as nobody waits. Unless it is `pinned`, as many as there are cores that
    /// nobody wants, and none where workers were busy of late.
    fn spare(&mut self, now: Instant, process: Duration, cores: NonZeroUsize, pinned: bool) -> usize {
        let beside = self.beside.cores(now, process.saturating_sub(self.worked));
        let spare = if self.lanes.waiting() == 0 { self.idle.spare() } else { 0 };
        if pinned {
            return spare;
        }
        if !self.idle.is_quiet() {
            return 0;
        }
        // One is taken by who asks; half a core that somebody else wants still leaves a helper more than it takes from them.
        let most = cores.get() as f64 - 0.5 - beside;
        (1..=spare).take_while(|helpers| *helpers as f64 <= most).count()
    }
}

impl Executor {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(config: &Config) -> std::io::Result<Executor> {
        let state = State {
            lanes: Lanes::new(config.queue.max(1)),
            idle: Idle::new(),
            worked: Duration::ZERO,
            beside: Beside::new(Instant::now(), machine::process_time()),
            over: false,
        };
        let shared = Arc::new(Shared {
            inline_below: config.inline_below,
            cores: config.cores,
            state: Mutex::new(state),
            waiting: AtomicUsize::new(0),
            work: Condvar::new(),
        });
        let executor = Executor { config: config.clone(), shared };
        for i in 0..config.workers.get() {
            let shared = Arc::clone(&executor.shared);
            std::thread::Builder::new().name(format!("infer-{i}")).spawn(move || work(&shared))?;
        }
        Ok(executor)
    }

    /// Requests waiting for a worker now.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Workers with nothing to do now.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.shared.lock().idle.waiting()
    }

    /// Whether a request of so many elements to this version, due by `deadline`, would be taken. Asked before it is checked: what is
    /// refused should cost little. What runs at once is not refused, whoever waits.
    ///
    /// # Errors
    /// `OVERLOADED`: too many wait, or it would wait more than half of the time there is; `DEADLINE_EXCEEDED`: there is none.
    pub fn admit(&self, runner: &Arc<Runner>, elements: usize, deadline: Instant) -> Result<(), Failure> {
        if self.queue_depth() == 0 || runner.runs_at_once(elements, self.config.inline_below) {
            return Ok(());
        }
        let has = deadline.saturating_duration_since(Instant::now());
        if has.is_zero() {
            return Err(expired());
        }
        let fits = self.fits(&self.shared.lock().lanes, Key::of(runner), has);
        fits.map_err(Refusal::failure)
    }

    /// Only numbers: the words are made when the lock is given back.
    fn fits(&self, lanes: &Lanes<Key, Job>, key: Key, has: Duration) -> Result<(), Refusal> {
        if lanes.is_full(key) {
            return Err(Refusal::Full { most: lanes.most() });
        }
        let workers = u32::try_from(self.config.workers.get()).unwrap_or(u32::MAX);
        let wait = lanes.ahead(key) / workers;
        // 503 now, when another replica may have time, is worth more than 504 later. Who finds nobody waiting is always tried.
        if wait <= has / 2 {
            return Ok(());
        }
        Err(Refusal::Slow { wait, has })
    }

    /// Runs a request, here or on a worker, and gives its answer.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` when the deadline passed before the run ended, `OVERLOADED` when the version's queue is full or the wait
    /// would take more than half of the time there is, and what
    /// [`Runner::run`] gives.
    pub async fn execute(
        &self,
        runner: &Arc<Runner>,
        request: Arc<Checked>,
        deadline: Instant,
    ) -> Result<Ran, Failure> {
        let queued = Instant::now();
        if queued >= deadline {
            return Err(expired());
        }
        if runner.runs_at_once(request.elements(), self.config.inline_below) {
            return runner.run(&request);
        }
        let (reply, answer) = oneshot::channel();
        let cost = runner.expected_share(&request);
        self.hand_over(Job { runner: Arc::clone(runner), request, deadline, queued, cost, reply })?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            // Waited too long; or the worker dropped the job unanswered, which it does only when it is expired.
            Err(_) | Ok(Err(_)) => Err(expired()),
        }
    }

    fn hand_over(&self, job: Job) -> Result<(), Failure> {
        let (key, cost) = (Key::of(&job.runner), job.cost);
        let has = job.deadline.saturating_duration_since(job.queued);
        let mut state = self.shared.lock();
        let fits = self.fits(&state.lanes, key, has);
        if fits.is_ok() {
            state.lanes.push(key, job, cost);
            self.shared.waiting.store(state.lanes.waiting(), Ordering::Relaxed);
        }
        drop(state);
        fits.map_err(Refusal::failure)?;
        self.shared.work.notify_one();
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.work.notify_all();
    }
}

/// Why a request is not let into its lane.
enum Refusal {
    Full { most: usize },
    Slow { wait: Duration, has: Duration },
}

impl Refusal {
    fn failure(self) -> Failure {
        let why = match self {
            Refusal::Full { most } => format!("{most} requests of this version are waiting already"),
            Refusal::Slow { wait, has } => {
                format!("the wait is {} ms, of the {} ms there are", wait.as_millis(), has.as_millis())
            }
        };
        Failure::new(Code::Overloaded, format!("{why}; try again shortly"))
    }
}

fn expired() -> Failure {
    Failure::new(Code::DeadlineExceeded, "the deadline passed before the answer was ready")
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks as many workers that idle as are worth having parts of this request; `None` where none is.
    fn ask_for_help(&self, runner: &Arc<Runner>, request: &Arc<Checked>) -> Option<Arc<Spread>> {
        if !runner.may_spread(request) {
            return None;
        }
        let (now, process) = (Instant::now(), machine::process_time());
        let mut state = self.lock();
        let spare = state.spare(now, process, self.cores, runner.place().spread == Some(true));
        let parts = runner.parts(request, 1 + spare, self.inline_below);
        if parts < 2 {
            return None;
        }
        let spread = Arc::new(Spread::new(runner, request, parts)?);
        let lane = Key::of(runner);
        (1..parts).for_each(|_| state.idle.ask(Help { lane, spread: Arc::clone(&spread) }));
        drop(state);
        (1..parts).for_each(|_| self.work.notify_one());
        Some(spread)
    }

    /// Runs a request in parts, on this worker and on those that come. `None` where a part failed.
    fn run_in_parts(&self, runner: &Runner, spread: &Arc<Spread>) -> Option<Ran> {
        let began = Instant::now();
        while spread.run_one() {}
        // Who has not come by now finds nothing to do, and should not hold on to a version that is done with.
        self.lock().idle.let_go(|help| Arc::ptr_eq(&help.spread, spread));
        let answer = spread.answer()?;
        runner.tally().spread();
        let batch_rows = spread.rows_of_a_part();
        Some(Ran { answer, queue: Duration::ZERO, infer: began.elapsed(), batch_rows, counts: true })
    }

    /// Waits for work and takes it; `None` when there will be none. Who waits goes before parts of what is being run.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            let taken = state.lanes.take(|jobs| {
                // A lane whose turn it is has one that waits.
                let runner = jobs.front().map(|job| Arc::clone(&job.runner));
                let formed = runner.map(|runner| form(&runner, jobs, Instant::now())).unwrap_or_default();
                let Formed { batch, expired, left } = &formed;
                let cost = batch.iter().chain(expired).chain(left).map(|job| job.cost).sum();
                (formed, cost)
            });
            self.waiting.store(state.lanes.waiting(), Ordering::Relaxed);
            if let Some((turn, formed)) = taken {
                state.idle.turn(waited);
                return Some(Work::Turn(turn, formed));
            }
            if let Some(help) = state.idle.take() {
                return Some(Work::Help(help));
            }
            if state.over {
                return None;
            }
            state.idle.begin();
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle.end();
            waited = true;
        }
    }
}

/// What a worker does next.
enum Work {
    Turn(Turn<Key>, Formed<Job>),
    Help(Help),
}

/// A part of another worker's run.
struct Help {
    lane: Key,
    spread: Arc<Spread>,
}

fn work(shared: &Shared) {
    while let Some(work) = shared.next() {
        let (began, worked) = (Instant::now(), machine::thread_time());
        match work {
            Work::Turn(turn, formed) => {
                // Unwind safety: what a panic passed through is dropped with it, unanswered; the lanes are not touched meanwhile. An
                // engine's panic does not come here ([`Runner::run`]); one that does must not take a worker along.
                let ended = catch_unwind(AssertUnwindSafe(|| serve(shared, formed, began)));
                let mut state = shared.lock();
                state.lanes.done(&turn, began.elapsed());
                state.worked += machine::thread_time().saturating_sub(worked);
                drop(state);
                if ended.is_err() {
                    tracing::error!("a worker panicked; the requests it was at are answered as late");
                }
            }
            Work::Help(Help { lane, spread }) => {
                // One part, and then whoever waits.
                spread.run_one();
                let mut state = shared.lock();
                state.lanes.charge(lane, began.elapsed());
                state.worked += machine::thread_time().saturating_sub(worked);
            }
        }
    }
}

fn serve(shared: &Shared, Formed { batch, expired, left }: Formed<Job>, began: Instant) {
    if let Some(job) = expired.first().or(left.first()) {
        job.runner.tally().aside(expired.len(), left.len());
    }
    // Dropped unanswered, which says that they are late.
    drop((expired, left));
    run(shared, batch, began);
}

/// Runs requests together, and gives each its answer. Where that fails, its halves: whatever fails fails for itself in the end.
fn run(shared: &Shared, mut batch: Vec<Job>, began: Instant) {
    if batch.len() > 1 {
        let runner = Arc::clone(&batch[0].runner);
        let requests: Vec<&Checked> = batch.iter().map(|job| &*job.request).collect();
        if let Some(answers) = runner.run_together(&requests) {
            // The run is counted by the first who is still there to do so.
            let mut counts = true;
            for (job, ran) in batch.into_iter().zip(answers) {
                counts &= !reply(Ok(Ran { counts, ..ran }), job, began);
            }
            return;
        }
        let second = batch.split_off(batch.len() / 2);
        run(shared, batch, Instant::now());
        run(shared, second, Instant::now());
        return;
    }
    for job in batch {
        if !is_wanted(&job, began) {
            continue;
        }
        let spread = shared.ask_for_help(&job.runner, &job.request);
        let in_parts = spread.as_ref().and_then(|spread| shared.run_in_parts(&job.runner, spread));
        let result = match in_parts {
            Some(ran) => Ok(ran),
            None if spread.is_none() => job.runner.run(&job.request),
            // A part failed. The whole says why, if anybody still wants to know.
            None if !is_wanted(&job, Instant::now()) => continue,
            None => job.runner.run(&job.request).inspect(|_| job.runner.tally().cut_in_vain()),
        };
        drop(spread);
        let _ = reply(result, job, began);
    }
}

/// Whether there is time for it, and somebody to be told; counted where not.
fn is_wanted(job: &Job, now: Instant) -> bool {
    let (late, left) = (now >= job.deadline, job.reply.is_closed());
    if late || left {
        job.runner.tally().aside(usize::from(late), usize::from(!late));
    }
    !late && !left
}

/// Whether somebody was there to be told.
fn reply(result: Result<Ran, Failure>, job: Job, began: Instant) -> bool {
    let Job { runner, request, queued, reply, .. } = job;
    // Freed before the caller goes on: memory is held no longer than it is needed.
    drop((runner, request));
    let result = result.map(|ran| Ran { queue: began - queued, ..ran });
    // An error means the caller went away while this ran.
    reply.send(result).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::tests::{request, steered};

    #[test]
    fn who_waits_goes_before_parts_of_what_is_run() {
        let model = steered();
        let (runner, request) = (Arc::new(Runner::new(model.clone())), request(&model));
        let state = State {
            lanes: Lanes::new(9),
            idle: Idle::new(),
            worked: Duration::ZERO,
            beside: Beside::new(Instant::now(), machine::process_time()),
            over: true,
        };
        let shared = Shared {
            inline_below: Duration::ZERO,
            cores: NonZeroUsize::MIN,
            state: Mutex::new(state),
            waiting: AtomicUsize::new(0),
            work: Condvar::new(),
        };
        let lane = Key::of(&runner);
        let spread = Arc::new(Spread::new(&runner, &request, 2).unwrap());
        shared.lock().idle.ask(Help { lane, spread });
        let (reply, _answer) = oneshot::channel();
        let queued = Instant::now();
        let job =
            Job { runner, request, deadline: queued + Duration::from_mins(1), queued, cost: Duration::ZERO, reply };
        shared.lock().lanes.push(lane, job, Duration::ZERO);
        assert!(matches!(shared.next(), Some(Work::Turn(..))));
        assert!(matches!(shared.next(), Some(Work::Help(..))));
        assert!(shared.next().is_none());
    }
}
