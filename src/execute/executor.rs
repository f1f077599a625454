//! Decides where a request runs, and whether it is admitted.

use super::pool::{Job, LaneKey, Pool, State, give_up_place};
use super::queue::Slot;
use super::runner::{RunOutput, Runner};
use super::turn;
use super::watchdog::can_replace_threads;
use crate::model::{CallerId, Checked, Code, Failure, Priority, Requester};
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How runs are placed.
#[derive(Debug, Clone)]
pub struct Config {
    /// A run that is expected to take no longer than this happens at once on the thread that read the request. The default, 200 µs,
    /// is about ten times the cost of a hand-off to a worker and back. It is also short enough that other connections on the thread
    /// hardly wait.
    pub inline_below: Duration,
    /// Requests of one version that may wait for a worker. One more is refused with `OVERLOADED`.
    pub queue: usize,
    /// The longest expected wait of an interactive request, unless the request itself takes an eighth of it or more.
    pub max_wait: Duration,
    /// Threads that run what is not run at once.
    pub workers: NonZeroUsize,
    /// Cores that the whole process may use.
    pub cores: NonZeroUsize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            inline_below: Duration::from_micros(200),
            queue: 1024,
            max_wait: Duration::from_secs(1),
            workers: NonZeroUsize::MIN,
            cores: NonZeroUsize::MIN,
        }
    }
}

/// Places runs. Dropping it stops the workers when nothing waits any more.
#[derive(Debug)]
pub struct Executor {
    config: Config,
    pool: Arc<Pool>,
}

