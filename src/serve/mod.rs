//! serve: the life of one request.
//!
//! - [`Gateway::open`] routes a request on a snapshot and returns an [`ActiveRequest`], which keeps the version that answers loaded.
//!   A request takes one snapshot ([`Gateway::snapshot`]), and all that it reads comes from that one.
//! - [`Gateway::infer`] checks the request against that version's signature and runs it.
//! - A version whose engine fails again and again is closed by its breaker; the document's fallback answers in its place, or 503.
//! - Every request is counted and recorded once: by [`Gateway::end`], or, if it is dropped before, as one whose client went away.
//! - A request waits only for its own inference. Copies for shadows ([`ShadowCopies`]) are offered after the answer is written.
//!
//! Uses: registry (reader), execute, route, record (offers), shadow (offers), model, telemetry.
//!
//! Invariant: no bytes, no status codes, no knowledge of how versions come and go, no panic on a request.
//!
//! To add a step to every request: a line in [`Gateway::infer`].

#[cfg(test)]
mod tests;

pub use crate::execute::RunOutput;
use crate::execute::{Executor, answer_too_large};
use crate::model::{
    Checked, Code, Failure, Feedback, InferenceRequest, Parameters, Priority, RequestId, Requester, Role, Signature,
};
use crate::record::{self, Log, Ticket};
use crate::registry::{
    Admission, AfterFailure, BreakerConfig, Entry, Reader, RequestContext, Routed, Served, Snapshot, Timing, micros,
};
use crate::route::{RouteRequest, Selector};
use crate::shadow::{Original, Shadows, Target};
use crate::telemetry::{Ended, InFlight};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Answers requests from the published snapshot.
#[derive(Debug)]
pub struct Gateway {
    reader: Reader,
    executor: Executor,
    shadows: Shadows,
    log: Option<Log>,
    breakers: BreakerConfig,
}

/// One request on one version. It keeps the version loaded, and is counted once when it ends.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says what has happened to the request")]
pub struct ActiveRequest {
    context: RequestContext,
    served: Arc<Served>,
    /// When the body had been read.
    started: Instant,
    /// The shadows that get a copy; empty for most requests.
    shadows: Vec<Target>,
    /// Present where the request is recorded.
    log: Option<Log>,
    /// The checked request, kept where it is recorded or copied.
    request: Option<Arc<Checked>>,
    /// The record was offered to the log.
    recorded: bool,
    /// A failure now counts against the version: the request fits its signature and limits, or was refused before that was checked.
    counts_against_version: bool,
    /// Why the document's fallback answers, where it does.
    fallback: Option<&'static str>,
    /// It tries whether the version works again, and the result is not known yet.
    probe: bool,
    /// A hash of its sticky key, where the key decided between several arms.
    key: Option<u64>,
    /// An output was NaN or infinite.
    nonfinite: AtomicBool,
    ended: bool,
    _in_flight: InFlight,
}

/// The copies of a request that are still to be offered to shadows.
#[derive(Debug)]
#[must_use = "shadows get their copies only through `Gateway::mirror`"]
pub struct ShadowCopies {
    original: Original,
    shadows: Vec<Target>,
}

impl Gateway {
    #[must_use]
    pub fn new(reader: Reader, executor: Executor, shadows: Shadows, log: Option<Log>) -> Gateway {
        Gateway { reader, executor, shadows, log, breakers: BreakerConfig::default() }
    }

    /// Sets when breakers open and close.
    #[must_use]
    pub fn with_breakers(self, breakers: BreakerConfig) -> Gateway {
        Gateway { breakers, ..self }
    }

