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
    /// Both arms up to where they were compared last.
    compared: (ArmEvidence, ArmEvidence),
    /// Requests of both arms together that are compared at once, at least.
    enough: f64,
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
    /// As of the last look.
    last: Agreement,
}

/// Requests of the control before its 99th percentile is one.
const ENOUGH_FOR_P99: u64 = 100;
/// Requests of the smaller side that are expected among those compared at once. Where fewer come between two looks, looks are taken
/// together: of a few requests all on one side nothing can be learnt, and at five requests a second hardly any tenth of a second has
/// both. How many are taken together depends on both sides' sum alone, never on which side they were on: else a burst of failures
/// that hits both would look like the candidate's, whose request may have ended the wait.
const EXPECTED: f64 = 4.0;

impl StepEvidence {
    /// Of a step in which the candidate has so many percent. At 0 and at 100 there is nothing to compare.
    #[must_use]
    pub fn new(guardrails: &Guardrails, percent: f64) -> StepEvidence {
        let compared = |limit: Option<f64>| limit.map(Compared::new);
        let smaller = percent.min(100.0 - percent) / 100.0;
        StepEvidence {
            candidate: ArmEvidence::default(),
            control: ArmEvidence::default(),
            errors: compared(guardrails.error_rate_ratio),
            nonfinite: compared(guardrails.nonfinite_ratio),
            latency: guardrails.p99_latency_ratio.map(|_| Compared::new(1.0)),
            latency_limit: guardrails.p99_latency_ratio.unwrap_or(1.0),
            compared: (ArmEvidence::default(), ArmEvidence::default()),
            enough: EXPECTED / smaller,
        }
    }

    /// Takes in how the arms stand now.
    pub fn look(&mut self, candidate: ArmEvidence, control: ArmEvidence) {
        self.compare(&candidate, &control);
        (self.candidate, self.control) = (candidate, control);
    }

    /// Holds what came since the last comparison against each other, once that is enough.
    fn compare(&mut self, candidate: &ArmEvidence, control: &ArmEvidence) {
        let requests = |now: &ArmEvidence, before: &ArmEvidence| now.requests.saturating_sub(before.requests);
        let (candidate_before, control_before) = &self.compared;
        let (n_c, n_0) = (requests(candidate, candidate_before), requests(control, control_before));
        if ((n_c + n_0) as f64) < self.enough {
            return;
        }
        let since =
            |now: u64, before: u64, requests: u64| Counts { requests, bad: now.saturating_sub(before).min(requests) };
        if let Some(errors) = &mut self.errors {
            errors.observe(
                since(candidate.failed, candidate_before.failed, n_c),
                since(control.failed, control_before.failed, n_0),
            );
        }
        if let Some(nonfinite) = &mut self.nonfinite {
            nonfinite.observe(
                since(candidate.nonfinite, candidate_before.nonfinite, n_c),
                since(control.nonfinite, control_before.nonfinite, n_0),
            );
        }
        // What counts as slow was settled before these requests, by the control's before: else the martingale were none.
        if let (Some(latency), Some(p99)) = (&mut self.latency, p99_bucket(control_before)) {
            let limit = slow_from(p99, self.latency_limit);
            let slow = |now: &ArmEvidence, before: &ArmEvidence, from: usize, requests: u64| {
                let above = |evidence: &ArmEvidence| evidence.latency[from..].iter().sum();
                since(above(now), above(before), requests)
            };
            latency.observe(slow(candidate, candidate_before, limit, n_c), slow(control, control_before, p99 + 1, n_0));
        }
        self.compared = (candidate.clone(), control.clone());
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
    /// Takes in how the figures of this step's document stand now. They begin anew when the version's bytes change.
    pub fn look(&mut self, now: Agreement) {
        let disagreed = |a: Agreement| a.pairs - a.agreed;
        let last = std::mem::replace(&mut self.last, now);
        let last = if now.pairs < last.pairs { Agreement::default() } else { last };
        let pairs = now.pairs - last.pairs;
        // Figures that began anew and have outgrown the last look's between two looks disagree with it: never more than there are.
        let bad = disagreed(now).saturating_sub(disagreed(last)).min(pairs);
        self.disagreements.observe(Counts { requests: pairs, bad });
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
        let mut evidence = StepEvidence::new(&Guardrails::default(), 50.0);
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
        let mut evidence = StepEvidence::new(&Guardrails::default(), 50.0);
        evidence.look(ArmEvidence::default(), took(&[(100, 1000)]));
        evidence.look(took(&[(140, 100)]), took(&[(100, 2000)]));
        assert_eq!(evidence.latency.unwrap().candidate, Counts { requests: 100, bad: 0 });
    }

    #[test]
    fn little_traffic_is_compared_too() {
        let failing = |requests, failed| ArmEvidence { requests, failed, ..ArmEvidence::default() };
        let mut evidence = StepEvidence::new(&Guardrails::default(), 10.0);
        // One request to a look: nine of ten are the control's. All of the candidate's fail.
        for n in 1..=400_u64 {
            evidence.look(failing(n / 10, n / 10), failing(n - n / 10, 0));
        }
        assert_eq!((evidence.candidate.requests, evidence.control.requests), (40, 360));
        let errors = evidence.errors.unwrap();
        assert_eq!((errors.candidate, errors.control), (counts(40, 40), counts(360, 0)), "no request is left out");
        assert!(errors.ratio.is_surely_above(0.001));
    }

    fn counts(requests: u64, bad: u64) -> Counts {
        Counts { requests, bad }
    }

    #[test]
    fn shadow_pairs_are_taken_in_look_by_look() {
        let mut shadow = ShadowEvidence::default();
        let at = |pairs, agreed| Agreement { pairs, agreed };
        shadow.look(at(60, 60));
        assert_eq!(shadow.disagreements.seen(), Counts { requests: 60, bad: 0 });
        shadow.look(at(100, 99));
        assert_eq!(shadow.disagreements.seen(), Counts { requests: 100, bad: 1 });
        // Other bytes: the figures began anew.
        shadow.look(at(10, 10));
        assert_eq!(shadow.disagreements.seen(), Counts { requests: 110, bad: 1 });
        shadow.look(at(12, 0));
        assert_eq!(shadow.disagreements.seen(), Counts { requests: 112, bad: 3 }, "never more than there were");
        assert!(shadow.disagreements.is_surely_above(0.001, 0.05));
    }
}
