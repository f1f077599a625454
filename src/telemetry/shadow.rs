//! What became of the copies a shadow was sampled for.

use super::names;
use super::scope::Scope;
use metrics::Counter;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a copy was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// As many as may wait for this shadow do.
    QueueFull,
    /// As many bytes as may wait for all shadows do.
    QueueBytes,
    /// Requests of callers waited for a worker.
    Busy,
    /// The version is no shadow any more.
    Gone,
    /// The server stops.
    Stopping,
}

impl Dropped {
    pub const ALL: [Dropped; 5] =
        [Dropped::QueueFull, Dropped::QueueBytes, Dropped::Busy, Dropped::Gone, Dropped::Stopping];

    /// The metric's label.
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

/// One version's copies: counted for the scraper and for the admin plane, which cannot read the scraper's counters.
#[derive(Debug)]
pub struct ShadowMetrics {
    offered: Both,
    compared: Both,
    disagreed: Both,
    dropped: [Both; Dropped::ALL.len()],
    waiting: AtomicU64,
}

#[derive(Debug)]
struct Both {
    shown: Counter,
    count: AtomicU64,
}

impl Both {
    fn new(shown: Counter) -> Both {
        // A series from the first copy on, so that "none dropped" is a 0 and not nothing.
        shown.increment(0);
        Both { shown, count: AtomicU64::new(0) }
    }

    fn add(&self) {
        self.shown.increment(1);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl ShadowMetrics {
    pub(super) fn new(scope: &Scope, model: &str, version: &str) -> ShadowMetrics {
        let labels: [(&'static str, &str); 2] = [("model", model), ("version", version)];
        let dropped = |why: Dropped| {
            let labels = [("model", model), ("version", version), ("reason", why.as_str())];
            Both::new(scope.counter(&names::SHADOW_DROPPED, &labels))
        };
        ShadowMetrics {
            offered: Both::new(scope.counter(&names::SHADOW_OFFERED, &labels)),
            compared: Both::new(scope.counter(&names::SHADOW_COMPARED, &labels)),
            disagreed: Both::new(scope.counter(&names::SHADOW_DISAGREED, &labels)),
            dropped: Dropped::ALL.map(dropped),
            waiting: AtomicU64::new(0),
        }
    }

    /// Counts a copy in; answers how many there are now that neither were compared nor dropped.
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

    pub fn dropped(&self, why: Dropped) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.dropped[why as usize].add();
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
    pub fn dropped_so_far(&self, why: Dropped) -> u64 {
        self.dropped[why as usize].get()
    }
}