    /// The current snapshot. A request calls this once and uses the result for everything.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.reader.snapshot()
    }

    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Whether a request to this model would be refused now if its caller has the most work waiting: every version that could answer it
    /// has too many waiting requests. Called before the body is read, so it takes no lock and knows only the URL.
    ///
    /// # Errors
    /// `OVERLOADED`, as [`Executor::would_fit`].
    pub fn would_fit(
        &self,
        model: &str,
        selector: Selector,
        deadline: Instant,
        priority: Priority,
    ) -> Result<(), Failure> {
        if self.executor.queue_depth() == 0 {
            return Ok(());
        }
        let snapshot = self.reader.snapshot();
        let Some(entry) = snapshot.model(model) else { return Ok(()) };
        let mut refusal = Ok(());
        for served in entry.candidates(selector) {
            refusal = self.executor.would_fit(&served.loaded.runner, deadline, priority);
            if refusal.is_ok() {
                return Ok(());
            }
        }
        refusal
    }

    /// Routes a request, whose body was read at `started`, to the version that answers it.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, what [`Entry::route`] returns, `TOO_MANY_REQUESTS` at the model's own limit, and `NOT_READY` while the version's
    /// breaker is open and the document has no fallback.
    pub fn open(
        &self,
        snapshot: &Snapshot,
        model: &str,
        request: &RouteRequest,
        id: &RequestId,
        started: Instant,
    ) -> Result<ActiveRequest, Failure> {
        let entry = find(snapshot, model)?;
        let Routed { served, keyless, fallback, key } = entry.route(request)?;
        let Passed { served, fallback, probe } = pass_breaker(entry, served, fallback, key)?;
        let loaded = &served.loaded;
        if fallback.is_some() {
            loaded.metrics.falls_back();
        }
        if keyless {
            loaded.metrics.keyless();
        }
        // Released where the request does not begin.
        let probe = Probe(probe.then_some(served));
        let in_flight = match loaded.limits.max_in_flight {
            None => loaded.metrics.enter(),
            Some(limit) => loaded.metrics.try_enter(limit).ok_or_else(|| {
                let message =
                    format!("{limit} requests are in flight on this model already, the limit of its model.toml");
                Failure::new(Code::TooManyRequests, message)
            })?,
        };
        let context = RequestContext::new(entry, served, request, id, self.log.is_some());
        Ok(ActiveRequest {
            served: Arc::clone(served),
            started,
            shadows: sample_shadows(entry, served.role()),
            log: self.log.clone().filter(|_| context.recording.is_some()),
            request: None,
            recorded: false,
            counts_against_version: false,
            fallback,
            probe: probe.keep(),
            key,
            nonfinite: AtomicBool::new(false),
            ended: false,
            _in_flight: in_flight,
            context,
        })
    }

    /// Checks a request and runs it on its version.
    ///
    /// # Errors
    /// `INVALID_TENSOR` where the request does not fit the signature, the limits or the engine, and what [`Executor::admit`] and
    /// [`Executor::execute`] return.
    pub async fn infer(
        &self,
        active: &mut ActiveRequest,
        request: InferenceRequest,
        deadline: Instant,
        requester: Requester,
    ) -> Result<RunOutput, Failure> {
        let loaded = &active.served.loaded;
        let admitted = self.executor.admit(&loaded.runner, request.elements(), deadline, requester);
        admitted.inspect_err(|_| active.counts_against_version = true)?;
        let checked = Arc::new(loaded.facts.signature.check(request)?);
        if active.log.is_some() || !active.shadows.is_empty() {
            active.request = Some(Arc::clone(&checked));
        }
        if let (Some(limit), Some(rows)) = (loaded.limits.max_rows, checked.sent_rows())
            && rows > limit
        {
            let message = format!("a request may have at most {limit} rows by this model's model.toml, got {rows}");
            return Err(Failure::new(Code::InvalidTensor, message));
        }
        active.counts_against_version = true;
        let output = match self.executor.execute(&loaded.runner, checked, deadline, requester).await {
            Ok(output) => {
                if loaded.breaker.answered(&self.breakers, active.probe, Instant::now) {
                    loaded.metrics.breaker_open(false);
                    tracing::info!(model = %loaded.model, version = %loaded.version, "the version answers again: its breaker closes");
                }
                active.probe = false;
                output
            }
            Err(failure) => {
                if matches!(failure.code, Code::EngineFailed | Code::Internal) {
                    self.engine_failed(active, deadline).await;
                }
                match failure.code {
                    // The same as a refusal before the check: no record and no copies.
                    Code::Overloaded => active.request = None,
                    // The engine does not accept these values, which is the caller's mistake.
                    Code::InvalidTensor | Code::BodyTooLarge => active.counts_against_version = false,
                    _ => {}
                }
                return Err(failure);
            }
        };
        if output.counts {
            loaded.metrics.ran(output.infer, output.batch_rows);
        }
        if let Some(most) = loaded.limits.max_answer
            && output.answer.size() > most
        {
            active.counts_against_version = false;
            return Err(answer_too_large(output.answer.size(), most));
        }
        let on_worker = !output.queue.is_zero();
        if on_worker {
            loaded.metrics.queued(output.queue);
        }
        if output.counts && (on_worker || output.requests > 1) {
            loaded.metrics.batched(output.batch_rows);
        }
        Ok(output)
    }

    /// The engine failed a request. Opens the version's breaker where it fails often, and not because of the requests.
    async fn engine_failed(&self, active: &mut ActiveRequest, deadline: Instant) {
        let loaded = Arc::clone(&active.served.loaded);
        let (model, version) = (&loaded.model, loaded.version);
        if loaded.breaker.failed(&self.breakers, active.probe, Instant::now()) == AfterFailure::Nothing {
            return;
        }
        // One caller's values must not close a version to all others.
        if let Some(known_good) = loaded.breaker.known_good() {
            match self.executor.execute(&loaded.runner, Arc::clone(known_good), deadline, Requester::default()).await {
                Ok(_) => {
                    if loaded.breaker.spare() {
                        loaded.metrics.breaker_open(false);
                    }
                    active.probe = false;
                    tracing::warn!(%model, %version, "the engine fails requests, but answers a request of the warm-up: the values of these \
                        requests are to blame, and the breaker stays closed");
                    return;
                }
                Err(failure) if matches!(failure.code, Code::EngineFailed | Code::Internal) => {}
                // There was no time for it. A later failure decides.
                Err(_) => return,
            }
        }
        active.probe = false;
        if loaded.breaker.open(&self.breakers, Instant::now()) {
            loaded.metrics.breaker_open(true);
            tracing::error!(%model, %version, "the engine fails again and again: the version's breaker opens");
        }
    }

    /// Records a request and counts it as done or failed, with the time from the body read to now. Returns the copies for its
    /// shadows, if any. Waits only where the configuration asks that answers leave after their record is on the disk, and at most until
    /// the deadline.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE`: the request cannot be recorded, so its answer must not leave.
    pub async fn end(
        &self,
        mut active: ActiveRequest,
        outcome: Result<RunOutput, Failure>,
        deadline: Instant,
    ) -> Result<Option<ShadowCopies>, Failure> {
        let timing = active.timing(outcome.as_ref().ok());
        let recorded = match active.offer_record(outcome.as_ref().map_err(|failure| failure.code), timing.as_ref()) {
            Ok(Some((log, ticket))) => log.durable(ticket, deadline).await,
            Ok(None) => Ok(()),
            Err(failure) => Err(failure),
        };
        active.ended = true;
        let failed = recorded.as_ref().err().or(outcome.as_ref().err()).map(|failure| failure.code);
        let output = outcome.as_ref().ok();
        active.served.metrics.ended(&Ended {
            engine: output.map(|output| (output.infer, output.batch_rows)),
            answer: output
                .filter(|_| active.served.metrics.is_watched())
                .map(|output| output.answer.hash_of_beginning()),
            ..active.result(failed)
        });
        recorded?;
        Ok(timing.and_then(|timing| self.shadow_copies(active, outcome, timing)))
    }

    fn shadow_copies(
        &self,
        mut active: ActiveRequest,
        outcome: Result<RunOutput, Failure>,
        timing: Timing,
    ) -> Option<ShadowCopies> {
        if active.shadows.is_empty() {
            return None;
        }
        let failed = outcome.as_ref().err().map(|failure| failure.code);
        // A request that was refused under load says nothing about the version, and copies would add to the load.
        if matches!(failed, Some(Code::Overloaded | Code::DeadlineExceeded | Code::Draining)) {
            return None;
        }
        let request = active.request.take()?;
        let busy = self.executor.queue_depth() > 0;
        let mut shadows = std::mem::take(&mut active.shadows);
        shadows.retain(|shadow| self.shadows.admit(&shadow.served, busy));
        if shadows.is_empty() {
            return None;
        }
        let original = Original {
            context: active.context.clone(),
            request,
            outcome: outcome.map(|output| output.answer),
            timing,
            recorded: active.recorded,
        };
        Some(ShadowCopies { original, shadows })
    }

    /// Offers copies to the shadows that admitted them. Never waits. To be called after the answer is written.
    pub fn mirror(&self, copies: ShadowCopies) {
        let ShadowCopies { original, shadows } = copies;
        self.shadows.offer(original, shadows);
    }

    /// Stores feedback for a model. Returns when all entries are durable, or at the deadline.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, and `LOG_UNAVAILABLE` where no entry was stored, or not before the deadline.
    pub async fn record_feedback(&self, model: &str, entries: &[Feedback], deadline: Instant) -> Result<(), Failure> {
        let (model, choice) = {
            let snapshot = self.snapshot();
            let entry = find(&snapshot, model)?;
            (entry.name().clone(), Arc::clone(entry.choice()))
        };
        let Some(log) = &self.log else {
            return Err(Failure::new(Code::LogUnavailable, "this server keeps no feedback"));
        };
        if entries.is_empty() {
            return Ok(());
        }
        log.record_feedback(&model, &choice, entries, deadline).await
    }
}

