//! One loaded version, ready to run on any thread.

use super::batch::Batching;
use super::cost::CostCurve;
use super::tally::Tally;
use crate::backend::{Model, RunError, Session};
use crate::model::{Answer, Checked, Code, Failure, Signature, panic_message};
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
    /// Inside the engine: of the whole run, where requests ran together; from cutting to joining, where several workers ran it.
    pub infer: Duration,
    /// Rows that ran together, this request's own among them; 1 where there are no rows. Fewer than its own where it was cut.
    pub batch_rows: usize,
    /// Whether this one counts the run: of those that ran together, one does.
    pub counts: bool,
}

/// A version that failed so often in parts where the whole went well stays whole: something in it needs its rows together.
const MOST_CUTS_IN_VAIN: u64 = 3;

/// A loaded version and the sessions that run it.
pub struct Runner {
    model: Arc<dyn Model>,
    /// Sessions nobody is using. When it is empty a new one is made; when it is full one too many is dropped.
    idle: ArrayQueue<Box<dyn Session>>,
    cost: CostCurve,
    batching: Batching,
    place: Place,
    tally: Tally,
}

/// Where runs of a version happen, where somebody said so; `None`s go by what they cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// At once, on the thread that read the request, or on a worker.
    pub at_once: Option<bool>,
    /// Never on several workers, or on as many as idle.
    pub spread: Option<bool>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Runner {
    /// How many idle sessions are kept; more than run at once on the machines this is for.
    const IDLE_SESSIONS: usize = 64;

    /// Runs each request alone until [`Runner::with_batching`] says otherwise.
    #[must_use]
    pub fn new(model: Arc<dyn Model>) -> Runner {
        let batching = Batching::Off { why: "it was not verified that rows do not interact".to_owned() };
        let idle = ArrayQueue::new(Self::IDLE_SESSIONS);
        Runner { model, idle, cost: CostCurve::new(), batching, place: Place::default(), tally: Tally::default() }
    }

    /// The same, with a verdict on whether requests may run together.
    #[must_use]
    pub fn with_batching(self, batching: Batching) -> Runner {
        Runner { batching, ..self }
    }

    /// The same, with where its runs happen said by somebody.
    #[must_use]
    pub fn with_place(self, place: Place) -> Runner {
        Runner { place, ..self }
    }

    /// Where its runs happen, where somebody said so.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    #[must_use]
    pub fn batching(&self) -> &Batching {
        &self.batching
    }

    /// What runs cost, by their size.
    #[must_use]
    pub fn cost(&self) -> &CostCurve {
        &self.cost
    }

    /// What became of its requests.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    #[must_use]
    pub fn signature(&self) -> &Signature {
        self.model.signature()
    }

    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.model.engine()
    }

    /// Whether a run of so many elements of all inputs happens on the thread that read it: as was said, else where it is short
    /// enough, and never before the first run.
    #[must_use]
    pub fn runs_at_once(&self, elements: usize, below: Duration) -> bool {
        self.place.at_once.unwrap_or_else(|| self.cost.expect(elements).is_some_and(|cost| cost <= below))
    }

    /// The time of a worker that this takes of others who wait: its share of a run of as many as are worth running together.
    #[must_use]
    pub fn expected_share(&self, request: &Checked) -> Duration {
        let elements = request.elements();
        let room = match (&self.batching, request.rows()) {
            (Batching::On { .. }, Some(rows)) => self.cost.room(elements / rows.max(1)).max(elements),
            _ => elements,
        };
        let whole = self.cost.expect(room).unwrap_or_default();
        if room > elements { whole.mul_f64(elements as f64 / room as f64) } else { whole }
    }

    /// Whether a request may be cut at all: it has rows, they may run apart, nobody said never, and it did not fail time and again where
    /// the whole went well.
    #[must_use]
    pub fn may_spread(&self, request: &Checked) -> bool {
        let wanted = self.place.spread.unwrap_or_else(|| self.tally.cuts_in_vain() < MOST_CUTS_IN_VAIN);
        wanted && request.rows() > Some(1) && self.batching.is_on()
    }

    /// In how many parts a request that may be cut is worth cutting, where at most `most` run at the same time and none should be
    /// shorter than `least`: as was said, else by what they cost.
    #[must_use]
    pub fn parts(&self, request: &Checked, most: usize, least: Duration) -> usize {
        let most = most.min(request.rows().unwrap_or(1));
        if self.place.spread == Some(true) { most } else { self.cost.parts(request.elements(), most, least) }
    }

    /// Runs on this thread, now. The request must have been checked against [`Runner::signature`].
    ///
    /// # Errors
    /// `INVALID_TENSOR` where the engine cannot take these values, `ENGINE_FAILED` where it failed or panicked.
    pub fn run(&self, request: &Checked) -> Result<Ran, Failure> {
        let ran = self.run_aside(request)?;
        self.cost.learn(request.elements(), ran.infer);
        self.tally.alone();
        Ok(ran)
    }

    /// Runs requests that stack as one, and gives each its own rows of the answer. `None` where that failed, for whatever reason:
    /// each alone may do better.
    #[must_use]
    pub fn run_together(&self, requests: &[&Checked]) -> Option<Vec<Ran>> {
        let ran = self.try_together(requests);
        if ran.is_none() {
            self.tally.taken_apart();
        }
        ran
    }

    fn try_together(&self, requests: &[&Checked]) -> Option<Vec<Ran>> {
        let whole = Checked::stack(requests)?;
        let rows: Vec<usize> = requests.iter().map(|request| request.rows()).collect::<Option<_>>()?;
        let Ran { answer, infer, batch_rows, .. } = self.run_aside(&whole).ok()?;
        let answers = answer.split_rows(&rows)?;
        self.cost.learn(whole.elements(), infer);
        self.tally.together(batch_rows);
        let each = |answer| Ran { answer, queue: Duration::ZERO, infer, batch_rows, counts: true };
        Some(answers.into_iter().map(each).collect())
    }

    /// Runs some rows of a request on this thread. `None` where that failed, for whatever reason: the whole says why.
    #[must_use]
    pub fn run_part(&self, part: &Checked) -> Option<Answer> {
        let ran = self.run_aside(part).ok()?;
        self.cost.learn(part.elements(), ran.infer);
        Some(ran.answer)
    }

    /// As [`Runner::run`], on a thread whose times say nothing of what a run costs: a low-priority one, which others interrupt.
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
                let words = panic_message(&*panic);
                return Err(Failure::new(Code::EngineFailed, "the engine panicked on this request")
                    .with_internal(format!("panic in {}: {words}", self.engine())));
            }
        };
        let answer = Answer::named(self.signature(), request.wanted(), tensors);
        let batch_rows = request.rows().unwrap_or(1);
        Ok(Ran { answer, queue: Duration::ZERO, infer, batch_rows, counts: true })
    }
}

fn failure(error: RunError) -> Failure {
    match error {
        RunError::Refused(words) => Failure::new(Code::InvalidTensor, words),
        RunError::Failed { message, internal } => Failure::new(Code::EngineFailed, message).with_internal(internal),
    }
}
