//! What a run costs, learnt from the runs themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Sizes are remembered by powers of two of the request's elements.
const BUCKETS: u32 = 32;

/// A smoothed run time per size of request. Reads and writes are single relaxed atomics: a lost update costs one sample.
#[derive(Debug)]
pub struct CostCurve {
    nanos: [AtomicU64; BUCKETS as usize],
}

impl CostCurve {
    pub fn new() -> CostCurve {
        CostCurve { nanos: [const { AtomicU64::new(0) }; BUCKETS as usize] }
    }

    fn bucket(elements: usize) -> usize {
        (usize::BITS - elements.leading_zeros()).min(BUCKETS - 1) as usize
    }

    /// Takes in one run's time, with a weight of 1/8. Where the new time is far from what was known, it counts for half: a
    /// first run pays for page faults, and a model's cost may change with its input.
    pub fn learn(&self, elements: usize, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 16);
        let slot = &self.nanos[Self::bucket(elements)];
        let known = slot.load(Ordering::Relaxed);
        let next = if known == 0 {
            took
        } else if took < known / 4 {
            u64::midpoint(known, took)
        } else {
            (known * 7 + took) / 8
        };
        slot.store(next.max(1), Ordering::Relaxed);
    }

    /// What a run of this size should take; `None` before any run was seen. A size not seen yet is taken from the nearest
    /// smaller one, scaled by the elements, or from the nearest larger one as it is: both err towards too long.
    pub fn expect(&self, elements: usize) -> Option<Duration> {
        let at = Self::bucket(elements);
        let known = |i: usize| Some(self.nanos[i].load(Ordering::Relaxed)).filter(|n| *n > 0);
        let nanos = known(at)
            .or_else(|| (0..at).rev().find_map(|i| known(i).map(|n| n.saturating_mul(1 << (at - i)))))
            .or_else(|| (at + 1..BUCKETS as usize).find_map(known))?;
        Some(Duration::from_nanos(nanos))
    }
}
