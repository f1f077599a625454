//! One loaded version that can run on any thread.

use super::at_once::{self, AtOnce};
use super::batch::Batching;
use super::cost::CostCurve;
use super::counters::RunCounters;
use super::watchdog::{Limit, MAX_LOST_RUNS, RunWatch, watched};
use crate::backend::{GraphFacts, Model, RunError, Session};
use crate::machine;
use crate::marks::{self, Kind, VersionMark};
use crate::model::{Answer, Checked, Code, Dim, Failure, Priority, Signature, panic_message};
use crate::tensor::{Data, Shape, Tensor};
use crossbeam_queue::ArrayQueue;
use smallvec::SmallVec;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Requests that ran together, this one included.
    pub requests: usize,
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
    at_once: AtOnce,
    watch: Arc<RunWatch>,
    /// How long a further request would wait for a worker, in nanoseconds, by priority. Written at each change of the version's lanes.
    waits: [AtomicU64; Priority::ALL.len()],
    /// Names the version in the report of a crash.
    mark: VersionMark,
}

/// How a run of several requests on the thread that read them ended.
#[derive(Debug)]
pub(super) enum TogetherAtOnce {
    /// An output for each request.
    Ran(Vec<RunOutput>),
    /// It was interrupted. Workers should run the requests.
    TookTooLong,
    /// It failed for any reason. Each request may succeed alone.
    Failed,
}

/// Why a run gave no output.
#[derive(Debug)]
pub(super) enum NoOutput {
    /// It was interrupted at its limit, or the limit had passed before.
    Interrupted,
    Failed(Failure),
}