impl Executor {
    /// Starts the workers.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(config: &Config) -> std::io::Result<Executor> {
        let executor = Executor { config: config.clone(), pool: Arc::new(Pool::new(config)) };
        for _ in 0..config.workers.get() {
            executor.pool.start_worker()?;
        }
        executor.pool.watch();
        Ok(executor)
    }

    /// Requests that wait for a worker now.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.pool.waiting()
    }

    /// Whether a worker whose run does not end would be replaced. Where not, only a restart helps.
    #[must_use]
    pub fn can_replace_workers(&self) -> bool {
        can_replace_threads()
    }

    /// Workers that are idle now.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.pool.lock().idle.waiting()
    }

    /// Whether a request of this many elements, due by `deadline`, is taken. Called before the request is checked, so that a refusal
    /// costs little. A request that runs at once is never refused.
    ///
    /// # Errors
    /// `OVERLOADED`: too many requests wait, or the wait would be too long. `DEADLINE_EXCEEDED`: no time is left. `NOT_READY`: too many
    /// runs of this version did not end.
    pub fn admit(
        &self,
        runner: &Arc<Runner>,
        elements: usize,
        deadline: Instant,
        requester: Requester,
    ) -> Result<(), Failure> {
        if let Some(failure) = runner.refusal() {
            return Err(failure);
        }
        if self.queue_depth() == 0 || runner.may_run_at_once(elements, self.config.inline_below) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(expired());
        }
        let cost = runner.cost().estimate(elements).unwrap_or_default();
        let most = self.most_wait(left, cost, requester.priority);
        // The message is built after the lock is released.
        let key = LaneKey::of(runner, requester.priority);
        let fits = self.fits(&self.pool.lock(), key, requester.caller, most);
        fits.map_err(Refusal::failure)
    }

    /// Whether a request of which nothing is known but its version, its deadline and its priority would be refused, if its caller has the
    /// most work waiting. It takes no lock, and uses what the version's lane published last.
    ///
    /// # Errors
    /// `OVERLOADED`, as in [`Executor::admit`].
    pub fn would_fit(&self, runner: &Runner, deadline: Instant, priority: Priority) -> Result<(), Failure> {
        let wait = runner.wait(priority);
        if wait.is_zero() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // The size is not known: the request may be as expensive as any that was measured.
        let most = self.most_wait(left, runner.cost().largest(), priority);
        if wait <= most { Ok(()) } else { Err(Refusal::Slow { wait, most }.failure()) }
    }

    /// The longest wait with which a request is admitted. A 503 now is better than a 504 later, as another replica may have time. So a
    /// request may wait for half of the time that it has left. An interactive one is not to wait long whatever its deadline is, as
    /// many callers do not set any; where the runs themselves take long, a few of them may wait.
    fn most_wait(&self, left: Duration, cost: Duration, priority: Priority) -> Duration {
        let by_deadline = left / 2;
        match priority {
            Priority::Interactive => by_deadline.min(self.config.max_wait.max(cost.saturating_mul(8))),
            Priority::Batch => by_deadline,
        }
    }

    /// Whether a request of this caller may wait in its lane. An empty lane always takes a request.
    fn fits(&self, state: &State, key: LaneKey, caller: CallerId, most: Duration) -> Result<(), Refusal> {
        let wait = self.pool.shared_by_workers(state.lanes.work_ahead(key, caller));
        if state.lanes.is_full_for(key, caller) {
            return Err(Refusal::Full { capacity: state.lanes.capacity(), wait });
        }
        if wait <= most { Ok(()) } else { Err(Refusal::Slow { wait, most }) }
    }

    /// Makes this thread one that gathers requests: those that are ready in the same turn of its event loop run together, where their
    /// versions allow that. The future never ends. It is to be polled as a task of the thread's own, single-threaded runtime.
    pub fn end_turns(&self) -> impl Future<Output = Infallible> + Send + use<> {
        turn::end_turns(self.config.inline_below)
    }

    /// Runs a request on this thread or on a worker, and returns its answer. A run that takes too long on this thread is ended and repeated on
    /// a worker. There it is ended at the deadline, or when this future is dropped.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` when the deadline passed before the run ended, `OVERLOADED` as in [`Executor::admit`], `INTERNAL` when the
    /// worker panicked, and what [`Runner::run`] returns.
    pub async fn execute(
        &self,
        runner: &Arc<Runner>,
        request: Arc<Checked>,
        deadline: Instant,
        requester: Requester,
    ) -> Result<RunOutput, Failure> {
        let mut queued = Instant::now();
        if queued >= deadline {
            return Err(expired());
        }
        if runner.runs_at_once(&request, self.config.inline_below) {
            let ended = match turn::join(runner, &request, deadline) {
                Some(answer) => answer.await.unwrap_or_else(|_| Some(Err(turn::lost()))),
                None => runner.run_at_once(&request, queued, deadline),
            };
            if let Some(result) = ended {
                return result;
            }
            // It took too long here. A worker runs it again, if there is time.
            queued = Instant::now();
            if queued >= deadline {
                return Err(expired());
            }
        }
        let (reply, answer) = oneshot::channel();
        let slot = Slot::new(requester.caller, runner.expected_share(&request));
        let (runner, priority) = (Arc::clone(runner), requester.priority);
        self.enqueue(Job { runner, request, deadline, queued, priority, slot, reply }, requester.caller)?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Err(_) => Err(expired()),
            // A worker answers every job that it takes, so the sender is dropped only by a panic.
            Ok(Err(_)) => Err(Failure::new(Code::Internal, "the gateway failed while it ran this request")
                .with_internal("the worker that ran this request panicked")),
        }
    }

    fn enqueue(&self, job: Job, caller: CallerId) -> Result<(), Failure> {
        let priority = job.priority;
        let (key, runner) = (LaneKey::of(&job.runner, priority), Arc::clone(&job.runner));
        let left = job.deadline.saturating_duration_since(job.queued);
        let cost = runner.cost().estimate(job.request.elements()).unwrap_or_default();
        let most = self.most_wait(left, cost, priority);
        let mut state = self.pool.lock();
        let fits = self.fits(&state, key, caller, most);
        let mut displaced = None;
        if fits.is_ok() {
            displaced = state.lanes.push(key, job);
            self.pool.publish_waiting(&state);
            self.pool.publish_wait(&state, &runner, key);
        }
        drop(state);
        fits.map_err(Refusal::failure)?;
        if let Some(job) = displaced {
            give_up_place(job, runner.wait(priority));
        }
        self.pool.wake_worker();
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.pool.stop();
    }
}

/// Why a request may not wait in its lane.
enum Refusal {
    Full { capacity: usize, wait: Duration },
    Slow { wait: Duration, most: Duration },
}

impl Refusal {
    fn failure(self) -> Failure {
        let (reason, retry_after) = match self {
            // Some of the lane is worked off by then.
            Refusal::Full { capacity, wait } => {
                (format!("{capacity} requests of this version are waiting already"), wait / 2)
            }
            Refusal::Slow { wait, most } => {
                let (expected, limit) = (wait.as_millis(), most.as_millis());
                let words = format!("the expected wait is {expected} ms, and this request may wait {limit} ms");
                (words, wait.saturating_sub(most))
            }
        };
        Failure::new(Code::Overloaded, format!("{reason}; try again shortly")).with_retry_after(retry_after)
    }
}

pub(super) fn expired() -> Failure {
    Failure::new(Code::DeadlineExceeded, "the deadline passed before the answer was ready")
}
