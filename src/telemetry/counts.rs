//! What one arm of a split did under one revision of its document: the evidence that rollouts judge by.

use crate::model::Code;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets to a doubling of the latency: within an eighth of the true value.
const PER_OCTAVE: usize = 8;
/// Up to 2^25 µs, half a minute: past any deadline that callers have by default. What takes longer is in the last bucket.
pub const LATENCY_BUCKETS: usize = 23 * PER_OCTAVE + PER_OCTAVE;

/// Counted per request without a lock.
#[derive(Debug)]
pub struct ArmCounts {
    requests: AtomicU64,
    failed: AtomicU64,
    nonfinite: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

/// The counts at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmEvidence {
    /// Requests that fitted the signature and were answered: without those whose client went away.
    pub requests: u64,
    /// Of them, those that fitted the signature and failed all the same: values refused by the engine too, as another version may
    /// take them.
    pub failed: u64,
    /// Of them, those with an output that was NaN or infinite.
    pub nonfinite: u64,
    /// Of them, by how long they took; see [`latency_bucket`].
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
        // What did not fit the signature never came as far as the version, and says neither good nor ill of it.
        // Nor does a log that cannot be written.
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

    /// However they ended.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self) -> ArmEvidence {
        // What is a part is read before its whole, so that it is never more.
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
    /// Together with another arm's.
    pub fn add(&mut self, other: &ArmEvidence) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.nonfinite += other.nonfinite;
        for (sum, more) in self.latency.iter_mut().zip(other.latency.iter()) {
            *sum += more;
        }
    }
}

/// The bucket of a latency: one per microsecond up to 8, then eight to a doubling.
#[must_use]
pub fn latency_bucket(took: Duration) -> usize {
    // Past the last bucket's it does not matter how far.
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
pub fn latency_of_bucket(bucket: usize) -> u64 {
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
    fn buckets_are_in_order_and_an_eighth_wide() {
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
    fn what_counts_against_a_version_is_what_fitted_and_failed() {
        let counts = ArmCounts::default();
        let took = Duration::from_micros(100);
        counts.ended(None, took, true);
        counts.ended(Some(Code::InvalidTensor), took, false);
        counts.ended(Some(Code::InvalidTensor), took, true);
        counts.ended(Some(Code::ClientClosed), took, true);
        counts.nonfinite();
        let evidence = counts.read();
        assert_eq!((evidence.requests, evidence.failed, evidence.nonfinite), (2, 1, 1));
        assert_eq!(evidence.latency[latency_bucket(took)], 2);
        assert_eq!(counts.requests(), 4);
    }
}
