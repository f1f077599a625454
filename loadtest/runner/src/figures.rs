//! The results of a phase: counts, throughput, and latency percentiles, both of the whole phase and as medians over windows.
//!
//! A shared machine stalls for 100 ms or more about every ten seconds. One stall determines the p99 of a whole run and says nothing
//! about the server. It affects one or two quarter-second windows, and their median hardly changes.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::drive::{Outcome, Sample};

/// The length of a window, in microseconds.
const WINDOW_US: u32 = 250_000;
/// Windows with fewer good answers are ignored: they are too few for a percentile (at the ends of a run, and at low rates).
const WINDOW_ANSWERS: u64 = 20;
/// Longer latencies are counted as 100 s.
const LONGEST_NS: u64 = 100_000_000_000;

/// One phase in one round.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub requests: usize,
    pub good: usize,
    pub refused: usize,
    pub failed: usize,
    /// Good answers per second.
    pub throughput: f64,
    /// CPU time of the server per answer (refusals included), in microseconds.
    pub cpu_us: f64,
    /// CPU time of the server for all of them, in microseconds.
    pub all_cpu_us: f64,
    pub resident_kb: f64,
    /// Latencies of good answers: medians over windows, and percentiles of the whole phase.
    pub windowed: Percentiles,
    pub whole: Percentiles,
    /// Delay of the generator itself, in microseconds. It is part of every latency.
    pub late_p50_us: f64,
    pub late_p99_us: f64,
    /// The share of each version in the good answers (0 to 1).
    pub shares: BTreeMap<u32, f64>,
    /// Number of answers by status; 0 stands for no answer.
    pub statuses: BTreeMap<u16, usize>,
    pub windows: Vec<Window>,
    #[serde(skip)]
    pub latencies: Histogram<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "names in JSON end with their unit")]
pub struct Percentiles {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// The requests that were due in one quarter of a second.
#[derive(Debug, Serialize)]
pub struct Window {
    /// Seconds from the start of the phase to the start of the window.
    pub at_s: f64,
    pub good: u64,
    pub latency: Percentiles,
}

impl Figures {
    /// `seconds`: planned length of the phase. `cpu_us`: CPU time of the server during it. `resident_kb`: its memory at the end.
    pub fn new(samples: &[Sample], seconds: f64, cpu_us: f64, resident_kb: f64) -> Self {
        let mut latencies = histogram();
        let mut late = histogram();
        let mut statuses = BTreeMap::<u16, usize>::new();
        let mut counts = BTreeMap::<u32, usize>::new();
        let (mut good, mut refused, mut failed) = (0, 0, 0);
        let mut last_us = 0.0_f64;
        for s in samples {
            late.saturating_record(u64::from(s.late_us));
            *statuses.entry(s.status).or_default() += 1;
            match s.outcome {
                Outcome::Good => {
                    good += 1;
                    latencies.saturating_record(s.latency_ns);
                    *counts.entry(s.version).or_default() += 1;
                    last_us = last_us.max(f64::from(s.due_us) + s.latency_ns as f64 / 1e3);
                }
                Outcome::Refused => refused += 1,
                Outcome::Failed => failed += 1,
            }
        }
        let windows = windows(samples);
        let answered = good + refused;
        Self {
            requests: samples.len(),
            good,
            refused,
            failed,
            // A slow server still answers after the last request was due.
            throughput: good as f64 / seconds.max(last_us / 1e6),
            cpu_us: if answered == 0 { 0.0 } else { cpu_us / answered as f64 },
            all_cpu_us: cpu_us,
            resident_kb,
            windowed: over_windows(&windows),
            whole: Percentiles::of(&latencies),
            late_p50_us: late.value_at_quantile(0.5) as f64,
            late_p99_us: late.value_at_quantile(0.99) as f64,
            shares: counts.into_iter().map(|(version, n)| (version, n as f64 / good as f64)).collect(),
            statuses,
            windows,
            latencies,
        }
    }
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), p999_us: at(0.999), max_us: at(1.0) }
    }
}

/// A histogram of nanoseconds with three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("these bounds are valid")
}

fn windows(samples: &[Sample]) -> Vec<Window> {
    let mut good: Vec<_> = samples.iter().filter(|s| s.outcome == Outcome::Good).collect();
    good.sort_unstable_by_key(|s| s.due_us);
    let mut latencies = histogram();
    good.chunk_by(|a, b| a.due_us / WINDOW_US == b.due_us / WINDOW_US)
        .map(|chunk| {
            latencies.reset();
            for s in chunk {
                latencies.saturating_record(s.latency_ns);
            }
            let at_s = f64::from(chunk[0].due_us / WINDOW_US * WINDOW_US) / 1e6;
            Window { at_s, good: latencies.len(), latency: Percentiles::of(&latencies) }
        })
        .collect()
}

fn over_windows(windows: &[Window]) -> Percentiles {
    let full = || windows.iter().filter(|w| w.good >= WINDOW_ANSWERS);
    let over = |part: fn(&Percentiles) -> f64| median(full().map(|w| part(&w.latency)).collect());
    Percentiles {
        p50_us: over(|p| p.p50_us),
        p90_us: over(|p| p.p90_us),
        p99_us: over(|p| p.p99_us),
        p999_us: over(|p| p.p999_us),
        max_us: over(|p| p.max_us),
    }
}

/// The median of `values`; 0 when there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => values[n / 2],
        _ => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(due_us: u32, latency_us: u64, outcome: Outcome) -> Sample {
        Sample { due_us, late_us: 0, latency_ns: latency_us * 1000, version: 1, status: 200, outcome }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn one_stall_changes_the_p99_of_the_run_but_not_of_the_windows() {
        // 8 windows of 100 requests of 100 us; everything in one of them takes 50 ms.
        let samples: Vec<_> =
            (0..800).map(|i| sample(i * 2500, if i / 100 == 3 { 50_000 } else { 100 }, Outcome::Good)).collect();
        let figures = Figures::new(&samples, 2.0, 8000.0, 0.0);
        assert_eq!(figures.windows.len(), 8);
        assert!(figures.whole.p99_us > 49_000.0, "the whole run has the stall: {:?}", figures.whole);
        assert!((figures.windowed.p99_us - 100.0).abs() < 1.0, "the windows do not: {:?}", figures.windowed);
        assert_eq!((figures.throughput, figures.cpu_us), (400.0, 10.0));
    }

    #[test]
    fn failures_and_refusals_have_no_latency() {
        let samples =
            [sample(0, 100, Outcome::Good), sample(1, 9_000_000, Outcome::Failed), sample(2, 5, Outcome::Refused)];
        let figures = Figures::new(&samples, 1.0, 0.0, 0.0);
        assert_eq!((figures.good, figures.refused, figures.failed), (1, 1, 1));
        assert!(figures.whole.max_us < 101.0);
        assert_eq!(figures.shares, BTreeMap::from([(1, 1.0)]));
        assert_eq!(figures.windowed, Percentiles::default(), "one answer is too few for a window");
    }
}