/// The shadows that get a copy of a request. One random number decides for all shadows, so that their samples are nested. Requests
/// that name a version or a label are not copied: such a caller is trying something out.
fn sample_shadows(entry: &Entry, role: Role) -> Vec<Target> {
    if role != Role::Primary || entry.shadows().is_empty() {
        return Vec::new();
    }
    let draw = fastrand::f64();
    let target = |served: &Arc<Served>| Target {
        stream: entry.stream(served.loaded.version).map(Arc::clone),
        served: Arc::clone(served),
    };
    entry.shadows().iter().filter(|shadow| draw < shadow.sample).map(|shadow| target(&shadow.served)).collect()
}

/// The version that answers, after its breaker.
struct Passed<'e> {
    served: &'e Arc<Served>,
    fallback: Option<&'static str>,
    probe: bool,
}

/// Asks the breaker of the version that the document or the URL chose, and where it is open takes the document's fallback.
///
/// # Errors
/// `NOT_READY`: the breaker is open, and there is no fallback, or its breaker is open as well.
fn pass_breaker<'e>(
    entry: &'e Entry,
    served: &'e Arc<Served>,
    fallback: Option<&'static str>,
    key: Option<u64>,
) -> Result<Passed<'e>, Failure> {
    let kept_off = match served.loaded.breaker.admit(Instant::now) {
        Admission::Run => return Ok(Passed { served, fallback, probe: false }),
        Admission::Probe => return Ok(Passed { served, fallback, probe: true }),
        Admission::Refused { .. } => served,
    };
    // For a rollout, this is a failure of the version.
    kept_off.metrics.ended(&Ended { key, ..Ended::of(Some(Code::NotReady), Duration::ZERO, true) });
    kept_off.loaded.metrics.kept_off();
    let version = kept_off.loaded.version;
    let other = entry.fallback_for(version).filter(|_| kept_off.role() == Role::Primary && fallback.is_none());
    let other = other.filter(|other| other.loaded.breaker.admit(Instant::now) == Admission::Run);
    let Some(served) = other else {
        let message = format!(
            "the engine fails the requests to version {version} of model {}; it is tried again every few seconds",
            entry.name()
        );
        return Err(Failure::new(Code::NotReady, message));
    };
    Ok(Passed { served, fallback: Some("breaker_open"), probe: false })
}

