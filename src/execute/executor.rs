//! Decides where a request runs, and whether it is admitted.

use super::lanes::Lanes;
use super::pool::{Job, LaneKey, Pool};
use super::runner::{RunOutput, Runner};
use super::turn;
use super::watchdog::can_replace_threads;
use crate::model::{Checked, Code, Failure};
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
    /// Threads that run what is not run at once.
    pub workers: NonZeroUsize,
    /// Cores that the whole process may use.
    pub cores: NonZeroUsize,
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
    /// `OVERLOADED`: too many requests wait, or the wait would take more than half of the time left. `DEADLINE_EXCEEDED`: no time is
    /// left. `NOT_READY`: too many runs of this version did not end.
    pub fn admit(&self, runner: &Arc<Runner>, elements: usize, deadline: Instant) -> Result<(), Failure> {
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
        // The message is built after the lock is released.
        let fits = self.fits(&self.pool.lock().lanes, LaneKey::of(runner), left);
        fits.map_err(Refusal::failure)
    }

    /// Whether a request that has this much time left may wait in its lane.
    fn fits(&self, lanes: &Lanes<LaneKey, Job>, key: LaneKey, left: Duration) -> Result<(), Refusal> {
        if lanes.is_full(key) {
            return Err(Refusal::Full { capacity: lanes.capacity() });
        }
        let workers = u32::try_from(self.config.workers.get()).unwrap_or(u32::MAX);
        let wait = lanes.work_ahead(key) / workers;
        // A 503 now is better than a 504 later, as another replica may have time. An empty lane always takes a request.
        if wait <= left / 2 {
            return Ok(());
        }
        Err(Refusal::Slow { wait, left })
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
        let cost = runner.expected_share(&request);
        self.enqueue(Job { runner: Arc::clone(runner), request, deadline, queued, cost, reply })?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Err(_) => Err(expired()),
            // A worker answers every job that it takes, so the sender is dropped only by a panic.
            Ok(Err(_)) => Err(Failure::new(Code::Internal, "the gateway failed while it ran this request")
                .with_internal("the worker that ran this request panicked")),
        }
    }

    fn enqueue(&self, job: Job) -> Result<(), Failure> {
        let (key, cost) = (LaneKey::of(&job.runner), job.cost);
        let left = job.deadline.saturating_duration_since(job.queued);
        let mut state = self.pool.lock();
        let fits = self.fits(&state.lanes, key, left);
        if fits.is_ok() {
            state.lanes.push(key, job, cost);
            self.pool.publish_waiting(&state);
        }
        drop(state);
        fits.map_err(Refusal::failure)?;
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
    Full { capacity: usize },
    Slow { wait: Duration, left: Duration },
}

impl Refusal {
    fn failure(self) -> Failure {
        let reason = match self {
            Refusal::Full { capacity } => format!("{capacity} requests of this version are waiting already"),
            Refusal::Slow { wait, left } => {
                format!("the expected wait is {} ms, and {} ms are left", wait.as_millis(), left.as_millis())
            }
        };
        Failure::new(Code::Overloaded, format!("{reason}; try again shortly"))
    }
}

pub(super) fn expired() -> Failure {
    Failure::new(Code::DeadlineExceeded, "the deadline passed before the answer was ready")
}
