//! What a step has shown so far, look by look.

use super::plan::Guardrails;
use super::sequence::{Counts, RateSequence, RatioSequence};
use crate::shadow::Agreement;
use crate::telemetry::{ArmEvidence, LATENCY_BUCKETS, latency_bucket, latency_of_bucket};
use std::time::Duration;

/// Candidate against control, since a step began.
#[derive(Debug, Clone)]
pub struct StepEvidence {
    /// As of the last look.
    pub candidate: ArmEvidence,
    pub control: ArmEvidence,
    pub errors: Option<Compared>,
    pub nonfinite: Option<Compared>,
    /// Slow requests: the control's above its own 99th percentile, the candidate's above so many times it.
    pub latency: Option<Compared>,
    /// How many times the control's 99th percentile the candidate's requests may take.
    latency_limit: f64,
}

/// One ratio that is watched.
#[derive(Debug, Clone)]
pub struct Compared {
    pub limit: f64,
    pub candidate: Counts,
    pub control: Counts,
    pub ratio: RatioSequence,
}

/// The candidate as a shadow, before the first step.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShadowEvidence {
    pub disagreements: RateSequence,
    /// As of the last look; `None` before the first.
    last: Option<Agreement>,
}

/// Requests of the control before its 99th percentile is one.
const ENOUGH_FOR_P99: u64 = 100;

impl StepEvidence {
    #[must_use]
    pub fn new(guardrails: &Guardrails) -> StepEvidence {
        let compared = |limit: Option<f64>| limit.map(Compared::new);
        StepEvidence {
            candidate: ArmEvidence::default(),
            control: ArmEvidence::default(),
            errors: compared(guardrails.error_rate_ratio),
            nonfinite: compared(guardrails.nonfinite_ratio),
            latency: guardrails.p99_latency_ratio.map(|_| Compared::new(1.0)),
            latency_limit: guardrails.p99_latency_ratio.unwrap_or(1.0),
        }
    }

    /// Takes in how the arms stand now.
    pub fn look(&mut self, candidate: ArmEvidence, control: ArmEvidence) {
        let requests = |now: &ArmEvidence, before: &ArmEvidence| now.requests.saturating_sub(before.requests);
        let (n_c, n_0) = (requests(&candidate, &self.candidate), requests(&control, &self.control));
        let since =
            |now: u64, before: u64, requests: u64| Counts { requests, bad: now.saturating_sub(before).min(requests) };
        if let Some(errors) = &mut self.errors {
            errors.observe(
                since(candidate.failed, self.candidate.failed, n_c),
                since(control.failed, self.control.failed, n_0),
            );
        }
        if let Some(nonfinite) = &mut self.nonfinite {
            nonfinite.observe(
                since(candidate.nonfinite, self.candidate.nonfinite, n_c),
                since(control.nonfinite, self.control.nonfinite, n_0),
            );
        }
        // What counts as slow was settled before this look, by the control's looks before: else the martingale were none.
        if let (Some(latency), Some(p99)) = (&mut self.latency, p99_bucket(&self.control)) {
            let limit = slow_from(p99, self.latency_limit);
            let slow = |now: &ArmEvidence, before: &ArmEvidence, from: usize, requests: u64| {
                let above = |evidence: &ArmEvidence| evidence.latency[from..].iter().sum();
                since(above(now), above(before), requests)
            };
            latency.observe(slow(&candidate, &self.candidate, limit, n_c), slow(&control, &self.control, p99 + 1, n_0));
        }
        (self.candidate, self.control) = (candidate, control);
    }
}

/// The bucket of the 99th percentile; `None` while there are too few requests for one.
fn p99_bucket(evidence: &ArmEvidence) -> Option<usize> {
    let all: u64 = evidence.latency.iter().sum();
    if all < ENOUGH_FOR_P99 {
        return None;
    }
    let mut above = all;
    for (bucket, count) in evidence.latency.iter().enumerate() {
        above -= count;
        if above <= all / 100 {
            // The last bucket has nothing above it that could be slow.
            return (bucket + 1 < LATENCY_BUCKETS).then_some(bucket);
        }
    }
    None
}