/// A try of a version whose breaker is open, until the request holds it. Dropped before, the next request may try.
struct Probe<'s>(Option<&'s Arc<Served>>);

impl Probe<'_> {
    /// The request holds it now. Returns whether it is a try.
    fn keep(mut self) -> bool {
        self.0.take().is_some()
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if let Some(served) = self.0 {
            served.loaded.breaker.probe_came_to_nothing();
        }
    }
}

/// Finds a model by the name in the URL.
///
/// # Errors
/// `MODEL_NOT_FOUND`, with the name, and with where it is when other servers have it.
pub fn find<'s>(snapshot: &'s Snapshot, model: &str) -> Result<&'s Arc<Entry>, Failure> {
    const SHOWN: usize = 128;
    let found = snapshot.model(model);
    if !found.is_some_and(|entry| entry.has_loaded())
        && let Some(why) = snapshot.elsewhere(model)
    {
        return Err(Failure::new(Code::ModelNotFound, why));
    }
    found.ok_or_else(|| {
        let shown: String = model.chars().take(SHOWN).collect();
        Failure::new(Code::ModelNotFound, format!("no model is named {shown:?}"))
    })
}

/// The failure for a URL whose model, version or label does not exist; `None` where all exist. It is reported before any other
/// error in the request.
#[must_use]
pub fn not_found(snapshot: &Snapshot, model: &str, selector: Selector) -> Option<Failure> {
    let none = Parameters::new();
    let request = RouteRequest { selector, header: &|_| None, parameters: &none, request_id: "" };
    let failure = find(snapshot, model).and_then(|entry| entry.route(&request).map(drop)).err()?;
    matches!(failure.code, Code::ModelNotFound | Code::VersionNotFound | Code::LabelNotFound).then_some(failure)
}

