//! The metrics of the prediction log.

use super::names;
use super::scope::Telemetry;
use metrics::{Counter, Gauge, Histogram};

/// The metric handles of the prediction log. Its series exist as long as the process.
pub(crate) struct LogMetrics {
    pub records: Counter,
    pub feedback: Counter,
    pub queue_bytes: Gauge,
    pub segment_bytes: Gauge,
    pub sealed_bytes: Gauge,
    pub sync: Histogram,
    pub seal: Histogram,
    pub failing: Gauge,
    pub kept_share: Gauge,
    pub left_out: Counter,
    dropped: Vec<(&'static str, Counter)>,
    deleted: Vec<(&'static str, Counter)>,
}

impl std::fmt::Debug for LogMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogMetrics").finish_non_exhaustive()
    }
}

impl LogMetrics {
    /// `dropped`: the reasons for dropped records. `deleted`: the reasons for deleted files.
    #[must_use]
    pub fn new(telemetry: &Telemetry, dropped: &[&'static str], deleted: &[&'static str]) -> LogMetrics {
        let scope = telemetry.process();
        // The series exist from the start, so that "none dropped" is 0 and not absent.
        let counters = |metric, reasons: &[&'static str]| {
            let counter = |reason: &&'static str| {
                let counter = scope.counter(metric, &[("reason", *reason)]);
                counter.increment(0);
                (*reason, counter)
            };
            reasons.iter().map(counter).collect()
        };
        let records = scope.counter(&names::LOG_RECORDS, &[]);
        records.increment(0);
        let kept_share = scope.gauge(&names::LOG_KEPT_SHARE, &[]);
        kept_share.set(1.0);
        let left_out = scope.counter(&names::LOG_LEFT_OUT, &[]);
        left_out.increment(0);
        LogMetrics {
            records,
            kept_share,
            left_out,
            feedback: scope.counter(&names::FEEDBACK, &[]),
            queue_bytes: scope.gauge(&names::LOG_QUEUE_BYTES, &[]),
            segment_bytes: scope.gauge(&names::LOG_BYTES, &[("kind", "segments")]),
            sealed_bytes: scope.gauge(&names::LOG_BYTES, &[("kind", "sealed")]),
            sync: scope.histogram(&names::LOG_SYNC, &[]),
            seal: scope.histogram(&names::LOG_SEAL, &[]),
            failing: scope.gauge(&names::LOG_FAILING, &[]),
            dropped: counters(&names::LOG_DROPPED, dropped),
            deleted: counters(&names::LOG_DELETED, deleted),
        }
    }

    pub fn dropped(&self, reason: &str, records: u64) {
        add(&self.dropped, reason, records);
    }

    pub fn deleted(&self, reason: &str) {
        add(&self.deleted, reason, 1);
    }
}

fn add(counters: &[(&'static str, Counter)], reason: &str, n: u64) {
    if let Some((_, counter)) = counters.iter().find(|(known, _)| *known == reason) {
        counter.increment(n);
    }
}
