//! What a shadow answered, for the prediction log.

use super::{Done, Recording};
use crate::model::{Answer, Code, Role};
use crate::record::{Log, Prediction};
use std::time::Duration;

/// Offers the records of a copy that was run: the shadow's where it is in the sample, failed or answered otherwise; and then the
/// primary's too, where that was not kept.
pub(super) fn remember(log: &Log, done: &Done) {
    let Done { copied, request, outcome, agrees } = done;
    let original = &copied.original;
    let Some(recording) = &original.recording else { return };
    let both_failed = outcome.is_err() && original.outcome.is_err();
    let disagrees = !agrees && !both_failed;
    if let (Some(stream), Some(request)) = (&copied.stream, request) {
        let choice = stream.choice();
        let always = choice.errors && outcome.is_err() || choice.disagreements && disagrees;
        if always || recording.sampled {
            let took = outcome.as_ref().map_or(Duration::ZERO, |(_, took)| *took);
            let shadow = Prediction {
                role: Role::Shadow,
                arm: &copied.shadow.arm,
                request,
                outcome: outcome.as_ref().map(|(answer, _)| answer).map_err(|failure| failure.code),
                latency_us: micros(took),
                infer_us: micros(took),
                batch_rows: request.rows().unwrap_or(1),
                sample_rate: if always { 1.0 } else { choice.sample_rate },
                ..primary(done, recording)
            };
            // Nobody waits for a shadow, and what is dropped is counted.
            let _ = log.offer(stream, &shadow, false);
        }
    }
    if disagrees && !recording.kept && recording.stream.choice().disagreements {
        let _ = log.offer(&recording.stream, &primary(done, recording), false);
    }
}

/// The primary's side, kept only for the disagreement: no part of an estimate.
fn primary<'a>(done: &'a Done, recording: &'a Recording) -> Prediction<'a> {
    let original = &done.copied.original;
    let outcome: Result<&Answer, Code> = original.outcome.as_ref().map_err(|failure| failure.code);
    Prediction {
        request_id: original.request_id.as_str(),
        ts: recording.ts,
        role: recording.role,
        arm: &original.arm,
        route_key: recording.route_key.as_deref(),
        traceparent: recording.traceparent.as_deref(),
        request: &original.request,
        outcome,
        latency_us: micros(recording.latency),
        infer_us: micros(original.infer),
        batch_rows: recording.batch_rows,
        sample_rate: 0.0,
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
