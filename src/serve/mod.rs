//! serve: the life of one request.
//!
//! - [`Gateway::open`] loads the one snapshot, routes, and gives an [`Exchange`]: the request's hold on the version that
//!   answers it, on one arm.
//! - [`Gateway::infer`] checks the request against that version's signature and runs it.
//! - Every exchange is counted once: by [`Exchange::end`], or, when it is dropped unfinished, as a client that went away.
//! - A request waits for its own inference and for nothing else.
//!
//! Uses: registry (reader), execute, route, model, telemetry.
//!
//! Invariant: no bytes, no status codes, no idea how versions come and go.
//!
//! To add a step to every request: a line of [`Gateway::infer`].

#[cfg(test)]
mod tests;

use crate::execute::{Executor, Ran};
use crate::model::{Code, Failure, InferenceRequest, Signature};
use crate::registry::{Entry, Reader, Served, Snapshot};
use crate::route::Ask;
use crate::telemetry::InFlight;
use std::sync::Arc;
use std::time::Instant;

/// Answers requests from whatever snapshot is published.
#[derive(Debug)]
pub struct Gateway {
    reader: Reader,
    executor: Executor,
}

/// One request on one version: holds the version in memory, and is counted once when it ends.
#[derive(Debug)]
pub struct Exchange {
    served: Arc<Served>,
    /// When the body had been read.
    started: Instant,
    ended: bool,
    _in_flight: InFlight,
}

impl Gateway {
    #[must_use]
    pub fn new(reader: Reader, executor: Executor) -> Gateway {
        Gateway { reader, executor }
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
        let served = find(&snapshot, model)?.route(ask)?;
        let in_flight = served.loaded.metrics.enter();
        if let Some(most) = served.loaded.limits.max_in_flight.filter(|most| served.loaded.metrics.in_flight() > *most)
        {
            let words = format!("{most} requests are in flight on this model already, the limit of its model.toml");
            return Err(Failure::new(Code::TooManyRequests, words));
        }
        Ok(Exchange { _in_flight: in_flight, served: Arc::clone(served), started, ended: false })
    }

    /// Runs a request on the version its exchange holds.
    ///
    /// # Errors
    /// What does not fit the signature, and what [`Executor::execute`] gives.
    pub async fn infer(
        &self,
        exchange: &Exchange,
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
        let ran = self.executor.execute(&loaded.runner, checked, deadline).await?;
        loaded.metrics.ran(ran.infer);
        if !ran.queue.is_zero() {
            loaded.metrics.queued(ran.queue);
        }
        Ok(ran)
    }
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
        self.served.loaded.metrics.nonfinite(elements);
    }

    /// Counts the request as done, or as failed with a code; the time is from the body read to now.
    pub fn end(mut self, failed: Option<Code>) {
        self.ended = true;
        self.served.metrics.ended(failed, self.started.elapsed());
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            self.served.metrics.ended(Some(Code::ClientClosed), self.started.elapsed());
        }
    }
}
