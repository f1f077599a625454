//! traces: sends spans of sampled requests to an OpenTelemetry collector.
//!
//! - [`Traces::begin`] decides with the request's headers whether a request is traced: the caller's flag decides where there is one, else the
//!   sample rate. It returns a [`Trace`], which collects times and facts while the request runs.
//! - A [`Trace`] that is dropped goes into a bounded queue. What does not fit is dropped and counted.
//! - One thread at low priority makes spans of the queue and sends them (`exporter.rs`), over gRPC or HTTP (`collector.rs`). Nothing waits for
//!   it: a collector that is slow or gone costs its spans only.
//! - Without a collector [`Traces`] is empty: a request tests one pointer and does nothing else.
//!
//! Uses: machine (priority), model, outbound, telemetry.
//!
//! Invariant: nothing here waits on the thread of a request, and nothing is allocated for a request that is not traced.
//!
//! To add a fact to spans: a method of [`Trace`], and its attribute in `spans.rs` (docs/TRACING.md has the list).

mod collector;
mod config;
mod context;
mod exporter;
mod request;
mod spans;
#[cfg(test)]
mod tests;

pub use config::{Config, Protocol};
pub use exporter::Stop;
pub use request::{Call, Outcome, Run, Trace};

use crate::telemetry::{Telemetry, names};
use collector::Collector;
use context::{Context, Parent};
use crossbeam_queue::ArrayQueue;
use http::HeaderMap;
use metrics::Counter;
use request::Facts;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Traced requests that wait for the thread. It looks ten times a second, so that 80,000 traced requests a second fit. More are dropped and
/// counted.
const QUEUE: usize = 8192;

/// Decides which requests are traced. Cheap to clone. Empty without a collector.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Shared>>);

/// What requests and the thread share.
#[derive(Debug)]
struct Shared {
    /// The share of requests without a caller's flag that are traced: the bits of an `f64`.
    sample_rate: AtomicU64,
    /// The scheme of the data plane's addresses.
    scheme: &'static str,
    queue: ArrayQueue<Box<Facts>>,
    queue_full: Counter,
}

impl Traces {
    /// Starts the thread that sends spans. Without a collector in the configuration nothing is started. `scheme`: `http` or `https`, as the
    /// callers of the data plane use it.
    ///
    /// # Errors
    /// When the authorities for `https://` cannot be read, or the thread cannot be started.
    pub fn start(config: &Config, scheme: &'static str, telemetry: &Telemetry) -> io::Result<(Traces, Stop)> {
        let Some(endpoint) = &config.endpoint else { return Ok((Traces::default(), Stop::nothing())) };
        let collector = Collector::new(endpoint, config.protocol, config.ca.as_deref()).map_err(io::Error::other)?;
        let shared = Shared::new(config.sample_rate, scheme, telemetry);
        let stop = exporter::start(Arc::clone(&shared), collector, telemetry)?;
        Ok((Traces(Some(shared)), stop))
    }

    /// Changes the share of requests that are traced. Without a collector it has no effect.
    pub fn set_sample_rate(&self, rate: f64) {
        if let Some(shared) = &self.0 {
            shared.sample_rate.store(rate.to_bits(), Ordering::Relaxed);
        }
    }

    /// Begins the trace of a request whose headers had been read at `received`. `None` for one that is not traced.
    #[must_use]
    pub fn begin(&self, headers: &HeaderMap, received: Instant) -> Option<Trace> {
        let shared = self.0.as_ref()?;
        let context = match Parent::of(headers) {
            Some(parent) if parent.sampled => parent.child(headers),
            None if shared.draws() => Context::root(),
            _ => return None,
        };
        Some(Trace::new(Arc::clone(shared), context, received))
    }
}

impl Shared {
    fn new(sample_rate: f64, scheme: &'static str, telemetry: &Telemetry) -> Arc<Shared> {
        Arc::new(Shared {
            sample_rate: AtomicU64::new(sample_rate.to_bits()),
            scheme,
            queue: ArrayQueue::new(QUEUE),
            queue_full: telemetry.process().counter(&names::TRACES_DROPPED, &[("reason", "queue_full")]),
        })
    }

    /// Whether a request without a caller's flag is traced.
    fn draws(&self) -> bool {
        let rate = f64::from_bits(self.sample_rate.load(Ordering::Relaxed));
        // The draw is below 1, so that a rate of 1 traces every request and a rate of 0 none.
        rate > 0.0 && fastrand::f64() < rate
    }

    fn offer(&self, facts: Box<Facts>) {
        if self.queue.push(facts).is_err() {
            self.queue_full.increment(1);
        }
    }
}
