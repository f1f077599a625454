//! serve: the life of one request.
//!
//! - [`Gateway::open`] loads the one snapshot, routes, and gives an [`ActiveRequest`]: the request's hold on the version that
//!   answers it, on one arm.
//! - [`Gateway::infer`] checks the request against that version's signature and runs it.
//! - Every exchange is counted and recorded once: by [`Gateway::end`], or, when it is dropped unfinished, as a client that went away.
//! - A request waits for its own inference and for nothing else: what comes after the answer is an [`ShadowCopies`], done once the
//!   answer is on its way.
//!
//! Uses: registry (reader), execute, route, record (offers), shadow (offers), compare (the tolerance), model, telemetry.
//!
//! Invariant: no bytes, no status codes, no idea how versions come and go.
//!
//! To add a step to every request: a line of [`Gateway::infer`].

mod recording;
#[cfg(test)]
mod tests;

use crate::compare::Tolerance;
use crate::execute::Executor;
pub use crate::execute::Ran;
use crate::model::{Checked, Code, Failure, Feedback, InferenceRequest, RequestId, Role, Signature};
use crate::record::Log;
use crate::registry::{Entry, Reader, Routed, Served, Snapshot};
use crate::route::Ask;
use crate::shadow::{Original, Shadows, Target};
use crate::telemetry::InFlight;
use recording::Recording;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers requests from whatever snapshot is published.
#[derive(Debug)]
pub struct Gateway {
    reader: Reader,
    executor: Executor,
    shadows: Shadows,
    log: Option<Log>,
}

/// One request on one version: holds the version in memory, and is counted once when it ends.
#[derive(Debug)]
pub struct ActiveRequest {
    id: RequestId,
    served: Arc<Served>,
    /// When the body had been read.
    started: Instant,
    /// Who gets a copy; none for most.
    shadows: Vec<Target>,
    tolerance: Tolerance,
    /// Of the document that chose them.
    revision: u64,
    /// `None` where nothing is recorded.
    recording: Option<Recording>,
    /// What the version was asked, kept where somebody wants it afterwards.
    request: Option<Arc<Checked>>,
    /// What fails from here on is not the caller's doing: it fitted the signature and the limits, or was refused unseen.
    fitted: bool,
    ended: bool,
    _in_flight: InFlight,
}

/// What is left to do once the answer is on its way.
#[derive(Debug)]
#[must_use = "shadows get their copies when it is done"]
pub struct ShadowCopies {
    original: Original,
    shadows: Vec<Target>,
}

impl Gateway {
    #[must_use]
    pub fn new(reader: Reader, executor: Executor, shadows: Shadows, log: Option<Log>) -> Gateway {
        Gateway { reader, executor, shadows, log }
    }

