//! What a run costs, learnt from the runs themselves, and how large a run is worth making.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Sizes are remembered by powers of two of the request's elements.
const BUCKETS: u32 = 32;

/// A smoothed run time per size of request. Reads and writes are single relaxed atomics: a lost update costs one sample.
#[derive(Debug, Default)]
pub struct CostCurve {
    points: [Point; BUCKETS as usize],
    asked: AtomicU64,
    asked_parts: AtomicU64,
}

#[derive(Debug, Default)]
struct Point {
    nanos: AtomicU64,
    /// Of the runs that the time is of, smoothed alike.
    elements: AtomicU64,
    /// Runs it is of, up to [`SURE`].
    runs: AtomicU64,
}

/// One point of a measured curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Elements of all inputs of a run, about.
    pub elements: usize,
    pub took: Duration,
}

impl Measured {
    fn nanos_each(&self) -> f64 {
        self.took.as_nanos() as f64 / self.elements.max(1) as f64
    }
}

/// A run is large enough where it costs no more than this many times what an element costs at best: twice the rows for a tenth more
/// of each is a longer wait for little.
const NEAR_BEST: f64 = 1.1;

/// One time in so many there is room for twice as many: a size that was slow once, for reasons of the machine, is tried again.
const AGAIN: u64 = 64;

/// A run is worth cutting where its parts cost no more than this many times the whole, all together: cores that idle cost nothing, but
/// whoever comes a moment later wants them. What reads all of a model's weights for a few rows costs as many times as there are parts.
/// Shared machines are half as fast again in one second as in the next, and parts and wholes were not measured in the same one.
const NEAR_WHOLE: f64 = 1.5;

/// A size is not given up before so many runs of it: the first of them pay for memory that later ones find there.
const SURE: u64 = 16;

/// One time in so many a run is cut that would not be, or in another number of parts, so that one that was slow once is tried again. Few,
/// as it may take longer than the whole; and odd, as callers that take turns with two sizes should not always meet the same.
const CUT_AGAIN: u64 = 101;

/// One time in so many a run that would be cut is not, so that the whole stays measured.
const WHOLE_AGAIN: u64 = 251;

impl CostCurve {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> CostCurve {
        CostCurve::default()
    }

    fn bucket(elements: usize) -> usize {
        (usize::BITS - elements.leading_zeros()).min(BUCKETS - 1) as usize
    }

