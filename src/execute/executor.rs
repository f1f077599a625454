//! Where a run happens.

use super::runner::{Ran, Runner};
use crate::model::{Checked, Code, Failure};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How runs are placed.
#[derive(Debug, Clone)]
pub struct Config {
    /// A run expected to take no longer than this happens at once on the thread that read the request. The default, 200 µs, is
    /// some ten times what a hand-off to a worker and back costs, and short enough that a connection on the same thread waits
    /// for it unnoticed.
    pub inline_below: Duration,
    /// Requests that may wait for a worker; one more is refused with `OVERLOADED`.
    pub queue: usize,
    /// Threads that run what is not run at once.
    pub workers: NonZeroUsize,
}

struct Job {
    runner: Arc<Runner>,
    request: Arc<Checked>,
    deadline: Instant,
    queued: Instant,
    /// Closed when the caller went away.
    reply: oneshot::Sender<Result<Ran, Failure>>,
}

/// The workers and the queue in front of them. Dropping it ends the workers when the queue is empty.
#[derive(Debug)]
pub struct Executor {
    inline_below: Duration,
    /// Bounded by [`Config::queue`]; a request that finds it full is refused.
    jobs: Sender<Job>,
}

impl Executor {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(config: &Config) -> std::io::Result<Executor> {
        let (jobs, waiting) = bounded::<Job>(config.queue.max(1));
        for i in 0..config.workers.get() {
            let waiting = waiting.clone();
            std::thread::Builder::new().name(format!("infer-{i}")).spawn(move || work(&waiting))?;
        }
        Ok(Executor { inline_below: config.inline_below, jobs })
    }

    /// Requests waiting for a worker now.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.jobs.len()
    }

    /// Runs a request, here or on a worker, and gives its answer.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` when the deadline passed before the run ended, `OVERLOADED` when the queue is full, and what
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
        if runner.expected_cost(&request).is_some_and(|cost| cost <= self.inline_below) {
            return runner.run(&request);
        }
        let (reply, answer) = oneshot::channel();
        let job = Job { runner: Arc::clone(runner), request, deadline, queued, reply };
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Failure::new(
                Code::Overloaded,
                format!("{} requests are waiting for a worker already; try again shortly", self.jobs.len()),
            ),
            TrySendError::Disconnected(_) => Failure::new(Code::Draining, "the server is stopping"),
        })?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            // Waited too long; or the worker dropped the job unanswered, which it does only when it is expired.
            Err(_) | Ok(Err(_)) => Err(expired()),
        }
    }
}

fn expired() -> Failure {
    Failure::new(Code::DeadlineExceeded, "the deadline passed before the answer was ready")
}

fn work(waiting: &Receiver<Job>) {
    while let Ok(Job { runner, request, deadline, queued, reply }) = waiting.recv() {
        let now = Instant::now();
        if reply.is_closed() || now >= deadline {
            continue;
        }
        let queue = now - queued;
        let result = runner.run(&request).map(|ran| Ran { queue, ..ran });
        drop(request);
        drop(runner);
        // An error means the caller went away while this ran; there is nobody to tell.
        let _ = reply.send(result);
    }
}
