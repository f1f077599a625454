//! Keeps only a share of the records while the log cannot keep up with all of them.
//!
//! Large records go first. While the log is behind, there is a size up to which every record is kept. A larger record is kept with the
//! probability size ÷ its own size, so that a record takes no more than that size on average (threshold sampling: Duffield, Lund and
//! Thorup, "Learn more, sample less", IEEE Trans. Inf. Theory 51(5), 2005). While the queue is nearly full, the probability is lower
//! still. The probability is part of the record's `sample_rate`. It depends only on earlier records and on the record's size, never on the
//! draw, so that the sum of 1 ÷ `sample_rate` estimates the number of records without bias.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The sampling of one log.
#[derive(Debug)]
pub(super) struct Sampling {
    /// `false` where answers wait for the disk: such a log refuses records instead.
    enabled: bool,
    /// Bytes up to which every record is kept, as the bits of an `f64`; infinite while all are.
    whole: AtomicU64,
    /// The largest record since the last adjustment.
    largest: AtomicUsize,
    /// Records left out since the start.
    left_out: AtomicU64,
}

/// The share of the queue above which records are sampled, whatever waits to be sealed.
const NEARLY_FULL: f64 = 0.75;
/// Bytes. Every record of at most this size is kept, unless the queue is nearly full.
const SMALLEST: f64 = 64.0;

impl Sampling {
    pub fn new(enabled: bool) -> Sampling {
        Sampling {
            enabled,
            whole: AtomicU64::new(f64::INFINITY.to_bits()),
            largest: AtomicUsize::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// The probability with which a frame of this size is kept now. `full`: the share of the queue that is in use; `None` where the frame does
    /// not fit, so that the queue drops and counts it.
    #[must_use]
    pub fn probability(&self, bytes: usize, full: Option<f64>) -> f64 {
        if !self.enabled {
            return 1.0;
        }
        // Usually a read of a line that nobody writes.
        if bytes > self.largest.load(Ordering::Relaxed) {
            self.largest.fetch_max(bytes, Ordering::Relaxed);
        }
        full.map_or(1.0, |full| probability(self.whole(), bytes, full))
    }

    /// Counts records that were not kept.
    pub fn leave_out(&self, records: usize) {
        self.left_out.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// Records left out since the start.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn set_whole(&self, bytes: f64) {
        self.whole.store(bytes.to_bits(), Ordering::Relaxed);
    }

    /// Bytes up to which every record is kept; infinite while all are.
    #[must_use]
    pub fn whole(&self) -> f64 {
        f64::from_bits(self.whole.load(Ordering::Relaxed))
    }
}

/// Whether a record is kept. The records of a request, its shadows' included, have the same id and time, so they get the same draw. The
/// time makes it independent of the sample that a model's `sample_rate` takes by the id alone, and of callers that use an id again.
#[must_use]
pub(super) fn is_kept(id: &str, ts: i64, probability: f64) -> bool {
    // 53 bits of the hash as a number from 0 (included) to 1 (excluded).
    let draw = (xxh3_64_with_seed(id.as_bytes(), ts.cast_unsigned()) >> 11) as f64 / (1u64 << 53) as f64;
    draw < probability
}

fn probability(whole: f64, bytes: usize, full: f64) -> f64 {
    let by_size = if bytes as f64 <= whole { 1.0 } else { whole / bytes as f64 };
    // A record must be kept with some probability, or estimates would miss it.
    let by_queue = if full <= NEARLY_FULL { 1.0 } else { ((1.0 - full) / (1.0 - NEARLY_FULL)).max(1e-6) };
    by_size * by_queue
}

/// Adjusts the sampling, so that records come as fast as they are sealed. Owned by the writer.
#[derive(Debug)]
pub(super) struct Control {
    since: Instant,
    /// Bytes written, records written and records left out since then.
    bytes: u64,
    records: u64,
    left_out: u64,
    /// The largest share of the queue that was in use.
    full: f64,
    /// When records were left out last.
    last: Option<Instant>,
}

/// How much the log kept lately.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Kept {
    /// The share of the offered records, since the last adjustment.
    pub share: f64,
    /// Records were left out in the last seconds.
    pub samples: bool,
}

/// What the log did between two adjustments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Bytes of records written per second.
    pub written: f64,
    /// Bytes of segments that are sealed per second; `None` before the first was sealed.
    pub sealed: Option<f64>,
    /// Bytes that wait to be sealed, as a share of what may wait.
    pub backlog: f64,
    /// The largest share of the queue that was in use when the writer emptied it.
    pub full: f64,
    /// The largest record that was offered.
    pub largest: usize,
}

