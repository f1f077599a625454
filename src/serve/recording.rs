//! What of a request goes into the prediction log.

use super::{ActiveRequest, Ran};
use crate::model::{Code, Failure, RequestId, Role};
use crate::record::{self, Log, Prediction, Stream, Ticket};
use crate::registry::{Entry, Served};
use crate::route::Ask;
use crate::shadow;
use std::sync::Arc;
use std::time::Duration;

/// What is remembered of a request from the beginning on, so that it can be recorded however it ends.
#[derive(Debug)]
pub(super) struct Recording {
    log: Log,
    stream: Arc<Stream>,
    route_key: Option<String>,
    traceparent: Option<String>,
    sampled: bool,
    kept: bool,
    /// When the body had been read; known when it ends.
    ts: i64,
    /// A record is offered once.
    over: bool,
}

/// Longer ones are no W3C trace contexts (<https://www.w3.org/TR/trace-context/#traceparent-header>), whatever version comes.
const TRACEPARENT: usize = 256;

impl Recording {
    /// `None` where this version is not recorded.
    pub fn begin(log: &Log, entry: &Entry, served: &Served, ask: &Ask, id: &RequestId) -> Option<Recording> {
        let stream = entry.stream(served.loaded.version)?;
        Some(Recording {
            log: log.clone(),
            route_key: entry.sticky_key(ask).map(std::borrow::Cow::into_owned),
            traceparent: (ask.header)("traceparent").filter(|text| text.len() <= TRACEPARENT).map(str::to_owned),
            sampled: stream.samples(id.as_str()),
            kept: false,
            ts: 0,
            over: false,
            stream: Arc::clone(stream),
        })
    }

    /// For the records of its shadows.
    pub fn for_shadows(self, role: Role, latency: Duration, batch_rows: usize) -> shadow::Recording {
        let Recording { stream, route_key, traceparent, sampled, kept, ts, .. } = self;
        shadow::Recording { stream, role, ts, latency, batch_rows, route_key, traceparent, sampled, kept }
    }
}

impl ActiveRequest {
    /// Offers the record of how it ended, where it got as far as the signature check and is to be kept.
    ///
    /// # Errors
    /// `LOG_UNAVAILABLE`: the answer must not leave.
    pub(super) fn record(&mut self, outcome: Result<&Ran, Code>, latency: Duration) -> Result<Option<Ticket>, Failure> {
        let (Some(recording), Some(request)) = (&mut self.recording, &self.request) else { return Ok(None) };
        recording.ts = record::now() - micros(latency);
        let choice = recording.stream.choice();
        let always = choice.errors && outcome.is_err();
        if recording.over || !always && !recording.sampled {
            return Ok(None);
        }
        recording.over = true;
        recording.kept = true;
        let prediction = Prediction {
            request_id: self.id.as_str(),
            ts: recording.ts,
            role: self.served.role,
            arm: &self.served.arm,
            route_key: recording.route_key.as_deref(),
            traceparent: recording.traceparent.as_deref(),
            request,
            outcome: outcome.map(|ran| &ran.answer),
            latency_us: micros(latency),
            infer_us: outcome.map_or(0, |ran| micros(ran.infer)),
            batch_rows: outcome.map_or(request.rows().unwrap_or(1), |ran| ran.batch_rows),
            sample_rate: if always { 1.0 } else { choice.sample_rate },
        };
        // After the deadline nobody waits for the record.
        let waits = outcome.err() != Some(Code::DeadlineExceeded);
        recording.log.offer(&recording.stream, &prediction, waits)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
