//! serve: the life of one request.
//!
//! - [`Gateway::open`] loads the one snapshot, routes, and gives an [`Exchange`]: the request's hold on the version that
//!   answers it, on one arm.
//! - [`Gateway::infer`] checks the request against that version's signature and runs it.
//! - Every exchange is counted once: by [`Gateway::end`], or, when it is dropped unfinished, as a client that went away.
//! - A request waits for its own inference and for nothing else: what comes after the answer is an [`Aftermath`], done once the
//!   answer is on its way.
//!
//! Uses: registry (reader), execute, route, shadow (offers), compare (the tolerance), model, telemetry.
//!
//! Invariant: no bytes, no status codes, no idea how versions come and go.
//!
//! To add a step to every request: a line of [`Gateway::infer`].

#[cfg(test)]
mod tests;

use crate::compare::Tolerance;
use crate::execute::Executor;
pub use crate::execute::Ran;
use crate::model::{Checked, Code, Failure, InferenceRequest, RequestId, Role, Signature};
use crate::registry::{Entry, Reader, Routed, Served, Snapshot};
use crate::route::Ask;
use crate::shadow::{Original, Shadows};
use crate::telemetry::InFlight;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers requests from whatever snapshot is published.
#[derive(Debug)]
pub struct Gateway {
    reader: Reader,
    executor: Executor,
    shadows: Shadows,
}

/// One request on one version: holds the version in memory, and is counted once when it ends.
#[derive(Debug)]
pub struct Exchange {
    served: Arc<Served>,
    /// When the body had been read.
    started: Instant,
    /// Who gets a copy; none for most.
    shadows: Vec<Arc<Served>>,
    tolerance: Tolerance,
    /// What the version was asked, kept where there is somebody to copy it to.
    request: Option<Arc<Checked>>,
    /// It fitted the signature and the limits: what fails from here on is not the caller's doing.
    fitted: bool,
    ended: bool,
    _in_flight: InFlight,
}

/// What is left to do once the answer is on its way.
#[derive(Debug)]
#[must_use = "shadows get their copies when it is done"]
pub struct Aftermath {
    original: Original,
    shadows: Vec<Arc<Served>>,
}

impl Gateway {
    #[must_use]
    pub fn new(reader: Reader, executor: Executor, shadows: Shadows) -> Gateway {
        Gateway { reader, executor, shadows }
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

    /// Finds who answers a request whose body was read at `started`.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, and what [`Entry::route`] gives.
    pub fn open(&self, model: &str, ask: &Ask, started: Instant) -> Result<Exchange, Failure> {
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
        Ok(Exchange {
            _in_flight: in_flight,
            served: Arc::clone(served),
            started,
            shadows: sampled(entry, served.role),
            tolerance: entry.tolerance(),
            request: None,
            fitted: false,
            ended: false,
        })
    }

    /// Runs a request on the version its exchange holds.
    ///
    /// # Errors
    /// What does not fit the signature, and what [`Executor::execute`] gives.
    pub async fn infer(
        &self,
        exchange: &mut Exchange,
        request: InferenceRequest,
        deadline: Instant,
    ) -> Result<Ran, Failure> {
        let loaded = &exchange.served.loaded;
        let checked = Arc::new(loaded.facts.signature.check(request)?);
        if let (Some(most), Some(rows)) = (loaded.limits.max_rows, checked.rows())
            && rows > most
        {
            let words = format!("a request may have at most {most} rows by this model's model.toml, got {rows}");
            return Err(Failure::new(Code::InvalidTensor, words));
        }
        exchange.fitted = true;
        if !exchange.shadows.is_empty() {
            exchange.request = Some(Arc::clone(&checked));
        }
        let ran = self.executor.execute(&loaded.runner, checked, deadline).await?;
        loaded.metrics.ran(ran.infer);
        if !ran.queue.is_zero() {
            loaded.metrics.queued(ran.queue);
        }
        Ok(ran)
    }

    /// Counts a request as done or failed; the time is from the body read to now. Answers what is left to do, if anything.
    #[must_use = "what is left to do"]
    pub fn end(&self, mut exchange: Exchange, id: &RequestId, outcome: Result<Ran, Failure>) -> Option<Aftermath> {
        exchange.ended = true;
        let failed = outcome.as_ref().err().map(|failure| failure.code);
        exchange.served.metrics.ended(failed, exchange.started.elapsed(), exchange.fitted);
        // What a busy machine refused says nothing about the version, and is no time for copies.
        if matches!(failed, Some(Code::Overloaded | Code::DeadlineExceeded | Code::Draining)) {
            return None;
        }
        let request = exchange.request.take()?;
        let busy = self.executor.queue_depth() > 0;
        let mut shadows = std::mem::take(&mut exchange.shadows);
        shadows.retain(|shadow| self.shadows.admit(shadow, busy));
        if shadows.is_empty() {
            return None;
        }
        let (infer, outcome) = match outcome {
            Ok(ran) => (ran.infer, Ok(ran.answer)),
            Err(failure) => (Duration::ZERO, Err(failure)),
        };
        let loaded = &exchange.served.loaded;
        let original = Original {
            model: loaded.model.clone(),
            primary: loaded.version,
            facts: Arc::clone(&loaded.facts),
            arm: exchange.served.arm.clone(),
            request_id: id.clone(),
            request,
            outcome,
            infer,
            tolerance: exchange.tolerance,
        };
        Some(Aftermath { original, shadows })
    }

    /// Offers the copies. Never waits; meant for when the answer is on its way.
    pub fn conclude(&self, aftermath: Aftermath) {
        let Aftermath { original, shadows } = aftermath;
        self.shadows.offer(original, shadows);
    }
}

/// The shadows that get a copy of a request. One draw for all, so that the samples are nested. Whoever asked for a version or a
/// label by name tries something out, and is not copied.
fn sampled(entry: &Entry, role: Role) -> Vec<Arc<Served>> {
    if role != Role::Primary || entry.shadows().is_empty() {
        return Vec::new();
    }
    let draw = fastrand::f64();
    entry.shadows().iter().filter(|s| draw < s.sample).map(|s| Arc::clone(&s.served)).collect()
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

impl Exchange {
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

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            self.served.metrics.ended(Some(Code::ClientClosed), self.started.elapsed(), self.fitted);
        }
    }
}