/// Time between adjustments.
const EVERY: Duration = Duration::from_millis(200);
/// The log says that it samples until it has kept all records for so long.
const QUIET: Duration = Duration::from_secs(5);
/// The backlog at which sampling may begin. A burst that fits below is kept whole.
const BURST: f64 = 0.25;
/// The backlog that sampling aims for.
const AIM: f64 = 0.5;

impl Control {
    pub fn new() -> Control {
        Control { since: Instant::now(), bytes: 0, records: 0, left_out: 0, full: 0.0, last: None }
    }

    /// Notes the share of the queue that is in use.
    pub fn found(&mut self, full: f64) {
        self.full = self.full.max(full);
    }

    /// Notes what was written.
    pub fn wrote(&mut self, bytes: u64, records: u64) {
        self.bytes += bytes;
        self.records += records;
    }

    /// Adjusts the sampling when it is time. Returns how much was kept, or `None` where it is not time yet.
    pub fn adjust(&mut self, sampling: &Sampling, backlog: f64, sealed: Option<f64>) -> Option<Kept> {
        let took = self.since.elapsed();
        if took < EVERY {
            return None;
        }
        let largest = sampling.largest.swap(0, Ordering::Relaxed);
        let load = Load { written: self.bytes as f64 / took.as_secs_f64(), sealed, backlog, full: self.full, largest };
        if sampling.enabled {
            sampling.whole.store(next(sampling.whole(), &load).to_bits(), Ordering::Relaxed);
        }
        let left_out = sampling.left_out();
        let missing = left_out - self.left_out;
        let share = if missing == 0 { 1.0 } else { self.records as f64 / (self.records + missing) as f64 };
        let now = Instant::now();
        let last = if missing > 0 { Some(now) } else { self.last.filter(|last| now - *last < QUIET) };
        *self = Control { since: now, bytes: 0, records: 0, left_out, full: 0.0, last };
        Some(Kept { share, samples: last.is_some() })
    }
}

