//! The prediction-log records of a finished copy.

use super::FinishedCopy;
use crate::model::{Answer, Code, Role};
use crate::record::{Log, Prediction};
use crate::registry::micros;
use std::time::Duration;

/// Offers the shadow's record where the request is in the sample, the shadow failed, or the answers disagree. Where they disagree,
/// also offers the primary's record if it was not recorded before.
pub(super) fn offer(log: &Log, finished: &FinishedCopy) {
    let FinishedCopy { copy, request, outcome, agrees } = finished;
    let original = &*copy.original;
    let Some(recording) = &original.context.recording else { return };
    let primary_outcome: Result<&Answer, Code> = original.outcome.as_ref().map_err(|failure| failure.code);
    // Sample rate 0: the record is kept for the disagreement, so it must not count in an estimate.
    let primary = recording.prediction(&original.context, &original.request, primary_outcome, &original.timing, 0.0);
    let both_failed = outcome.is_err() && original.outcome.is_err();
    let disagrees = !agrees && !both_failed;
    if let (Some(stream), Some(request)) = (&copy.stream, request) {
        let choice = stream.choice();
        let always = choice.errors && outcome.is_err() || choice.disagreements && disagrees;
        if always || recording.sampled {
            let took = outcome.as_ref().map_or(Duration::ZERO, |(_, took)| *took);
            let shadow = Prediction {
                role: Role::Shadow,
                arm: copy.shadow.arm(),
                request,
                outcome: outcome.as_ref().map(|(answer, _)| answer).map_err(|failure| failure.code),
                latency_us: micros(took),
                infer_us: micros(took),
                batch_rows: request.rows().unwrap_or(1),
                sample_rate: if always { 1.0 } else { choice.sample_rate },
                ..primary
            };
            // No caller waits for a shadow's record, and the log counts what it drops.
            let _ = log.offer(stream, &shadow, false);
        }
    }
    if disagrees && !original.recorded && recording.stream.choice().disagreements {
        let _ = log.offer(&recording.stream, &primary, false);
    }
}