    /// What is loaded now; for questions that are not predictions.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.reader.snapshot()
    }

    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Finds who answers the request of this id, whose body was read at `started`.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, and what [`Entry::route`] gives.
    pub fn open(&self, model: &str, ask: &Ask, id: &RequestId, started: Instant) -> Result<ActiveRequest, Failure> {
        let snapshot = self.reader.snapshot();
        let entry = find(&snapshot, model)?;
        let Routed { served, keyless } = entry.route(ask)?;
        if keyless {
            served.loaded.metrics.keyless();
        }
        let in_flight = served.loaded.metrics.enter();
        if let Some(most) = served.loaded.limits.max_in_flight.filter(|most| served.loaded.metrics.in_flight() > *most)
        {
            let words = format!("{most} requests are in flight on this model already, the limit of its model.toml");
            return Err(Failure::new(Code::TooManyRequests, words));
        }
        Ok(ActiveRequest {
            _in_flight: in_flight,
            id: id.clone(),
            served: Arc::clone(served),
            started,
            shadows: sampled(entry, served.role),
            tolerance: entry.tolerance(),
            revision: entry.revision(),
            recording: self.log.as_ref().and_then(|log| Recording::begin(log, entry, served, ask, id)),
            request: None,
            fitted: false,
            ended: false,
        })
    }

    /// Runs a request on the version its exchange holds.
    ///
    /// # Errors
    /// What does not fit the signature, and what [`Executor::admit`] and [`Executor::execute`] give.
    pub async fn infer(
        &self,
        exchange: &mut ActiveRequest,
        request: InferenceRequest,
        deadline: Instant,
    ) -> Result<Ran, Failure> {
        let loaded = &exchange.served.loaded;
        self.executor.admit(&loaded.runner, request.elements(), deadline).inspect_err(|_| exchange.fitted = true)?;
        let checked = Arc::new(loaded.facts.signature.check(request)?);
        if exchange.recording.is_some() || !exchange.shadows.is_empty() {
            exchange.request = Some(Arc::clone(&checked));
        }
        if let (Some(most), Some(rows)) = (loaded.limits.max_rows, checked.rows())
            && rows > most
        {
            let words = format!("a request may have at most {most} rows by this model's model.toml, got {rows}");
            return Err(Failure::new(Code::InvalidTensor, words));
        }
        exchange.fitted = true;
        let ran = self.executor.execute(&loaded.runner, checked, deadline).await.inspect_err(|failure| {
            if failure.code == Code::Overloaded {
                // As if it had been refused before the check: no record, and no copy.
                exchange.request = None;
            }
        })?;
        if ran.counts {
            loaded.metrics.ran(ran.infer);
        }
        if !ran.queue.is_zero() {
            loaded.metrics.queued(ran.queue);
            if ran.counts {
                loaded.metrics.batched(ran.batch_rows);
            }
        }
        Ok(ran)
    }

    /// Records a request and counts it as done or failed; the time is from the body read to now. Answers what is left to do, if
    /// anything. Waits for nothing, unless the log is to be on the disk before answers leave.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE`: the answer must not leave, as it cannot be recorded.
    pub async fn end(
        &self,
        mut exchange: ActiveRequest,
        outcome: Result<Ran, Failure>,
        deadline: Instant,
    ) -> Result<Option<ShadowCopies>, Failure> {
        let latency = exchange.started.elapsed();
        let written = exchange.record(outcome.as_ref().map_err(|failure| failure.code), latency);
        let written = match (written, &self.log) {
            (Ok(Some(ticket)), Some(log)) => log.durable(ticket, deadline).await,
            (written, _) => written.map(drop),
        };
        exchange.ended = true;
        let failed = written.as_ref().err().or(outcome.as_ref().err()).map(|failure| failure.code);
        exchange.served.metrics.ended(failed, exchange.started.elapsed(), exchange.fitted);
        written?;
        Ok(self.aftermath(exchange, outcome, latency))
    }

    fn aftermath(
        &self,
        mut exchange: ActiveRequest,
        outcome: Result<Ran, Failure>,
        latency: Duration,
    ) -> Option<ShadowCopies> {
        if exchange.shadows.is_empty() {
            return None;
        }
        let failed = outcome.as_ref().err().map(|failure| failure.code);
        // What a busy machine refused says nothing about the version, and is no time for copies.
        if matches!(failed, Some(Code::Overloaded | Code::DeadlineExceeded | Code::Draining)) {
            return None;
        }
        let request = exchange.request.take()?;
        let busy = self.executor.queue_depth() > 0;
        let mut shadows = std::mem::take(&mut exchange.shadows);
        shadows.retain(|shadow| self.shadows.admit(&shadow.served, busy));
        if shadows.is_empty() {
            return None;
        }
        let (infer, batch_rows, outcome) = match outcome {
            Ok(ran) => (ran.infer, ran.batch_rows, Ok(ran.answer)),
            Err(failure) => (Duration::ZERO, request.rows().unwrap_or(1), Err(failure)),
        };
        let role = exchange.served.role;
        let loaded = &exchange.served.loaded;
        let original = Original {
            model: loaded.model.clone(),
            primary: loaded.version,
            facts: Arc::clone(&loaded.facts),
            arm: exchange.served.arm.clone(),
            request_id: exchange.id.clone(),
            request,
            outcome,
            infer,
            tolerance: exchange.tolerance,
            revision: exchange.revision,
            recording: exchange.recording.take().map(|recording| recording.for_shadows(role, latency, batch_rows)),
        };
        Some(ShadowCopies { original, shadows })
    }

    /// Offers the copies. Never waits; meant for when the answer is on its way.
    pub fn mirror(&self, aftermath: ShadowCopies) {
        let ShadowCopies { original, shadows } = aftermath;
        self.shadows.offer(original, shadows);
    }
}

impl Gateway {
    /// Takes what was told about a model's predictions; it is on the disk, all of it, when this answers.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, and `LOG_UNAVAILABLE`: nothing of it was taken.
    pub async fn told(&self, model: &str, entries: &[Feedback], deadline: Instant) -> Result<(), Failure> {
        let model = find(&self.snapshot(), model)?.name().clone();
        let Some(log) = &self.log else {
            return Err(Failure::new(Code::LogUnavailable, "this server keeps no feedback"));
        };
        if entries.is_empty() {
            return Ok(());
        }
        log.record_feedback(&model, entries, deadline).await
    }
}

/// The shadows that get a copy of a request. One draw for all, so that the samples are nested. Whoever asked for a version or a
/// label by name tries something out, and is not copied.
fn sampled(entry: &Entry, role: Role) -> Vec<Target> {
    if role != Role::Primary || entry.shadows().is_empty() {
        return Vec::new();
    }
    let draw = fastrand::f64();
    let target = |served: &Arc<Served>| Target {
        stream: entry.stream(served.loaded.version).map(Arc::clone),
        served: Arc::clone(served),
    };
    entry.shadows().iter().filter(|s| draw < s.sample).map(|s| target(&s.served)).collect()
}

/// Finds a model by the name in the URL.
///
/// # Errors
/// `MODEL_NOT_FOUND`, naming it.
pub fn find<'s>(snapshot: &'s Snapshot, model: &str) -> Result<&'s Arc<Entry>, Failure> {
    snapshot.model(model).ok_or_else(|| {
        let shown: String = model.chars().take(128).collect();
        Failure::new(Code::ModelNotFound, format!("no model is named {shown:?}"))
    })
}

impl ActiveRequest {
    /// The version that answers, and the part it plays.
    #[must_use]
    pub fn served(&self) -> &Arc<Served> {
        &self.served
    }

    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.served.loaded.facts.signature
    }

    /// Counts output elements that JSON has no number for.
    pub fn nonfinite(&self, elements: usize) {
        self.served.metrics.nonfinite(elements);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if !self.ended {
            // What can be said of it is said; nobody is there to be refused.
            let _ = self.record(Err(Code::ClientClosed), self.started.elapsed());
            self.served.metrics.ended(Some(Code::ClientClosed), self.started.elapsed(), self.fitted);
        }
    }
}
