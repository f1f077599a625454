//! Counts of one arm of a split under one revision of the traffic document: the evidence for rollouts.

use super::keys::{Fault, Faults, KeyCounts, KeyEvidence};
use super::watched::{Watch, Watched, WatchedEvidence};
use crate::model::Code;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a request on an arm ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ended {
    /// `None` is `ok`.
    pub failed: Option<Code>,
    /// From the body read to the answer ready.
    pub took: Duration,
    /// The request fitted the version's signature or was refused before the check, so a failure is the version's and not the caller's.
    pub fitted: bool,
    /// A hash of the sticky key that the split used; `None` where the request has none.
    pub key: Option<u64>,
    /// An output was NaN or infinite.
    pub nonfinite: bool,
    /// The time in the engine, and the rows that ran together.
    pub engine: Option<(Duration, usize)>,
    /// A hash of the answer.
    pub answer: Option<u64>,
}

/// What the evidence about an arm counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Request,
    /// Sticky keys: all requests of a key go to one arm, so they are not independent.
    Key,
}

/// Buckets per doubling of the latency, so that a bucket is an eighth of its value wide.
const PER_OCTAVE: usize = 8;
/// Up to 2^25 µs (half a minute), longer than the default deadline. Longer latencies are in the last bucket.
pub(crate) const LATENCY_BUCKETS: usize = 23 * PER_OCTAVE + PER_OCTAVE;

/// Counters that requests increment without a lock.
#[derive(Debug)]
pub(crate) struct ArmCounts {
    requests: AtomicU64,
    failed: AtomicU64,
    nonfinite: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
    /// Present once a rollout watches the arm.
    watched: OnceLock<Box<Watched>>,
    /// Present where the evidence counts keys.
    keys: Option<KeyCounts>,
}

/// The counts at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmEvidence {
    /// Answered requests that fitted the signature; without those whose client disconnected.
    pub requests: u64,
    /// Those of them that failed. Values that the engine refused are not among them: `serve` counts them as the caller's mistake.
    pub failed: u64,
    /// Those of them with an output that was NaN or infinite.
    pub nonfinite: u64,
    /// The same requests by latency; see [`latency_bucket`].
    pub latency: Box<[u64; LATENCY_BUCKETS]>,
    /// Present where the evidence counts keys.
    pub(crate) keys: Option<KeyEvidence>,
    /// Present once a rollout watches the arm.
    pub(crate) watched: Option<WatchedEvidence>,
}

/// The totals of an arm, without their parts: cheap to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArmTotals {
    /// As [`ArmEvidence::requests`].
    pub answered: u64,
    pub failed: u64,
    pub nonfinite: u64,
}

impl Ended {
    /// Without a key.
    #[must_use]
    pub fn of(failed: Option<Code>, took: Duration, fitted: bool) -> Ended {
        Ended { failed, took, fitted, key: None, nonfinite: false, engine: None, answer: None }
    }
}

impl ArmCounts {
    pub(crate) fn new(unit: Unit) -> ArmCounts {
        ArmCounts {
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            nonfinite: AtomicU64::new(0),
            latency: [const { AtomicU64::new(0) }; LATENCY_BUCKETS],
            watched: OnceLock::new(),
            keys: (unit == Unit::Key).then(KeyCounts::default),
        }
    }

    pub(crate) fn ended(&self, ended: &Ended) {
        let Ended { failed, took, fitted, key, nonfinite, engine, answer } = *ended;
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
        let mut faults = Faults::default().with(Fault::Failed, failed.is_some()).with(Fault::Nonfinite, nonfinite);
        if let Some(watched) = self.watched.get() {
            let over = |limit: &AtomicU64| took.as_micros() > u128::from(limit.load(Ordering::Relaxed));
            faults = faults
                .with(Fault::Slow, over(&watched.slow_us))
                .with(Fault::OverLimit, over(&watched.limit_us))
                .with(Fault::OverBefore, over(&watched.before_us))
                .with(Fault::SlowEngine, engine.is_some_and(|(infer, rows)| watched.ran(infer, rows)))
                .with(Fault::Changed, answer.is_some_and(|hash| watched.answered(hash)));
        }
        if let Some(keys) = &self.keys {
            keys.record(key, faults);
        }
    }

    /// Sets what requests are judged by from now on.
    pub(crate) fn watch(&self, watch: &Watch) {
        self.watched.get_or_init(Box::default).set(watch);
        if let Some(keys) = &self.keys {
            keys.set_tick(watch.tick);
        }
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watched.get().is_some()
    }

    pub(super) fn keys(&self) -> Option<&KeyCounts> {
        self.keys.as_ref()
    }

    /// What the table of keys says; `None` where requests are counted.
    #[cfg(test)]
    pub(crate) fn key_notes(&self) -> Option<super::keys::KeyNotes> {
        self.keys.as_ref().map(KeyCounts::notes)
    }

