//! What routing found out about one request.

use super::entry::Entry;
use super::version::{Identity, Served};
use crate::compare::Tolerance;
use crate::model::{Answer, Checked, Code, RequestId};
use crate::record::{Prediction, Stream};
use crate::route::RouteRequest;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// The facts about a request that are fixed when it is routed. The same value is used to answer the request, to record it, and to
/// compare shadows with it. It does not keep the version loaded.
#[derive(Debug, Clone)]
pub struct RequestContext {
    pub id: RequestId,
    pub identity: Arc<Identity>,
    /// The revision of the traffic document that routed the request.
    pub revision: u64,
    /// How far a shadow's answer may be from the primary's.
    pub tolerance: Tolerance,
    /// `None` where the version is not recorded.
    pub recording: Option<Recording>,
}

/// What the records of a request need.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The stream of the version that answers.
    pub stream: Arc<Stream>,
    /// The request's sticky key.
    pub route_key: Option<String>,
    pub traceparent: Option<String>,
    /// Whether the request is in the sample. The records of its shadows are then in the sample too.
    pub sampled: bool,
}

/// When a request came and how long it took.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// When the body had been read; microseconds since 1970, UTC.
    pub ts: i64,
    /// From the body read to the answer ready.
    pub latency: Duration,
    /// Inside the engine; zero where the run failed.
    pub infer: Duration,
    /// Rows that ran together, this request's own included.
    pub batch_rows: usize,
}

/// A longer value is not a W3C trace context (<https://www.w3.org/TR/trace-context/#traceparent-header>) of any version.
const MAX_TRACEPARENT_BYTES: usize = 256;

impl RequestContext {
    /// The context of a request that `entry` routed to `served`. `records` tells whether this server keeps a prediction log.
    #[must_use]
    pub fn new(
        entry: &Entry,
        served: &Arc<Served>,
        request: &RouteRequest,
        id: &RequestId,
        records: bool,
    ) -> RequestContext {
        let stream = entry.stream(served.loaded.version).filter(|_| records);
        let traceparent = || (request.header)("traceparent").filter(|text| text.len() <= MAX_TRACEPARENT_BYTES);
        RequestContext {
            id: id.clone(),
            identity: Arc::clone(&served.identity),
            revision: entry.revision(),
            tolerance: entry.tolerance(),
            recording: stream.map(|stream| Recording {
                route_key: entry.sticky_key(request).map(Cow::into_owned),
                traceparent: traceparent().map(str::to_owned),
                sampled: stream.samples(id.as_str()),
                stream: Arc::clone(stream),
            }),
        }
    }
}

impl Recording {
    /// The primary's record of the request. A shadow's record replaces the members in which it differs.
    #[must_use]
    pub fn prediction<'a>(
        &'a self,
        context: &'a RequestContext,
        request: &'a Checked,
        outcome: Result<&'a Answer, Code>,
        timing: &Timing,
        sample_rate: f64,
    ) -> Prediction<'a> {
        Prediction {
            request_id: context.id.as_str(),
            ts: timing.ts,
            role: context.identity.role,
            arm: &context.identity.arm,
            route_key: self.route_key.as_deref(),
            traceparent: self.traceparent.as_deref(),
            request,
            outcome,
            latency_us: micros(timing.latency),
            infer_us: micros(timing.infer),
            batch_rows: timing.batch_rows,
            sample_rate,
        }
    }
}

/// Whole microseconds, as records keep durations.
#[must_use]
pub fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