/// The size up to which every record is kept from now on.
///
/// Half as much is written where the writer found the queue nearly full. Apart from that, the log may write what is sealed in the same time,
/// and more while little waits: twice as much at a backlog of [`BURST`], as much at [`AIM`], nothing at 0.75. So the backlog settles at
/// [`AIM`] without oscillation: its rate of change is proportional to its distance.
#[must_use]
pub(super) fn next(whole: f64, load: &Load) -> f64 {
    let sealed = if load.backlog <= BURST {
        f64::INFINITY
    } else {
        load.sealed.unwrap_or(load.written) * (1.0 + (AIM - load.backlog) / (AIM - BURST)).max(0.0)
    };
    // The writer is woken when the queue is half full, so more in it means that the writer is too slow.
    let queued = if load.full <= NEARLY_FULL { f64::INFINITY } else { load.written * 0.5 };
    let allowed = sealed.min(queued);
    let ratio = if load.written > 0.0 { (allowed / load.written).clamp(0.5, 1.25) } else { 1.25 };
    if whole.is_infinite() {
        return if ratio >= 1.0 { whole } else { (load.largest as f64 * ratio).max(SMALLEST) };
    }
    let next = (whole * ratio).max(SMALLEST);
    // Nothing is left out at this size, so all are kept again. A pause of the callers does not end the sampling while much waits.
    let all = ratio >= 1.0 && next >= load.largest as f64 && load.backlog <= AIM;
    if all { f64::INFINITY } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The estimate and its standard deviation for records of these sizes, with a threshold that changes as the log does it.
    fn estimate(sizes: &[usize], seed: u64, mut threshold: impl FnMut(usize) -> (f64, f64)) -> (f64, f64) {
        let (mut sum, mut variance) = (0.0, 0.0);
        for (i, size) in sizes.iter().enumerate() {
            let (whole, full) = threshold(i);
            let p = probability(whole, *size, full);
            if p > 0.0 {
                variance += (1.0 - p) / p;
                // Every caller uses the same id: only the time differs.
                if is_kept("the same id", i64::try_from(i as u64 + (seed << 20)).unwrap(), p) {
                    sum += 1.0 / p;
                }
            }
        }
        (sum, variance.sqrt())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn the_sum_of_inverse_rates_estimates_the_number_of_records(
            seed in 0u64..1 << 30,
            sizes in proptest::collection::vec(prop_oneof![100usize..1000, 1000usize..100_000, 500_000usize..700_000], 2000..4000),
            whole in 5_000f64..200_000.0,
            full in 0.0f64..0.9,
        ) {
            // The threshold moves, and so does the queue.
            let moving = |i: usize| (whole * (1.0 + (i as f64 / 300.0).sin() * 0.9), full * (i % 7) as f64 / 6.0);
            let (sum, deviation) = estimate(&sizes, seed, moving);
            // One case in 10^8 is further away than six deviations.
            prop_assert!((sum - sizes.len() as f64).abs() <= 6.0 * deviation + 1e-6, "{sum} of {} ± {deviation}", sizes.len());
        }
    }

    #[test]
    fn the_mean_of_many_estimates_is_the_number_of_records() {
        let sizes: Vec<usize> = (0..2000).map(|i| if i % 10 == 0 { 600_000 } else { 300 + i % 50 }).collect();
        let runs = 200;
        let estimates: Vec<(f64, f64)> = (0..runs).map(|run| estimate(&sizes, run + 1, |_| (20_000.0, 0.0))).collect();
        let mean = estimates.iter().map(|(sum, _)| sum).sum::<f64>() / runs as f64;
        let deviation = estimates[0].1 / (runs as f64).sqrt();
        assert!((mean - 2000.0).abs() < 5.0 * deviation, "{mean} ± {deviation}");
    }

    #[test]
    fn small_records_are_kept_while_large_ones_are_sampled() {
        assert!((probability(6000.0, 600_000, 0.0) - 0.01).abs() < 1e-12);
        assert!((probability(6000.0, 300, 0.5) - 1.0).abs() < 1e-12);
        assert!((probability(f64::INFINITY, 1 << 30, 0.75) - 1.0).abs() < 1e-12);
        assert!(
            (probability(f64::INFINITY, 300, 0.875) - 0.5).abs() < 1e-12,
            "whatever the size, when the queue is nearly full"
        );
        assert!(probability(f64::INFINITY, 300, 1.0) > 0.0);
    }

    /// A log of 512 MiB of backlog that seals this many bytes a second gets this many records of this size. The backlog and the
    /// threshold after each second.
    fn simulate(seals: f64, offered: impl Fn(usize) -> f64, size: usize, seconds: usize) -> Vec<(f64, f64)> {
        let most = 512.0 * f64::from(1 << 20);
        let (mut whole, mut backlog) = (f64::INFINITY, 0.0);
        let mut seen = Vec::new();
        for second in 0..seconds {
            for _ in 0..5 {
                let written = offered(second) * size as f64 * probability(whole, size, 0.0);
                backlog = f64::max(0.0, backlog + (written - seals) / 5.0);
                whole = next(
                    whole,
                    &Load { written, sealed: Some(seals), backlog: backlog / most, full: 0.0, largest: size },
                );
            }
            seen.push((backlog / most, whole));
        }
        seen
    }

    #[test]
    fn the_backlog_settles_and_the_full_rate_returns_when_the_log_keeps_up() {
        // 1,000 pictures a second for a minute, then 100.
        let seen = simulate(150e6, |second| if second < 60 { 1000.0 } else { 100.0 }, 600_000, 120);
        assert!(seen.iter().all(|(backlog, _)| *backlog < 0.9), "{seen:?}");
        for (backlog, whole) in &seen[20..60] {
            assert!((0.4..0.6).contains(backlog), "{seen:?}");
            // A quarter of the pictures.
            assert!((0.2..0.3).contains(&(whole / 600_000.0)), "{seen:?}");
        }
        assert!(seen[70..].iter().all(|(_, whole)| whole.is_infinite()), "{seen:?}");
        assert!(seen[119].0 < 0.1, "{seen:?}");
    }

    #[test]
    fn a_writer_that_is_too_slow_gets_fewer_records_until_its_queue_is_half_empty() {
        let load = Load { written: 1e8, sealed: None, backlog: 0.0, full: 0.9, largest: 600_000 };
        let less = next(f64::INFINITY, &load);
        assert!((less - 300_000.0).abs() < 1e-6 && (next(less, &load) - 150_000.0).abs() < 1e-6, "{less}");
        let faster = Load { full: 0.5, ..load };
        let steps = std::iter::successors(Some(150_000.0), |whole| Some(next(*whole, &faster)));
        assert_eq!(steps.take_while(|whole| whole.is_finite()).count(), 7, "a quarter more each time");
    }

    #[test]
    fn a_log_that_keeps_up_never_samples() {
        let seen = simulate(15e6, |_| 50_000.0, 258, 60);
        assert!(seen.iter().all(|(_, whole)| whole.is_infinite()), "{seen:?}");
    }

    #[test]
    fn a_log_whose_answers_wait_for_the_disk_never_samples() {
        let sampling = Sampling::new(false);
        sampling.whole.store(100f64.to_bits(), Ordering::Relaxed);
        assert!((sampling.probability(600_000, Some(1.0)) - 1.0).abs() < 1e-12);
    }
}