    pub(super) fn nonfinite(&self) {
        self.nonfinite.fetch_add(1, Ordering::Relaxed);
    }

    /// All requests, with any result.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn totals(&self) -> ArmTotals {
        // Parts are read before the whole, so that no part is larger.
        let (failed, nonfinite) = (self.failed.load(Ordering::Acquire), self.nonfinite.load(Ordering::Acquire));
        let answered: u64 = self.latency.iter().map(|bucket| bucket.load(Ordering::Acquire)).sum();
        ArmTotals { answered: answered.max(failed).max(nonfinite), failed, nonfinite }
    }

    pub(crate) fn read(&self) -> ArmEvidence {
        // Parts are read before the whole, so that no part is larger.
        let (failed, nonfinite) = (self.failed.load(Ordering::Acquire), self.nonfinite.load(Ordering::Acquire));
        let latency: Box<[u64; LATENCY_BUCKETS]> =
            Box::new(std::array::from_fn(|i| self.latency[i].load(Ordering::Acquire)));
        let answered: u64 = latency.iter().sum();
        let keys = self.keys.as_ref().map(KeyCounts::read);
        let watched = self.watched.get().map(|watched| watched.read());
        ArmEvidence { requests: answered.max(failed).max(nonfinite), failed, nonfinite, latency, keys, watched }
    }
}

impl Default for ArmEvidence {
    fn default() -> ArmEvidence {
        ArmEvidence {
            requests: 0,
            failed: 0,
            nonfinite: 0,
            latency: Box::new([0; LATENCY_BUCKETS]),
            keys: None,
            watched: None,
        }
    }
}

impl ArmEvidence {
    /// Says which share of the split's keys this arm is expected to have; any unit will do.
    pub(crate) fn weigh(&mut self, weight: f64) {
        if let Some(keys) = &mut self.keys {
            keys.weight *= weight;
        }
    }

    /// Adds the counts of another arm.
    pub fn add(&mut self, other: &ArmEvidence) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.nonfinite += other.nonfinite;
        for (sum, more) in self.latency.iter_mut().zip(other.latency.iter()) {
            *sum += more;
        }
        match (&mut self.keys, &other.keys) {
            (Some(keys), Some(more)) => keys.add(more),
            (keys @ None, Some(more)) => *keys = Some(more.clone()),
            (_, None) => {}
        }
        match (&mut self.watched, &other.watched) {
            (Some(watched), Some(more)) => watched.add(more),
            (watched @ None, Some(more)) => *watched = Some(more.clone()),
            (_, None) => {}
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
    use super::super::watched::ROW_CLASSES;
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
        let counts = ArmCounts::new(Unit::Request);
        let took = Duration::from_micros(100);
        counts.ended(&Ended::of(None, took, true));
        counts.ended(&Ended::of(Some(Code::InvalidTensor), took, false));
        counts.ended(&Ended::of(Some(Code::EngineFailed), took, true));
        counts.ended(&Ended::of(Some(Code::ClientClosed), took, true));
        counts.nonfinite();
        let evidence = counts.read();
        assert_eq!((evidence.requests, evidence.failed, evidence.nonfinite), (2, 1, 1));
        assert_eq!(evidence.latency[latency_bucket(took)], 2);
        assert_eq!(counts.requests(), 4);
    }

    #[test]
    fn the_callers_own_faults_do_not_count_for_a_key() {
        let counts = ArmCounts::new(Unit::Key);
        let ended = |failed, fitted| {
            counts.ended(&Ended { key: Some(7 << 40), ..Ended::of(failed, Duration::from_micros(100), fitted) });
        };
        ended(Some(Code::InvalidTensor), false);
        ended(Some(Code::ClientClosed), true);
        assert_eq!(counts.read().keys.unwrap().keys(), 0);
        ended(Some(Code::EngineFailed), true);
        let keys = counts.read().keys.unwrap();
        assert_eq!((keys.keys(), keys.ever_bad(Fault::Failed)), (1, 1));
    }

    #[test]
    fn a_request_is_slow_by_the_threshold_that_the_rollout_set() {
        let counts = ArmCounts::new(Unit::Key);
        let took = |us, key: u64| {
            counts.ended(&Ended { key: Some(key << 40), ..Ended::of(None, Duration::from_micros(us), true) });
        };
        took(1_000_000, 1);
        let unset = [u64::MAX; ROW_CLASSES];
        counts.watch(&Watch { tick: 0, slow_us: 500, limit_us: 500, before_us: u64::MAX, engine_us: unset });
        took(500, 2);
        took(501, 3);
        let keys = counts.read().keys.unwrap();
        assert_eq!((keys.keys(), keys.ever_bad(Fault::Slow)), (3, 1));
        assert_eq!((keys.ever_bad(Fault::OverLimit), keys.ever_bad(Fault::OverBefore)), (1, 0));
    }
}
