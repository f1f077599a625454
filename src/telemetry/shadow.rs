//! Counts of the copies of requests for shadows.

use super::names;
use super::scope::Scope;
use metrics::Counter;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a copy was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// The queue of this shadow is full.
    QueueFull,
    /// The queues of all shadows hold as many bytes as they may.
    QueueBytes,
    /// Requests of callers were waiting for a worker.
    Busy,
    /// The version is no longer a shadow.
    Gone,
    /// The server is stopping.
    Stopping,
}

impl Dropped {
    pub const ALL: [Dropped; 5] =
        [Dropped::QueueFull, Dropped::QueueBytes, Dropped::Busy, Dropped::Gone, Dropped::Stopping];

    /// The value of the label `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Dropped::QueueFull => "queue_full",
            Dropped::QueueBytes => "queue_bytes",
            Dropped::Busy => "busy",
            Dropped::Gone => "gone",
            Dropped::Stopping => "stopping",
        }
    }
}

/// The copies for one version. Each count is kept twice: as a metric, and as a number that the admin plane can read.
#[derive(Debug)]
pub struct ShadowMetrics {
    offered: ReadableCounter,
    compared: ReadableCounter,
    disagreed: ReadableCounter,
    dropped: [ReadableCounter; Dropped::ALL.len()],
    waiting: AtomicU64,
}

#[derive(Debug)]
struct ReadableCounter {
    metric: Counter,
    count: AtomicU64,
}

impl ReadableCounter {
    fn new(metric: Counter) -> ReadableCounter {
        // The series exists from the start, so that "none dropped" is 0 and not absent.
        metric.increment(0);
        ReadableCounter { metric, count: AtomicU64::new(0) }
    }

    fn add(&self) {
        self.metric.increment(1);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl ShadowMetrics {
    pub(super) fn new(scope: &Scope, model: &str, version: &str) -> ShadowMetrics {
        let labels: [(&'static str, &str); 2] = [("model", model), ("version", version)];
        let dropped = |reason: Dropped| {
            let labels = [("model", model), ("version", version), ("reason", reason.as_str())];
            ReadableCounter::new(scope.counter(&names::SHADOW_DROPPED, &labels))
        };
        ShadowMetrics {
            offered: ReadableCounter::new(scope.counter(&names::SHADOW_OFFERED, &labels)),
            compared: ReadableCounter::new(scope.counter(&names::SHADOW_COMPARED, &labels)),
            disagreed: ReadableCounter::new(scope.counter(&names::SHADOW_DISAGREED, &labels)),
            dropped: Dropped::ALL.map(dropped),
            waiting: AtomicU64::new(0),
        }
    }

    /// Counts a new copy. Returns how many copies are neither compared nor dropped yet.
    pub fn offered(&self) -> u64 {
        self.offered.add();
        self.waiting.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn compared(&self, disagreed: bool) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.compared.add();
        if disagreed {
            self.disagreed.add();
        }
    }

    pub fn dropped(&self, reason: Dropped) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.dropped[reason as usize].add();
    }

    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn offered_so_far(&self) -> u64 {
        self.offered.get()
    }

    #[must_use]
    pub fn compared_so_far(&self) -> u64 {
        self.compared.get()
    }

    #[must_use]
    pub fn disagreed_so_far(&self) -> u64 {
        self.disagreed.get()
    }

    #[must_use]
    pub fn dropped_so_far(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize].get()
    }
}
