//! What is counted of an arm while a rollout watches it: engine times, and answers that differ from the one before.

use super::counts::{LATENCY_BUCKETS, latency_bucket};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Classes of the number of rows that ran together: 1, 2, 3, 4, then two for each doubling up to 64, and more. Within one class, the time per
/// row does not depend much on how many rows there were.
pub(crate) const ROW_CLASSES: usize = 13;

/// What the rollout tells an arm, so that requests can be judged when they end. It comes from earlier requests only. In microseconds; what
/// takes longer is slow. `u64::MAX`: nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watch {
    /// The number of the tick; see [`super::keys`].
    pub(crate) tick: u32,
    /// By the latency of the control.
    pub(crate) slow_us: u64,
    /// By the limit of the plan.
    pub(crate) limit_us: u64,
    /// By the latency from before the rollout.
    pub(crate) before_us: u64,
    /// By the control's engine time per row, for each class of rows.
    pub(crate) engine_us: [u64; ROW_CLASSES],
}

/// The state of a watched arm.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) slow_us: AtomicU64,
    pub(super) limit_us: AtomicU64,
    pub(super) before_us: AtomicU64,
    engine_us: [AtomicU64; ROW_CLASSES],
    /// Engine times per row.
    engine: Vec<[AtomicU64; LATENCY_BUCKETS]>,
    /// A hash of the last answer.
    last_answer: AtomicU64,
    changed: AtomicU64,
}

/// The counts of a watched arm at one time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WatchedEvidence {
    /// Engine times per row, by class of rows and by [`latency_bucket`].
    pub(crate) engine: Vec<[u64; LATENCY_BUCKETS]>,
    /// Answers that differ from the answer before.
    pub(crate) changed: u64,
}

impl Default for Watched {
    fn default() -> Watched {
        let unset = || AtomicU64::new(u64::MAX);
        Watched {
            slow_us: unset(),
            limit_us: unset(),
            before_us: unset(),
            engine_us: [const { AtomicU64::new(u64::MAX) }; ROW_CLASSES],
            engine: (0..ROW_CLASSES).map(|_| [const { AtomicU64::new(0) }; LATENCY_BUCKETS]).collect(),
            last_answer: AtomicU64::new(0),
            changed: AtomicU64::new(0),
        }
    }
}

impl Watched {
    pub(super) fn set(&self, watch: &Watch) {
        self.slow_us.store(watch.slow_us, Relaxed);
        self.limit_us.store(watch.limit_us, Relaxed);
        self.before_us.store(watch.before_us, Relaxed);
        for (class, us) in self.engine_us.iter().zip(watch.engine_us) {
            class.store(us, Relaxed);
        }
    }

    /// Counts a run. Returns whether it was slow.
    pub(super) fn ran(&self, infer: Duration, rows: usize) -> bool {
        let class = row_class(rows);
        let per_row = infer.div_f64(rows.max(1) as f64);
        self.engine[class][latency_bucket(per_row)].fetch_add(1, Relaxed);
        per_row.as_micros() > u128::from(self.engine_us[class].load(Relaxed))
    }

    /// Counts an answer by its hash. Returns whether it differs from the one before.
    pub(super) fn answered(&self, hash: u64) -> bool {
        if self.last_answer.load(Relaxed) == hash {
            return false;
        }
        self.last_answer.store(hash, Relaxed);
        self.changed.fetch_add(1, Relaxed);
        true
    }

    pub(super) fn read(&self) -> WatchedEvidence {
        let of = |class: &[AtomicU64; LATENCY_BUCKETS]| std::array::from_fn(|bucket| class[bucket].load(Relaxed));
        WatchedEvidence { engine: self.engine.iter().map(of).collect(), changed: self.changed.load(Relaxed) }
    }
}

impl WatchedEvidence {
    /// Adds the counts of another arm.
    pub(crate) fn add(&mut self, other: &WatchedEvidence) {
        self.changed += other.changed;
        for (sum, more) in self.engine.iter_mut().flatten().zip(other.engine.iter().flatten()) {
            *sum += more;
        }
    }
}

/// The class of a number of rows.
fn row_class(rows: usize) -> usize {
    match rows {
        0..=4 => rows.saturating_sub(1),
        5..=64 => {
            let octave = (rows - 1).ilog2() as usize;
            4 + 2 * (octave - 2) + ((rows - 1) >> (octave - 1) & 1)
        }
        _ => ROW_CLASSES - 1,
    }
}

/// The smallest number of rows of a class.
#[must_use]
pub(crate) fn rows_of_class(class: usize) -> usize {
    match class {
        0..=3 => class + 1,
        _ => ((2 + (class & 1)) << (1 + (class - 4) / 2)) + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_rows_are_ordered_and_within_half_as_many_again() {
        for class in 0..ROW_CLASSES {
            let least = rows_of_class(class);
            assert_eq!(row_class(least), class);
            if class > 0 {
                assert_eq!(row_class(least - 1), class - 1, "{least} rows");
                let before = rows_of_class(class - 1);
                assert!((least - 1) as f64 <= 1.5 * before as f64, "{before} to {}", least - 1);
            }
        }
        assert_eq!((row_class(0), row_class(usize::MAX)), (0, ROW_CLASSES - 1));
    }

    #[test]
    fn an_answer_counts_when_it_differs_from_the_one_before() {
        let watched = Watched::default();
        assert_eq!([1, 1, 2, 2, 1].map(|hash| watched.answered(hash)), [true, false, true, false, true]);
        assert_eq!(watched.read().changed, 3);
    }

    #[test]
    fn the_engine_time_counts_per_row() {
        let watched = Watched::default();
        assert!(!watched.ran(Duration::from_millis(8), 8), "nothing is slow before the first threshold");
        let mut watch = Watch { tick: 0, slow_us: 0, limit_us: 0, before_us: 0, engine_us: [u64::MAX; ROW_CLASSES] };
        watch.engine_us[5] = 1100;
        watched.set(&watch);
        assert!(!watched.ran(Duration::from_millis(8), 8) && watched.ran(Duration::from_millis(9), 8));
        assert!(!watched.ran(Duration::from_millis(9), 1), "another class");
        let evidence = watched.read();
        assert_eq!(evidence.engine[5][latency_bucket(Duration::from_millis(1))], 2);
    }
}