    /// Takes in one run's time, with a weight of 1/8. Where the new time is far from what was known, it counts for half: a
    /// first run pays for page faults, and a model's cost may change with its input.
    pub fn learn(&self, elements: usize, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 16);
        let size = u64::try_from(elements).unwrap_or(u64::MAX).min(u64::MAX / 16);
        let Point { nanos, elements: sizes, runs } = &self.points[Self::bucket(elements)];
        let before = runs.load(Ordering::Relaxed);
        if before < SURE {
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

    /// The sizes that were run, from the smallest.
    pub fn measured(&self) -> impl Iterator<Item = Measured> {
        (0..BUCKETS as usize).filter_map(|bucket| self.point(bucket))
    }

    /// What a run of this size should take; `None` before any run was seen. A size not seen yet is taken from the nearest
    /// smaller one, scaled by the elements, or from the nearest larger one as it is: both err towards too long, so the less counts.
    pub fn expect(&self, elements: usize) -> Option<Duration> {
        let at = Self::bucket(elements);
        let known = |i: usize| self.point(i).map(|point| u64::try_from(point.took.as_nanos()).unwrap_or(u64::MAX));
        let smaller = || (0..at).rev().find_map(|i| known(i).map(|n| n.saturating_mul(1 << (at - i))));
        let larger = || (at + 1..BUCKETS as usize).find_map(known);
        let nanos = known(at).or_else(|| smaller().into_iter().chain(larger()).min())?;
        Some(Duration::from_nanos(nanos))
    }

    /// How many elements a run is worth having, where a lone request has `lone`: as many as bring what an element costs near the
    /// best that was measured, and twice as many as were ever tried where those were better than all below. What is worth nothing
    /// together stays alone: the first of a batch would wait for the last.
    pub fn room(&self, lone: usize) -> usize {
        let known: Vec<(usize, f64)> = (Self::bucket(lone)..BUCKETS as usize)
            .filter_map(|bucket| Some((bucket, self.point(bucket)?.nanos_each())))
            .collect();
        let most = |bucket: usize| (1usize << bucket.min(BUCKETS as usize - 1)) - 1;
        let least = |points: &[(usize, f64)]| points.iter().map(|(_, each)| *each).fold(f64::INFINITY, f64::min);
        let Some(((largest, at_largest), below)) = known.split_last() else { return lone };
        if at_largest * NEAR_BEST <= least(below) {
            return most(largest + 1).max(lone);
        }
        let best = least(&known);
        let again = self.asked.fetch_add(1, Ordering::Relaxed) % AGAIN == AGAIN - 1;
        let enough = known.iter().find(|(_, each)| *each <= best * NEAR_BEST);
        enough.map_or(lone, |(bucket, _)| most(bucket + usize::from(again)).max(lone))
    }

    /// In how many parts a run of so many elements is worth cutting, where at most `most` run at the same time: as many as take `least`
    /// each, and together cost near what the whole does. What was not measured often enough is tried, and so is the whole.
    pub fn parts(&self, elements: usize, most: usize, least: Duration) -> usize {
        let each = |elements: usize| self.point(Self::bucket(elements)).map(|point| point.nanos_each());
        let whole = each(elements);
        let runs = |elements: usize| self.points[Self::bucket(elements)].runs.load(Ordering::Relaxed);
        let of_whole = runs(elements);
        let pays = |parts: &usize| match (each(elements / parts), whole, runs(elements / parts)) {
            (Some(part), Some(whole), SURE..) if of_whole >= SURE => part <= whole * NEAR_WHOLE,
            // In turn, until both are known.
            (_, _, of_part) => of_part <= of_whole,
        };
        let long = |parts: &usize| self.expect(elements / parts).is_some_and(|part| part >= least);
        let Some(can) = (2..=most).rev().find(long) else { return 1 };
        let worth = (2..=can).rev().find(pays);
        let asked = self.asked_parts.fetch_add(1, Ordering::Relaxed);
        if asked % CUT_AGAIN == CUT_AGAIN - 1 {
            // Each number in its turn.
            return 2 + usize::try_from(asked / CUT_AGAIN).unwrap_or_default() % (can - 1);
        }
        worth.filter(|_| asked % WHOLE_AGAIN != WHOLE_AGAIN - 1).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A curve that has seen runs of 2^0 … 2^n rows of 1024 elements, at the time that `cost` gives for so many rows.
    fn curve(n: u32, cost: impl Fn(usize) -> usize) -> CostCurve {
        let curve = CostCurve::new();
        for rows in (0..=n).map(|i| 1 << i) {
            let micros = u64::try_from(cost(rows)).unwrap();
            curve.learn(rows * 1024, Duration::from_micros(micros));
        }
        curve
    }

    #[test]
    fn what_is_cheaper_together_is_tried_larger_until_it_is_not() {
        let falling = |rows| 1000 + 10 * rows;
        for n in 0..6 {
            let room = curve(n, falling).room(1024) / 1024;
            assert!(room >= 2 << n, "after {n} doublings {room}");
        }
        // From 8 rows on a row costs the same.
        let flat = |rows: usize| if rows <= 8 { 1000 } else { 125 * rows };
        let room = curve(6, flat).room(1024) / 1024;
        assert!((8..16).contains(&room), "{room}");
    }

    #[test]
    fn what_is_worth_nothing_together_stays_nearly_alone() {
        let room = curve(4, |rows| 1000 * rows + rows).room(1024) / 1024;
        assert!(room < 2, "{room}");
        let worse = curve(2, |rows| 1000 * rows * rows).room(1024) / 1024;
        assert!(worse < 2, "{worse}");
    }

    #[test]
    fn nothing_is_known_of_what_never_ran() {
        assert_eq!(CostCurve::new().room(1024), 1024);
        assert_eq!(CostCurve::new().measured().count(), 0);
    }

    #[test]
    fn a_size_not_seen_is_scaled_from_a_smaller_one() {
        let curve = curve(0, |_| 1000);
        assert_eq!(curve.expect(1024), Some(Duration::from_millis(1)));
        assert_eq!(curve.expect(4096), Some(Duration::from_millis(4)));
        assert_eq!(curve.expect(1), Some(Duration::from_millis(1)));
    }
}
