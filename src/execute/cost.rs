//! The measured cost of runs, and what follows from it: the size of batches and the number of parts of a split run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Costs are kept per size: powers of two of a run's input elements.
const BUCKETS: u32 = 32;

/// A smoothed run time for each size. Reads and writes are single relaxed atomics, so a lost update loses one sample.
#[derive(Debug, Default)]
pub struct CostCurve {
    points: [Point; BUCKETS as usize],
    /// Calls of [`CostCurve::batch_elements`].
    batch_calls: AtomicU64,
    /// Calls of [`CostCurve::parts`].
    parts_calls: AtomicU64,
}

#[derive(Debug, Default)]
struct Point {
    /// The smoothed run time; 0 before the first run.
    nanos: AtomicU64,
    /// The smoothed number of elements of these runs.
    elements: AtomicU64,
    /// The number of these runs, up to [`ENOUGH_RUNS`].
    runs: AtomicU64,
}

/// A point of the measured curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Elements of all inputs of a run, smoothed over runs of about this size.
    pub elements: usize,
    pub took: Duration,
}

impl Measured {
    fn nanos_each(&self) -> f64 {
        self.took.as_nanos() as f64 / self.elements.max(1) as f64
    }
}

/// A batch is large enough where an element costs at most this many times the lowest measured cost. Beyond that, twice the rows would
/// save less than a tenth per element and make the first request wait longer.
const NEAR_BEST: f64 = 1.1;

/// One call in this many allows twice the size, so that a size that was slow once because of the machine is measured again.
const RETRY_LARGER: u64 = 64;

/// A run is worth splitting where all parts together cost at most this many times the whole run. Idle cores cost nothing, but a request
/// that comes a moment later needs them. If each part reads all weights of a model, the cost grows with the number of parts. The
/// limit is not lower because parts and whole runs are measured at different times, and the speed of a shared machine varies by half.
const MAX_SPLIT_COST: f64 = 1.5;

/// A size is judged only after this many runs: the first runs allocate memory that later ones reuse.
const ENOUGH_RUNS: u64 = 16;

/// One call in this many returns another number of parts than the best one, so that it is measured again. Rare, because it may be slower
/// than the whole run. Odd, so that callers that alternate between two sizes do not always hit the same one.
const RETRY_SPLIT: u64 = 101;

/// One call in this many does not split a run that would be split, so that the whole run stays measured.
const RETRY_WHOLE: u64 = 251;

impl CostCurve {
    /// A curve without measurements.
    #[must_use]
    pub fn new() -> CostCurve {
        CostCurve::default()
    }

    fn bucket(elements: usize) -> usize {
        (usize::BITS - elements.leading_zeros()).min(BUCKETS - 1) as usize
    }

