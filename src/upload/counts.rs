//! What is counted of uploads.

use crate::record::Waiting;
use crate::telemetry::{Telemetry, names};
use jiff::Timestamp;
use metrics::{Counter, Gauge};

pub(super) struct Counts {
    pub files: Counter,
    pub bytes: Counter,
    pub failures: Counter,
    waiting_files: Gauge,
    waiting_bytes: Gauge,
    oldest: Gauge,
}

impl Counts {
    pub(super) fn new(telemetry: &Telemetry) -> Counts {
        let process = telemetry.process();
        let counter = |metric| {
            let counter = process.counter(metric, &[]);
            counter.increment(0);
            counter
        };
        Counts {
            files: counter(&names::UPLOADED_FILES),
            bytes: counter(&names::UPLOADED_BYTES),
            failures: counter(&names::UPLOAD_FAILURES),
            waiting_files: process.gauge(&names::UPLOAD_WAITING_FILES, &[]),
            waiting_bytes: process.gauge(&names::UPLOAD_WAITING_BYTES, &[]),
            oldest: process.gauge(&names::UPLOAD_WAITING_SECONDS, &[]),
        }
    }

    pub(super) fn waiting(&self, waiting: &Waiting) {
        self.waiting_files.set(waiting.files as f64);
        self.waiting_bytes.set(waiting.bytes as f64);
        let age = waiting.oldest.map_or(0.0, |oldest| Timestamp::now().duration_since(oldest).as_secs_f64());
        self.oldest.set(age.max(0.0));
    }
}
