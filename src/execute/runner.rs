//! One loaded version that can run on any thread.

use super::batch::Batching;
use super::cost::CostCurve;
use super::counters::RunCounters;
use crate::backend::{GraphFacts, Model, RunError, Session};
use crate::model::{Answer, Checked, Code, Dim, Failure, Signature, panic_message};
use crate::tensor::{Data, Shape, Tensor};
use crossbeam_queue::ArrayQueue;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The answer to one request, and how it was run.
#[derive(Debug)]
pub struct RunOutput {
    pub answer: Answer,
    /// The wait for a worker; zero where the request ran at once.
    pub queue: Duration,
    /// The time inside the engine. For a batch, that of the whole batch. For a split request, from splitting to joining.
    pub infer: Duration,
    /// Rows that ran together, this request's own included; 1 where there are no rows. For a split request, the rows of its largest
    /// part.
    pub batch_rows: usize,
    /// Whether this output counts the run in metrics: true for one of the requests that ran together.
    pub counts: bool,
}

/// After this many requests that failed as a split run and succeeded as one, the version's requests are not split any more: something
/// in the model needs the rows together.
const MAX_FAILED_SPLITS: u64 = 3;

/// A loaded version and the sessions that run it.
pub struct Runner {
    model: Arc<dyn Model>,
    /// As the model declares it, or as trial runs corrected it.
    signature: Signature,
    /// Sessions that are not in use. When it is empty, a new session is made; when it is full, a session is dropped.
    idle: ArrayQueue<Box<dyn Session>>,
    cost: CostCurve,
    batching: Batching,
    placement: Placement,
    counters: RunCounters,
}