impl NoOutput {
    /// For callers that do not repeat an interrupted run.
    pub(super) fn failure(self) -> Failure {
        match self {
            NoOutput::Interrupted => {
                Failure::new(Code::DeadlineExceeded, "the run was ended: it took longer than the time it had")
            }
            NoOutput::Failed(failure) => failure,
        }
    }
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
            at_once: AtOnce::new(model.signature(), model.graph()),
            watch: RunWatch::new(),
            waits: Default::default(),
            model,
            idle: ArrayQueue::new(Self::MAX_IDLE_SESSIONS),
            cost: CostCurve::new(),
            batching: Batching::Off { why: "it was not verified that rows do not interact".to_owned() },
            placement: Placement::default(),
            counters: RunCounters::default(),
            mark: VersionMark::default(),
        }
    }

    /// Replaces the declared signature.
    #[must_use]
    pub fn with_signature(self, signature: Signature) -> Runner {
        Runner { at_once: AtOnce::new(&signature, self.model.graph()), signature, ..self }
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

    /// Limits the bytes of the outputs of a run. More is refused with `BODY_TOO_LARGE`.
    #[must_use]
    pub fn with_max_answer(self, bytes: usize) -> Runner {
        self.model.limit_outputs(bytes);
        self
    }

    /// Sets the mark of threads that run it.
    #[must_use]
    pub fn with_mark(self, mark: VersionMark) -> Runner {
        Runner { mark, ..self }
    }

    #[must_use]
    pub fn mark(&self) -> &VersionMark {
        &self.mark
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

    /// Whether a request with this many input elements may run on the thread that read it: as `model.toml` says, else where its expected
    /// cost is at most `below`. Never before a run of about this size was measured, and never where the version is known to be far slower
    /// at times ([`Runner::never_at_once`]).
    #[must_use]
    pub fn may_run_at_once(&self, elements: usize, below: Duration) -> bool {
        match self.placement.at_once {
            Some(false) => false,
            Some(true) => self.at_once.never().is_none(),
            None => {
                self.cost.estimate_near(elements).is_some_and(|cost| cost <= below) && self.at_once.allows_version()
            }
        }
    }

    /// Like [`Runner::may_run_at_once`], for a request whose shape and text are known.
    pub(super) fn runs_at_once(&self, request: &Checked, below: Duration) -> bool {
        // What an optional input makes of a run was not measured, and the graph was analysed without it.
        request.optional().is_empty()
            && self.may_run_at_once(request.elements(), below)
            && (self.placement.at_once == Some(true) || self.at_once.allows_request(request))
    }

    /// Whether a request that runs at once may run together with others that are ready in the same turn.
    pub(super) fn gathers(&self, request: &Checked) -> bool {
        self.batching.is_on() && request.rows().is_some() && self.at_once.allows_more_rows()
    }

    /// Why no request of this version runs on the thread that read it, whatever its cost and `model.toml` say. `None` where they may.
    #[must_use]
    pub fn never_at_once(&self) -> Option<&str> {
        self.at_once.never()
    }

    /// Identifies this version in [`super::StuckThread`].
    #[must_use]
    pub fn run_id(&self) -> u64 {
        self.watch.id()
    }

    /// How long a further request would wait for a worker at most, as of the last change of this version's lanes. Zero where none waits.
    #[must_use]
    pub fn wait(&self, priority: Priority) -> Duration {
        Duration::from_nanos(self.waits[priority as usize].load(Ordering::Relaxed))
    }

    pub(super) fn set_wait(&self, priority: Priority, wait: Duration) {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.waits[priority as usize].store(nanos, Ordering::Relaxed);
    }

    /// Runs that were interrupted, and runs that ignored their interrupt.
    #[must_use]
    pub fn ended_runs(&self) -> (u64, u64) {
        (self.watch.interrupted(), self.watch.lost())
    }

    /// Why this version is refused: too many of its runs did not end. `None` where it is not.
    #[must_use]
    pub fn stuck(&self) -> Option<String> {
        self.watch.is_stuck().then(|| {
            format!("{MAX_LOST_RUNS} runs did not end although they were interrupted, and each takes a thread")
        })
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

    /// The failure of every request while [`Runner::stuck`].
    pub(super) fn refusal(&self) -> Option<Failure> {
        let why = self.stuck()?;
        Some(Failure::new(Code::NotReady, format!("this version is set aside: {why}")))
    }

    /// Runs a request on this thread. The request must have been checked against [`Runner::signature`].
    ///
    /// # Errors
    /// `INVALID_TENSOR` where the engine does not accept these values, `ENGINE_FAILED` where it failed or panicked, `NOT_READY` where
    /// too many runs of the version did not end.
    ///
    /// Both as of the limit of [`super::limit_runs`]: `DEADLINE_EXCEEDED` where it ended the run.
    pub fn run(&self, request: &Checked) -> Result<RunOutput, Failure> {
        self.run_within(request, Limit::default()).map_err(NoOutput::failure)
    }

    /// Like [`Runner::run`], with a limit.
    pub(super) fn run_within(&self, request: &Checked, limit: Limit<'_>) -> Result<RunOutput, NoOutput> {
        let output = self.run_measured(request, limit)?;
        self.counters.single();
        Ok(output)
    }

    /// Runs a request on the thread that read it. `None` where it took too long there and a worker should run it.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub(super) fn run_at_once(
        &self,
        request: &Checked,
        now: Instant,
        deadline: Instant,
    ) -> Option<Result<RunOutput, Failure>> {
        let expected = self.placement.at_once.and_then(|_| self.cost.estimate(request.elements()));
        let limit = Limit { until: Some(deadline.min(now + at_once::longest(expected))), ..Limit::default() };
        at_once::before_run(now);
        match self.try_run(request, limit) {
            Ok(output) => {
                let elements = request.elements();
                // Compared with the cost of the runs before it, so before it is learned.
                let cost = self.at_once.ran(output.infer, self.cost.estimate_near(elements));
                self.cost.learn(elements, cost);
                self.counters.single();
                Some(Ok(output))
            }
            Err(NoOutput::Interrupted) => {
                self.at_once.interrupted(now.elapsed());
                None
            }
            Err(NoOutput::Failed(failure)) => Some(Err(failure)),
        }
    }

    /// Runs requests that were read in one turn of this thread as one batch, and gives each the rows of its own answer. It is ended at
    /// `latest`, the last of their deadlines, and where it takes too long here.
    pub(super) fn run_together_at_once(&self, requests: &[&Checked], now: Instant, latest: Instant) -> TogetherAtOnce {
        let Some(batch) = Checked::stack(requests) else { return TogetherAtOnce::Failed };
        // The text of all may be too long.
        if self.placement.at_once.is_none() && !self.at_once.allows_request(&batch) {
            return TogetherAtOnce::Failed;
        }
        let elements = batch.elements();
        let before = self.cost.estimate_near(elements);
        let until = latest.min(now + at_once::longest(self.placement.at_once.and(before)));
        at_once::before_run(now);
        let output = match self.try_run(&batch, Limit { until: Some(until), ..Limit::default() }) {
            Ok(output) => output,
            Err(NoOutput::Interrupted) => {
                self.at_once.interrupted(now.elapsed());
                return TogetherAtOnce::TookTooLong;
            }
            Err(NoOutput::Failed(_)) => {
                self.counters.batch_failed();
                return TogetherAtOnce::Failed;
            }
        };
        self.cost.learn(elements, self.at_once.ran(output.infer, before));
        if let Some(outputs) = self.divide(output, requests) {
            self.counters.gathered(requests.len());
            TogetherAtOnce::Ran(outputs)
        } else {
            self.counters.batch_failed();
            TogetherAtOnce::Failed
        }
    }

    /// Gives each request of a batch its rows. `None` where an output has not as many.
    fn divide(&self, output: RunOutput, requests: &[&Checked]) -> Option<Vec<RunOutput>> {
        let RunOutput { answer, infer, batch_rows, .. } = output;
        let rows: SmallVec<[usize; 32]> = requests.iter().map(|request| request.rows()).collect::<Option<_>>()?;
        let answers = answer.split_rows(&rows)?;
        self.counters.batched(batch_rows);
        let output = |answer| RunOutput {
            answer,
            queue: Duration::ZERO,
            infer,
            batch_rows,
            requests: requests.len(),
            counts: true,
        };
        Some(answers.into_iter().map(output).collect())
    }

    /// Runs a request on a worker, and learns from it.
    fn run_measured(&self, request: &Checked, limit: Limit<'_>) -> Result<RunOutput, NoOutput> {
        if !request.optional().is_empty() {
            return self.try_run(request, limit);
        }
        let suspected = self.at_once.is_suspected().then(machine::thread_time);
        let ran = self.try_run(request, limit);
        if let Some(before) = suspected {
            let used = machine::thread_time().saturating_sub(before);
            self.at_once.used(used, self.cost.estimate_near(request.elements()));
        }
        let output = ran?;
        self.cost.learn(request.elements(), output.infer);
        self.at_once.measured(request, output.infer);
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
    pub(super) fn run_together(&self, requests: &[&Checked], limit: Limit<'_>) -> Option<Vec<RunOutput>> {
        let outputs = self.try_together(requests, limit);
        if outputs.is_none() {
            self.counters.batch_failed();
        }
        outputs
    }

    fn try_together(&self, requests: &[&Checked], limit: Limit<'_>) -> Option<Vec<RunOutput>> {
        let batch = Checked::stack(requests)?;
        let output = self.run_measured(&batch, limit).ok()?;
        self.divide(output, requests)
    }

    /// Runs a part of a split request on this thread. `None` where that failed for any reason, as the whole request is run then.
    #[must_use]
    pub(super) fn run_part(&self, part: &Checked, limit: Limit<'_>) -> Option<Answer> {
        self.run_measured(part, limit).ok().map(|output| output.answer)
    }

    /// Like [`Runner::run`], without measuring the cost. For threads of low priority, whose run times other threads distort.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn run_unmeasured(&self, request: &Checked) -> Result<RunOutput, Failure> {
        self.try_run(request, Limit::default()).map_err(NoOutput::failure)
    }

    fn try_run(&self, request: &Checked, limit: Limit<'_>) -> Result<RunOutput, NoOutput> {
        if let Some(failure) = self.refusal() {
            return Err(NoOutput::Failed(failure));
        }
        if let Some(answer) = self.answer_without_rows(request) {
            return Ok(RunOutput {
                answer,
                queue: Duration::ZERO,
                infer: Duration::ZERO,
                batch_rows: 0,
                requests: 1,
                counts: false,
            });
        }
        self.model.empty_inputs().check(&self.signature, request).map_err(NoOutput::Failed)?;
        let mut session = self.idle.pop();
        // Unwind safety: a session that a panic passed through is dropped below. The shared model is only read.
        let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<_, RunError> {
            let session = match &mut session {
                Some(session) => session,
                none => {
                    let _inside = self.mark.enter(Kind::Session);
                    none.insert(Arc::clone(&self.model).session()?)
                }
            };
            let _kept = marks::keep_inputs(self.model.signature(), request);
            let _inside = self.mark.enter(Kind::Run);
            let started = Instant::now();
            let ran = watched(&self.watch, limit, started, |interrupt| session.run(request, interrupt));
            let tensors = ran.unwrap_or(Err(RunError::Interrupted))?;
            Ok((tensors, started.elapsed()))
        }));
        let (tensors, infer) = match outcome {
            Ok(outcome) => {
                if let Some(session) = session {
                    // It is full only when more threads ran at once than sessions are kept. This session is then dropped.
                    let _ = self.idle.push(session);
                }
                outcome.map_err(no_output)?
            }
            Err(panic) => {
                let text = panic_message(&*panic);
                // A session in this state may panic again while it is dropped.
                let _ = catch_unwind(AssertUnwindSafe(move || drop(session)));
                let failure = Failure::new(Code::EngineFailed, "the engine panicked on this request")
                    .with_internal(format!("panic in {}: {text}", self.engine()));
                return Err(NoOutput::Failed(failure));
            }
        };
        let (wanted, got) = (request.wanted().len(), tensors.len());
        if wanted != got {
            let failure = Failure::new(Code::EngineFailed, "the engine failed on this request")
                .with_internal(format!("{} returned {got} outputs, expected {wanted}", self.engine()));
            return Err(NoOutput::Failed(failure));
        }
        let answer = Answer::named(self.signature(), request.wanted(), tensors);
        let batch_rows = request.rows().unwrap_or(1);
        Ok(RunOutput { answer, queue: Duration::ZERO, infer, batch_rows, requests: 1, counts: true })
    }
}

/// An answer has more bytes than allowed.
#[cold]
#[must_use]
pub fn answer_too_large(bytes: usize, most: usize) -> Failure {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let message = format!(
        "the answer has {:.1} MiB, and at most {:.1} MiB are allowed ([server] max_answer, or [limits] max_answer in model.toml): request \
         fewer rows or outputs",
        mib(bytes),
        mib(most)
    );
    Failure::new(Code::BodyTooLarge, message)
}

fn no_output(error: RunError) -> NoOutput {
    NoOutput::Failed(match error {
        RunError::Interrupted => return NoOutput::Interrupted,
        RunError::Refused(message) => Failure::new(Code::InvalidTensor, message),
        RunError::OutputsTooLarge { bytes, most } => answer_too_large(bytes, most),
        RunError::Failed { message, internal } => Failure::new(Code::EngineFailed, message).with_internal(internal),
    })
}