impl ActiveRequest {
    /// The version that answers.
    #[must_use]
    pub fn served(&self) -> &Arc<Served> {
        &self.served
    }

    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.served.loaded.facts.signature
    }

    /// Why the document's fallback answers: `breaker_open`, or the stage in which the version failed that the document chose. `None` where
    /// that version answers.
    #[must_use]
    pub fn fallback(&self) -> Option<&'static str> {
        self.fallback
    }

    /// A failure from here on is not the version's: it ran, and there is no memory for its answer.
    pub fn excuse_version(&mut self) {
        self.counts_against_version = false;
    }

    /// Counts output elements that JSON has no number for.
    pub fn nonfinite(&self, elements: usize) {
        if elements > 0 {
            self.nonfinite.store(true, Ordering::Relaxed);
            self.served.metrics.nonfinite(elements);
        }
    }

    /// What is counted when it ends now.
    fn result(&self, failed: Option<Code>) -> Ended {
        let nonfinite = self.nonfinite.load(Ordering::Relaxed);
        Ended { key: self.key, nonfinite, ..Ended::of(failed, self.started.elapsed(), self.counts_against_version) }
    }

    /// `None` where the request is neither recorded nor copied, as the clock need not be read then.
    fn timing(&self, output: Option<&RunOutput>) -> Option<Timing> {
        let request = self.request.as_ref()?;
        let latency = self.started.elapsed();
        Some(Timing {
            ts: record::now() - micros(latency),
            latency,
            infer: output.map_or(Duration::ZERO, |output| output.infer),
            batch_rows: output.map_or(request.rows().unwrap_or(1), |output| output.batch_rows),
        })
    }

    /// Offers the request's record, where it passed the signature check and is to be kept. A record is offered once.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE`: the answer must not leave.
    fn offer_record(
        &mut self,
        outcome: Result<&RunOutput, Code>,
        timing: Option<&Timing>,
    ) -> Result<Option<(&Log, Ticket)>, Failure> {
        let (Some(log), Some(recording), Some(request), Some(timing)) =
            (&self.log, &self.context.recording, &self.request, timing)
        else {
            return Ok(None);
        };
        let choice = recording.stream.choice();
        let always = choice.errors && outcome.is_err();
        if self.recorded || !always && !recording.sampled {
            return Ok(None);
        }
        self.recorded = true;
        let sample_rate = if always { 1.0 } else { choice.sample_rate };
        let waits = outcome.err() != Some(Code::DeadlineExceeded);
        let outcome = outcome.map(|output| &output.answer);
        let prediction = recording.prediction(&self.context, request, outcome, timing, sample_rate);
        // After the deadline the answer does not wait for the record.
        Ok(log.offer(&recording.stream, &prediction, waits)?.map(|ticket| (log, ticket)))
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if self.probe {
            // It ended without a verdict of the engine: the next request may try.
            self.served.loaded.breaker.probe_came_to_nothing();
        }
        if !self.ended {
            // A request is dropped before its end when its client disconnects, or when its task panics.
            let code = if std::thread::panicking() { Code::Internal } else { Code::ClientClosed };
            let timing = self.timing(None);
            // An error means that the record cannot be kept. There is no answer that could be refused.
            let _ = self.offer_record(Err(code), timing.as_ref());
            self.served.metrics.ended(&self.result(Some(code)));
        }
    }
}
