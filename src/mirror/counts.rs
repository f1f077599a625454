//! What is counted for each source.

use crate::telemetry::{Telemetry, names};
use jiff::Timestamp;
use metrics::{Counter, Gauge};

pub(super) struct Counts {
    rounds_ok: Counter,
    rounds_failed: Counter,
    pub downloads_ok: Counter,
    pub downloads_failed: Counter,
    pub bytes: Counter,
    last_read: Gauge,
    cache: Gauge,
}

impl Counts {
    /// `source` comes from the configuration, so the labels are bounded.
    pub(super) fn new(telemetry: &Telemetry, source: &str) -> Counts {
        let process = telemetry.process();
        let result = |metric, result| process.counter(metric, &[("source", source), ("result", result)]);
        Counts {
            rounds_ok: result(&names::SOURCE_ROUNDS, "ok"),
            rounds_failed: result(&names::SOURCE_ROUNDS, "failed"),
            downloads_ok: result(&names::SOURCE_DOWNLOADS, "ok"),
            downloads_failed: result(&names::SOURCE_DOWNLOADS, "failed"),
            bytes: process.counter(&names::SOURCE_BYTES, &[("source", source)]),
            last_read: process.gauge(&names::SOURCE_LAST_READ, &[("source", source)]),
            cache: process.gauge(&names::SOURCE_CACHE_BYTES, &[]),
        }
    }

    pub(super) fn round(&self, is_ok: bool, cached: u64) {
        if is_ok {
            self.rounds_ok.increment(1);
            self.last_read.set(Timestamp::now().as_second() as f64);
        } else {
            self.rounds_failed.increment(1);
        }
        self.cache.set(cached as f64);
    }
}