/// The first bucket all of whose latencies are more than so many times those of another's.
fn slow_from(bucket: usize, times: f64) -> usize {
    let most = latency_of_bucket(bucket + 1) as f64 * times;
    (latency_bucket(Duration::from_secs_f64(most / 1e6)) + 1).min(LATENCY_BUCKETS - 1)
}

/// The latency, in microseconds, that 99 of 100 requests did not exceed, to an eighth; `None` while there are too few.
#[must_use]
pub fn p99_us(evidence: &ArmEvidence) -> Option<u64> {
    p99_bucket(evidence).map(|bucket| latency_of_bucket(bucket + 1))
}

impl Compared {
    fn new(limit: f64) -> Compared {
        let nothing = Counts::default();
        Compared { limit, candidate: nothing, control: nothing, ratio: RatioSequence::new(limit) }
    }

    fn observe(&mut self, candidate: Counts, control: Counts) {
        for (sum, more) in [(&mut self.candidate, candidate), (&mut self.control, control)] {
            sum.requests += more.requests;
            sum.bad += more.bad;
        }
        self.ratio.observe(candidate, control);
    }
}

impl ShadowEvidence {
    /// Takes in how the figures stand now. They go on from before the step, and begin anew when the version's bytes change.
    pub fn look(&mut self, now: Agreement) {
        let disagreed = |a: Agreement| a.pairs - a.agreed;
        let last = self.last.replace(now).unwrap_or(now);
        let last = if now.pairs < last.pairs { Agreement::default() } else { last };
        let bad = disagreed(now).saturating_sub(disagreed(last));
        self.disagreements.observe(Counts { requests: now.pairs - last.pairs, bad });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(us: &[(u64, u64)]) -> ArmEvidence {
        let mut evidence = ArmEvidence::default();
        for (us, count) in us {
            evidence.latency[latency_bucket(Duration::from_micros(*us))] += count;
            evidence.requests += count;
        }
        evidence
    }

    #[test]
    fn the_p99_is_the_bucket_that_one_in_a_hundred_is_above() {
        assert_eq!(p99_us(&took(&[(100, 99)])), None, "too few");
        let (bucket, next) = (latency_bucket(Duration::from_micros(100)), latency_bucket(Duration::from_millis(1)));
        assert_eq!(p99_bucket(&took(&[(100, 990), (1000, 10)])), Some(bucket));
        assert_eq!(p99_bucket(&took(&[(100, 989), (1000, 11)])), Some(next));
    }

    #[test]
    fn slow_is_settled_by_the_looks_before() {
        let mut evidence = StepEvidence::new(&Guardrails::default());
        evidence.look(took(&[(100, 10)]), took(&[(100, 1000)]));
        assert_eq!(evidence.latency.as_ref().unwrap().control.requests, 0, "nothing was known before the first look");
        // The candidate is twice as slow, and one and a half times is allowed; a tenth of the control is slow too.
        evidence.look(took(&[(100, 10), (200, 50)]), took(&[(100, 1900), (400, 100)]));
        let latency = evidence.latency.as_ref().unwrap();
        assert_eq!(latency.candidate, Counts { requests: 50, bad: 50 });
        assert_eq!(latency.control, Counts { requests: 1000, bad: 100 });
    }

    #[test]
    fn within_the_limit_is_not_slow() {
        let mut evidence = StepEvidence::new(&Guardrails::default());
        evidence.look(ArmEvidence::default(), took(&[(100, 1000)]));
        evidence.look(took(&[(140, 100)]), took(&[(100, 2000)]));
        assert_eq!(evidence.latency.unwrap().candidate, Counts { requests: 100, bad: 0 });
    }

    #[test]
    fn shadow_pairs_count_from_the_steps_beginning() {
        let mut shadow = ShadowEvidence::default();
        let at = |pairs, agreed| Agreement { pairs, agreed };
        shadow.look(at(500, 100));
        assert_eq!(shadow.disagreements.seen(), Counts::default());
        shadow.look(at(600, 199));
        assert_eq!(shadow.disagreements.seen(), Counts { requests: 100, bad: 1 });
        // Other bytes: the figures began anew.
        shadow.look(at(10, 10));
        assert_eq!(shadow.disagreements.seen(), Counts { requests: 110, bad: 1 });
    }
}