/// Where `model.toml` says that runs of a version happen. `None`: the measured cost decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placement {
    /// At once, on the thread that read the request (true), or on a worker (false).
    pub at_once: Option<bool>,
    /// Split across all idle workers (true), or never split (false).
    pub spread: Option<bool>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Runner {
    /// Idle sessions that are kept. More than this run at once only on machines with more cores.
    const MAX_IDLE_SESSIONS: usize = 64;

    /// A runner that runs each request alone, until [`Runner::with_batching`] changes that.
    #[must_use]
    pub fn new(model: Arc<dyn Model>) -> Runner {
        Runner {
            signature: model.signature().clone(),
            model,
            idle: ArrayQueue::new(Self::MAX_IDLE_SESSIONS),
            cost: CostCurve::new(),
            batching: Batching::Off { why: "it was not verified that rows do not interact".to_owned() },
            placement: Placement::default(),
            counters: RunCounters::default(),
        }
    }

    /// Replaces the declared signature.
    #[must_use]
    pub fn with_signature(self, signature: Signature) -> Runner {
        Runner { signature, ..self }
    }

    /// Sets whether requests may run together.
    #[must_use]
    pub fn with_batching(self, batching: Batching) -> Runner {
        Runner { batching, ..self }
    }

    /// Sets where runs happen.
    #[must_use]
    pub fn with_placement(self, placement: Placement) -> Runner {
        Runner { placement, ..self }
    }

    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    #[must_use]
    pub fn batching(&self) -> &Batching {
        &self.batching
    }

    /// The measured cost of runs, by size.
    #[must_use]
    pub fn cost(&self) -> &CostCurve {
        &self.cost
    }

    #[must_use]
    pub fn counters(&self) -> &RunCounters {
        &self.counters
    }

    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// What the graph says about runs.
    #[must_use]
    pub fn graph(&self) -> &GraphFacts {
        self.model.graph()
    }

    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.model.engine()
    }

    /// Whether a request with this many input elements runs on the thread that read it: as `model.toml` says, else where its expected
    /// cost is at most `below`. Never before the first run was measured.
    #[must_use]
    pub fn runs_at_once(&self, elements: usize, below: Duration) -> bool {
        self.placement.at_once.unwrap_or_else(|| self.cost.estimate(elements).is_some_and(|cost| cost <= below))
    }

    /// The worker time that a request adds to the queue: its share of a batch of the size that is worth running.
    #[must_use]
    pub(super) fn expected_share(&self, request: &Checked) -> Duration {
        let elements = request.elements();
        let of_batch = match (&self.batching, request.rows()) {
            (Batching::On { .. }, Some(rows)) => self.cost.batch_elements(elements / rows.max(1)).max(elements),
            _ => elements,
        };
        let cost = self.cost.estimate(of_batch).unwrap_or_default();
        if of_batch > elements { cost.mul_f64(elements as f64 / of_batch as f64) } else { cost }
    }

    /// Whether a request may be split: its rows may run apart, `model.toml` does not forbid it, and splitting has not failed too often.
    #[must_use]
    pub(super) fn may_split(&self, request: &Checked) -> bool {
        let allowed = self.placement.spread.unwrap_or_else(|| self.counters.failed_splits() < MAX_FAILED_SPLITS);
        allowed && request.rows() > Some(1) && self.batching.is_on()
    }

    /// The number of parts to split a request into: at most `most`, each with an expected cost of at least `least`. Where `model.toml`
    /// asks for splitting, `most`.
    #[must_use]
    pub(super) fn parts(&self, request: &Checked, most: usize, least: Duration) -> usize {
        let most = most.min(request.rows().unwrap_or(1));
        if self.placement.spread == Some(true) { most } else { self.cost.parts(request.elements(), most, least) }
    }

    /// Runs a request on this thread. The request must have been checked against [`Runner::signature`].
    ///
    /// # Errors
    /// `INVALID_TENSOR` where the engine does not accept these values, `ENGINE_FAILED` where it failed or panicked.
    pub fn run(&self, request: &Checked) -> Result<RunOutput, Failure> {
        let output = self.run_unmeasured(request)?;
        self.cost.learn(request.elements(), output.infer);
        self.counters.single();
        Ok(output)
    }

    /// The answer to a request of zero rows: outputs of zero rows, without the engine. Some kernels of ONNX Runtime end the process on empty
    /// inputs (LSTM, GRU, `FeatureVectorizer`). `None` where rows may interact, as a sum over no rows has a value, and where an output has
    /// another free dimension, whose extent only a run can tell.
    fn answer_without_rows(&self, request: &Checked) -> Option<Answer> {
        if request.rows() != Some(0) || !self.batching.is_on() {
            return None;
        }
        let empty = |output: &usize| {
            let spec = &self.signature().outputs()[*output];
            let rest = spec.dims.as_ref()?.iter().skip(1).map(|dim| match dim {
                Dim::Fixed(extent) => Some(*extent),
                Dim::Free(_) => None,
            });
            let shape: Vec<usize> = std::iter::once(Some(0)).chain(rest).collect::<Option<_>>()?;
            Tensor::new(Shape::new(&shape), Data::zeros(spec.datatype, 0)).ok()
        };
        let tensors = request.wanted().iter().map(empty).collect::<Option<Vec<Tensor>>>()?;
        Some(Answer::named(self.signature(), request.wanted(), tensors))
    }

    /// Runs requests as one batch and gives each the rows of its own answer. `None` where that failed for any reason, as each request
    /// may succeed alone.
    #[must_use]
    pub(super) fn run_together(&self, requests: &[&Checked]) -> Option<Vec<RunOutput>> {
        let outputs = self.try_together(requests);
        if outputs.is_none() {
            self.counters.batch_failed();
        }
        outputs
    }

    fn try_together(&self, requests: &[&Checked]) -> Option<Vec<RunOutput>> {
        let batch = Checked::stack(requests)?;
        let rows: Vec<usize> = requests.iter().map(|request| request.rows()).collect::<Option<_>>()?;
        let RunOutput { answer, infer, batch_rows, .. } = self.run_unmeasured(&batch).ok()?;
        let answers = answer.split_rows(&rows)?;
        self.cost.learn(batch.elements(), infer);
        self.counters.batched(batch_rows);
        let output = |answer| RunOutput { answer, queue: Duration::ZERO, infer, batch_rows, counts: true };
        Some(answers.into_iter().map(output).collect())
    }

    /// Runs a part of a split request on this thread. `None` where that failed for any reason, as the whole request is run then.
    #[must_use]
    pub(super) fn run_part(&self, part: &Checked) -> Option<Answer> {
        let output = self.run_unmeasured(part).ok()?;
        self.cost.learn(part.elements(), output.infer);
        Some(output.answer)
    }

    /// Like [`Runner::run`], without measuring the cost. For threads of low priority, whose run times other threads distort.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn run_unmeasured(&self, request: &Checked) -> Result<RunOutput, Failure> {
        if let Some(answer) = self.answer_without_rows(request) {
            return Ok(RunOutput {
                answer,
                queue: Duration::ZERO,
                infer: Duration::ZERO,
                batch_rows: 0,
                counts: false,
            });
        }
        let mut session = self.idle.pop();
        // Unwind safety: a session that a panic passed through is dropped below. The shared model is only read.
        let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<_, RunError> {
            let session = match &mut session {
                Some(session) => session,
                none => none.insert(Arc::clone(&self.model).session()?),
            };
            let started = Instant::now();
            let tensors = session.run(request)?;
            Ok((tensors, started.elapsed()))
        }));
        let (tensors, infer) = match outcome {
            Ok(outcome) => {
                if let Some(session) = session {
                    // It is full only when more threads ran at once than sessions are kept. This session is then dropped.
                    let _ = self.idle.push(session);
                }
                outcome.map_err(failure)?
            }
            Err(panic) => {
                let text = panic_message(&*panic);
                // A session in this state may panic again while it is dropped.
                let _ = catch_unwind(AssertUnwindSafe(move || drop(session)));
                return Err(Failure::new(Code::EngineFailed, "the engine panicked on this request")
                    .with_internal(format!("panic in {}: {text}", self.engine())));
            }
        };
        let (wanted, got) = (request.wanted().len(), tensors.len());
        if wanted != got {
            return Err(Failure::new(Code::EngineFailed, "the engine failed on this request")
                .with_internal(format!("{} returned {got} outputs, expected {wanted}", self.engine())));
        }
        let answer = Answer::named(self.signature(), request.wanted(), tensors);
        let batch_rows = request.rows().unwrap_or(1);
        Ok(RunOutput { answer, queue: Duration::ZERO, infer, batch_rows, counts: true })
    }
}

fn failure(error: RunError) -> Failure {
    match error {
        RunError::Refused(message) => Failure::new(Code::InvalidTensor, message),
        RunError::Failed { message, internal } => Failure::new(Code::EngineFailed, message).with_internal(internal),
    }
}
