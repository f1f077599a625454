//! One loaded version, ready to run on any thread.

use super::cost::CostCurve;
use crate::backend::{Model, RunError, Session};
use crate::model::{Answer, Checked, Code, Failure, Signature};
use crossbeam_queue::ArrayQueue;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a run gave, and what it took.
#[derive(Debug)]
pub struct Ran {
    pub answer: Answer,
    /// Waiting for a worker; zero when run at once.
    pub queue: Duration,
    /// Inside the engine.
    pub infer: Duration,
}

/// A loaded version and the sessions that run it.
pub struct Runner {
    model: Arc<dyn Model>,
    /// Sessions nobody is using. When it is empty a new one is made; when it is full one too many is dropped.
    idle: ArrayQueue<Box<dyn Session>>,
    cost: CostCurve,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Runner {
    /// How many idle sessions are kept; more than run at once on the machines this is for.
    const IDLE_SESSIONS: usize = 64;

    #[must_use]
    pub fn new(model: Arc<dyn Model>) -> Runner {
        Runner { model, idle: ArrayQueue::new(Self::IDLE_SESSIONS), cost: CostCurve::new() }
    }

    #[must_use]
    pub fn signature(&self) -> &Signature {
        self.model.signature()
    }

    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.model.engine()
    }

    /// What this request should take to run; `None` before the first run.
    #[must_use]
    pub fn expected_cost(&self, request: &Checked) -> Option<Duration> {
        self.cost.expect(elements(request))
    }

    /// Runs on this thread, now. The request must have been checked against [`Runner::signature`].
    ///
    /// # Errors
    /// `INVALID_TENSOR` where the engine cannot take these values, `ENGINE_FAILED` where it failed or panicked.
    pub fn run(&self, request: &Checked) -> Result<Ran, Failure> {
        let ran = self.run_aside(request)?;
        self.cost.learn(elements(request), ran.infer);
        Ok(ran)
    }

    /// The same, on a thread whose times say nothing of what a run costs: a low-priority one, which others interrupt.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn run_aside(&self, request: &Checked) -> Result<Ran, Failure> {
        let mut session = match self.idle.pop() {
            Some(session) => session,
            None => Arc::clone(&self.model).session().map_err(failure)?,
        };
        let started = Instant::now();
        // Unwind safety: a session a panic passed through is dropped below and never run again; the shared model is only read.
        let outcome = catch_unwind(AssertUnwindSafe(|| session.run(request)));
        let infer = started.elapsed();
        let tensors = match outcome {
            Ok(outcome) => {
                // Full only when more threads ran at once than sessions are kept: then this one is dropped.
                let _ = self.idle.push(session);
                outcome.map_err(failure)?
            }
            Err(panic) => {
                let words = panic
                    .downcast_ref::<&str>()
                    .map(|s| (*s).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                return Err(Failure::new(Code::EngineFailed, "the engine panicked on this request")
                    .with_internal(format!("panic in {}: {words}", self.engine())));
            }
        };
        let answer = Answer::named(self.signature(), request.wanted(), tensors);
        Ok(Ran { answer, queue: Duration::ZERO, infer })
    }
}

fn elements(request: &Checked) -> usize {
    request.inputs().iter().map(|t| t.data().len()).sum()
}

fn failure(error: RunError) -> Failure {
    match error {
        RunError::Refused(words) => Failure::new(Code::InvalidTensor, words),
        RunError::Failed { message, internal } => Failure::new(Code::EngineFailed, message).with_internal(internal),
    }
}
