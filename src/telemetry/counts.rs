//! Counts of one arm of a split under one revision of the traffic document: the evidence for rollouts.

use crate::model::Code;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per doubling of the latency, so that a bucket is an eighth of its value wide.
const PER_OCTAVE: usize = 8;
/// Up to 2^25 µs (half a minute), longer than the default deadline. Longer latencies are in the last bucket.
pub(crate) const LATENCY_BUCKETS: usize = 23 * PER_OCTAVE + PER_OCTAVE;

/// Counters that requests increment without a lock.
#[derive(Debug)]
pub(super) struct ArmCounts {
    requests: AtomicU64,
    failed: AtomicU64,
    nonfinite: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

/// The counts at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmEvidence {
    /// Answered requests that fitted the signature; without those whose client disconnected.
    pub requests: u64,
    /// Those of them that failed. Values that the engine refused are not among them: `serve` counts them as the caller's mistake.
    pub failed: u64,
    /// Those of them with an output that was NaN or infinite.
    pub nonfinite: u64,
    /// The same requests by latency; see [`latency_bucket`].
    pub latency: Box<[u64; LATENCY_BUCKETS]>,
}

impl Default for ArmCounts {
    fn default() -> ArmCounts {
        ArmCounts {
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            nonfinite: AtomicU64::new(0),
            latency: [const { AtomicU64::new(0) }; LATENCY_BUCKETS],
        }
    }
}

impl ArmCounts {
    pub(super) fn ended(&self, failed: Option<Code>, took: Duration, fitted: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        // A request that did not fit the signature never reached the version, so it is no evidence about it. Neither is a client
        // that disconnected, nor a log that cannot be written.
        if matches!(failed, Some(Code::ClientClosed | Code::LogUnavailable)) || failed.is_some() && !fitted {
            return;
        }
        if failed.is_some() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        self.latency[latency_bucket(took)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn nonfinite(&self) {
        self.nonfinite.fetch_add(1, Ordering::Relaxed);
    }

    /// All requests, with any result.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self) -> ArmEvidence {
        // Parts are read before the whole, so that no part is larger.
        let (failed, nonfinite) = (self.failed.load(Ordering::Acquire), self.nonfinite.load(Ordering::Acquire));
        let latency: Box<[u64; LATENCY_BUCKETS]> =
            Box::new(std::array::from_fn(|i| self.latency[i].load(Ordering::Acquire)));
        let answered: u64 = latency.iter().sum();
        ArmEvidence { requests: answered.max(failed).max(nonfinite), failed, nonfinite, latency }
    }
}

impl Default for ArmEvidence {
    fn default() -> ArmEvidence {
        ArmCounts::default().read()
    }
}

impl ArmEvidence {
    /// Adds the counts of another arm.
    pub fn add(&mut self, other: &ArmEvidence) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.nonfinite += other.nonfinite;
        for (sum, more) in self.latency.iter_mut().zip(other.latency.iter()) {
            *sum += more;
        }
    }
}

/// The bucket of a latency: one per microsecond up to 8, then eight per doubling.
#[must_use]
pub(crate) fn latency_bucket(took: Duration) -> usize {
    // Beyond the last bucket the exact value does not matter.
    let us = usize::try_from(took.as_micros()).unwrap_or(usize::MAX);
    if us < PER_OCTAVE {
        return us;
    }
    let octave = us.ilog2() as usize;
    let step = us >> (octave - 3) & (PER_OCTAVE - 1);
    ((octave - 2) * PER_OCTAVE + step).min(LATENCY_BUCKETS - 1)
}

/// The shortest latency of a bucket, in microseconds.
#[must_use]
pub(crate) fn latency_of_bucket(bucket: usize) -> u64 {
    if bucket < PER_OCTAVE {
        return bucket as u64;
    }
    let (octave, step) = (bucket / PER_OCTAVE + 2, bucket % PER_OCTAVE);
    ((PER_OCTAVE + step) as u64) << (octave - 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_an_eighth_wide() {
        for bucket in 0..LATENCY_BUCKETS {
            let from = latency_of_bucket(bucket);
            assert_eq!(latency_bucket(Duration::from_micros(from)), bucket);
            if bucket > 0 {
                assert_eq!(latency_bucket(Duration::from_micros(from - 1)), bucket - 1);
            }
            if bucket >= 8 && bucket + 1 < LATENCY_BUCKETS {
                assert!((latency_of_bucket(bucket + 1) - from) as f64 <= from as f64 / 8.0);
            }
        }
        assert_eq!(latency_bucket(Duration::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn only_failures_of_requests_that_fitted_count_against_a_version() {
        let counts = ArmCounts::default();
        let took = Duration::from_micros(100);
        counts.ended(None, took, true);
        counts.ended(Some(Code::InvalidTensor), took, false);
        counts.ended(Some(Code::EngineFailed), took, true);
        counts.ended(Some(Code::ClientClosed), took, true);
        counts.nonfinite();
        let evidence = counts.read();
        assert_eq!((evidence.requests, evidence.failed, evidence.nonfinite), (2, 1, 1));
        assert_eq!(evidence.latency[latency_bucket(took)], 2);
        assert_eq!(counts.requests(), 4);
    }
}