    /// Adds one run's time with a weight of 1/8. A time below a quarter of the known one has a weight of 1/2: a first run pays for page
    /// faults, and a model's cost may depend on its input.
    pub fn learn(&self, elements: usize, took: Duration) {
        // Answered without a run.
        if took.is_zero() {
            return;
        }
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 16);
        let size = u64::try_from(elements).unwrap_or(u64::MAX).min(u64::MAX / 16);
        let Point { nanos, elements: sizes, runs } = &self.points[Self::bucket(elements)];
        let before = runs.load(Ordering::Relaxed);
        if before < ENOUGH_RUNS {
            runs.store(before + 1, Ordering::Relaxed);
        }
        let known = nanos.load(Ordering::Relaxed);
        let smoothed = |known: u64, new: u64| (known * 7 + new) / 8;
        let (next, size) = if known == 0 {
            (took, size)
        } else if took < known / 4 {
            (u64::midpoint(known, took), size)
        } else {
            (smoothed(known, took), smoothed(sizes.load(Ordering::Relaxed), size))
        };
        nanos.store(next.max(1), Ordering::Relaxed);
        sizes.store(size, Ordering::Relaxed);
    }

    fn point(&self, bucket: usize) -> Option<Measured> {
        let Point { nanos, elements, .. } = &self.points[bucket];
        let nanos = Some(nanos.load(Ordering::Relaxed)).filter(|n| *n > 0)?;
        let elements = usize::try_from(elements.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        Some(Measured { elements, took: Duration::from_nanos(nanos) })
    }

    /// The measured sizes, from the smallest to the largest.
    pub fn measured(&self) -> impl Iterator<Item = Measured> {
        (0..BUCKETS as usize).filter_map(|bucket| self.point(bucket))
    }

    /// The longest time of the measured sizes; zero before the first run.
    #[must_use]
    pub fn largest(&self) -> Duration {
        self.measured().map(|point| point.took).max().unwrap_or_default()
    }

    /// The expected time of a run of this size; `None` before the first run. For a size that was not measured, the smaller one of two
    /// upper estimates: the nearest smaller size scaled by its elements, and the nearest larger size as it is.
    pub fn estimate(&self, elements: usize) -> Option<Duration> {
        let at = Self::bucket(elements);
        let known = |i: usize| self.point(i).map(|point| u64::try_from(point.took.as_nanos()).unwrap_or(u64::MAX));
        let smaller = || (0..at).rev().find_map(|i| known(i).map(|n| n.saturating_mul(1 << (at - i))));
        let larger = || (at + 1..BUCKETS as usize).find_map(known);
        let nanos = known(at).or_else(|| smaller().into_iter().chain(larger()).min())?;
        Some(Duration::from_nanos(nanos))
    }

    /// Like [`CostCurve::estimate`], but `None` where the nearest measured size has less than half of the elements. Cost may grow with the
    /// square or the cube of the elements: a size that was never run may be far more expensive than its scaled estimate.
    pub(super) fn estimate_near(&self, elements: usize) -> Option<Duration> {
        let at = Self::bucket(elements);
        let is_near = (at.saturating_sub(1)..BUCKETS as usize).any(|i| self.point(i).is_some());
        if is_near { self.estimate(elements) } else { None }
    }

    /// The number of elements a batch is worth having, where a single row has `single`. This is the smallest size whose cost per element
    /// is near the lowest measured one. Where the largest measured size is cheaper than all smaller ones, it is twice that size, to
    /// measure further. Where batches save nothing, it is about `single`, because the first request of a batch waits for the last.
    pub fn batch_elements(&self, single: usize) -> usize {
        let known: Vec<(usize, f64)> = (Self::bucket(single)..BUCKETS as usize)
            .filter_map(|bucket| Some((bucket, self.point(bucket)?.nanos_each())))
            .collect();
        let upper = |bucket: usize| (1usize << bucket.min(BUCKETS as usize - 1)) - 1;
        let lowest = |points: &[(usize, f64)]| points.iter().map(|(_, each)| *each).fold(f64::INFINITY, f64::min);
        let Some(((largest, at_largest), below)) = known.split_last() else { return single };
        if at_largest * NEAR_BEST <= lowest(below) {
            return upper(largest + 1).max(single);
        }
        let best = lowest(&known);
        let larger = self.batch_calls.fetch_add(1, Ordering::Relaxed) % RETRY_LARGER == RETRY_LARGER - 1;
        let enough = known.iter().find(|(_, each)| *each <= best * NEAR_BEST);
        enough.map_or(single, |(bucket, _)| upper(bucket + usize::from(larger)).max(single))
    }

    /// The number of parts to split a run of this many elements into, at most `most`: as many as take at least `least` each and together
    /// cost at most [`MAX_SPLIT_COST`] times the whole run. Until both part and whole are measured often enough, they are tried in turn.
    pub fn parts(&self, elements: usize, most: usize, least: Duration) -> usize {
        let each = |elements: usize| self.point(Self::bucket(elements)).map(|point| point.nanos_each());
        let whole = each(elements);
        let runs = |elements: usize| self.points[Self::bucket(elements)].runs.load(Ordering::Relaxed);
        let whole_runs = runs(elements);
        let is_worth = |parts: &usize| match (each(elements / parts), whole, runs(elements / parts)) {
            (Some(part), Some(whole), ENOUGH_RUNS..) if whole_runs >= ENOUGH_RUNS => part <= whole * MAX_SPLIT_COST,
            (_, _, part_runs) => part_runs <= whole_runs,
        };
        let is_long_enough = |parts: &usize| self.estimate(elements / parts).is_some_and(|part| part >= least);
        let Some(possible) = (2..=most).rev().find(is_long_enough) else { return 1 };
        let worth = (2..=possible).rev().find(is_worth);
        let call = self.parts_calls.fetch_add(1, Ordering::Relaxed);
        if call % RETRY_SPLIT == RETRY_SPLIT - 1 {
            // Each possible number in turn.
            return 2 + usize::try_from(call / RETRY_SPLIT).unwrap_or_default() % (possible - 1);
        }
        worth.filter(|_| call % RETRY_WHOLE != RETRY_WHOLE - 1).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A curve with runs of 2^0 … 2^n rows of 1024 elements each. `cost` gives the microseconds for a number of rows.
    fn curve(n: u32, cost: impl Fn(usize) -> usize) -> CostCurve {
        let curve = CostCurve::new();
        for rows in (0..=n).map(|i| 1 << i) {
            let micros = u64::try_from(cost(rows)).unwrap();
            curve.learn(rows * 1024, Duration::from_micros(micros));
        }
        curve
    }

    #[test]
    fn batches_grow_until_an_element_gets_no_cheaper() {
        let falling = |rows| 1000 + 10 * rows;
        for n in 0..6 {
            let size = curve(n, falling).batch_elements(1024) / 1024;
            assert!(size >= 2 << n, "after {n} doublings {size}");
        }
        // From 8 rows on a row costs the same.
        let flat = |rows: usize| if rows <= 8 { 1000 } else { 125 * rows };
        let size = curve(6, flat).batch_elements(1024) / 1024;
        assert!((8..16).contains(&size), "{size}");
    }

    #[test]
    fn batches_stay_small_where_they_save_nothing() {
        let size = curve(4, |rows| 1000 * rows + rows).batch_elements(1024) / 1024;
        assert!(size < 2, "{size}");
        let worse = curve(2, |rows| 1000 * rows * rows).batch_elements(1024) / 1024;
        assert!(worse < 2, "{worse}");
    }

    #[test]
    fn a_new_curve_has_no_measurements() {
        assert_eq!(CostCurve::new().batch_elements(1024), 1024);
        assert_eq!(CostCurve::new().measured().count(), 0);
    }

    #[test]
    fn an_unmeasured_size_is_scaled_from_a_smaller_one() {
        let curve = curve(0, |_| 1000);
        assert_eq!(curve.estimate(1024), Some(Duration::from_millis(1)));
        assert_eq!(curve.estimate(4096), Some(Duration::from_millis(4)));
        assert_eq!(curve.estimate(1), Some(Duration::from_millis(1)));
    }
}
