//! The evidence of a step: what the candidate and the control have done since the step began.

use super::plan::Guardrails;
use super::sequence::{Counts, RateSequence, RatioSequence};
use crate::shadow::Agreement;
use crate::telemetry::{ArmEvidence, LATENCY_BUCKETS, latency_bucket, latency_of_bucket};
use std::time::Duration;

/// The evidence of the current step.
#[derive(Debug, Clone)]
pub(crate) enum Evidence {
    Shadow(ShadowEvidence),
    Step(Box<StepEvidence>),
}

/// The candidate compared with the control, since a step began.
#[derive(Debug, Clone)]
pub(crate) struct StepEvidence {
    /// As of the last update.
    pub(crate) candidate: ArmEvidence,
    pub(crate) control: ArmEvidence,
    pub(crate) errors: Option<Comparison>,
    pub(crate) nonfinite: Option<Comparison>,
    /// Slow requests: the control's above its own 99th percentile, the candidate's above `latency_limit` times that.
    pub(crate) latency: Option<Comparison>,
    latency_limit: f64,
    /// The candidate and the control at the last comparison.
    compared: (ArmEvidence, ArmEvidence),
    /// New requests of both arms together that are needed for the next comparison.
    min_new_requests: f64,
}

/// A ratio with its limit.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    pub(crate) limit: f64,
    pub(crate) candidate: Counts,
    pub(crate) control: Counts,
    pub(crate) ratio: RatioSequence,
}

/// The candidate as a shadow, before the first step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ShadowEvidence {
    pub(crate) disagreements: RateSequence,
    /// As of the last update.
    last: Agreement,
}

/// Requests of the control that are needed before its 99th percentile is used.
const MIN_REQUESTS_FOR_P99: u64 = 100;
/// Requests of the smaller arm to expect in one comparison. With less traffic several updates are compared together: nothing can be
/// learned from a few requests that are all on one side, and at five requests a second hardly any tenth of a second has both. When to
/// compare depends only on the sum of both arms, never on which arm had the requests. Otherwise a burst of failures that hits both
/// arms would look like the candidate's fault, because its request may have ended the wait.
const EXPECTED_REQUESTS: f64 = 4.0;

// === impl StepEvidence ===

impl StepEvidence {
    /// For a step in which the candidate has `percent` % of the requests. At 0 and at 100 there is nothing to compare.
    pub(crate) fn new(guardrails: &Guardrails, percent: f64) -> StepEvidence {
        let smaller = percent.min(100.0 - percent) / 100.0;
        StepEvidence {
            candidate: ArmEvidence::default(),
            control: ArmEvidence::default(),
            errors: guardrails.error_rate_ratio.map(Comparison::new),
            nonfinite: guardrails.nonfinite_ratio.map(Comparison::new),
            latency: guardrails.p99_latency_ratio.map(|_| Comparison::new(1.0)),
            latency_limit: guardrails.p99_latency_ratio.unwrap_or(1.0),
            compared: (ArmEvidence::default(), ArmEvidence::default()),
            min_new_requests: EXPECTED_REQUESTS / smaller,
        }
    }

    /// Takes the current totals of both arms.
    pub(super) fn update(&mut self, candidate: ArmEvidence, control: ArmEvidence) {
        self.compare(&candidate, &control);
        (self.candidate, self.control) = (candidate, control);
    }

    /// Compares the requests since the last comparison, once there are enough of them.
    fn compare(&mut self, candidate: &ArmEvidence, control: &ArmEvidence) {
        let requests = |now: &ArmEvidence, before: &ArmEvidence| now.requests.saturating_sub(before.requests);
        let (candidate_before, control_before) = &self.compared;
        let (n_c, n_0) = (requests(candidate, candidate_before), requests(control, control_before));
        if ((n_c + n_0) as f64) < self.min_new_requests {
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
        // The threshold for "slow" comes from the control's earlier requests. A threshold from the compared requests themselves would
        // break the martingale.
        if let (Some(latency), Some(p99)) = (&mut self.latency, p99_bucket(control_before)) {
            let limit = first_slow_bucket(p99, self.latency_limit);
            let slow = |now: &ArmEvidence, before: &ArmEvidence, from: usize, requests: u64| {
                let above = |evidence: &ArmEvidence| evidence.latency[from..].iter().sum();
                since(above(now), above(before), requests)
            };
            latency.observe(slow(candidate, candidate_before, limit, n_c), slow(control, control_before, p99 + 1, n_0));
        }
        self.compared = (candidate.clone(), control.clone());
    }
}

/// The bucket of the 99th percentile; `None` while there are too few requests.
fn p99_bucket(evidence: &ArmEvidence) -> Option<usize> {
    let all: u64 = evidence.latency.iter().sum();
    if all < MIN_REQUESTS_FOR_P99 {
        return None;
    }
    let mut above = all;
    for (bucket, count) in evidence.latency.iter().enumerate() {
        above -= count;
        if above <= all / 100 {
            // No request can be slower than the last bucket.
            return (bucket + 1 < LATENCY_BUCKETS).then_some(bucket);
        }
    }
    None
}

/// The first bucket whose latencies are all more than `times` those of `bucket`.
fn first_slow_bucket(bucket: usize, times: f64) -> usize {
    let most = latency_of_bucket(bucket + 1) as f64 * times;
    (latency_bucket(Duration::from_secs_f64(most / 1e6)) + 1).min(LATENCY_BUCKETS - 1)
}

/// The 99th percentile of the latency in microseconds, rounded up by at most an eighth; `None` while there are too few requests.
pub(crate) fn p99_us(evidence: &ArmEvidence) -> Option<u64> {
    p99_bucket(evidence).map(|bucket| latency_of_bucket(bucket + 1))
}

// === impl Comparison ===

impl Comparison {
    fn new(limit: f64) -> Comparison {
        Comparison { limit, candidate: Counts::default(), control: Counts::default(), ratio: RatioSequence::new(limit) }
    }

    fn observe(&mut self, candidate: Counts, control: Counts) {
        for (sum, more) in [(&mut self.candidate, candidate), (&mut self.control, control)] {
            sum.requests += more.requests;
            sum.bad += more.bad;
        }
        self.ratio.observe(candidate, control);
    }
}

// === impl ShadowEvidence ===

impl ShadowEvidence {
    /// Takes the current figures under this step's document. They restart from zero when the version's bytes change.
    pub(super) fn update(&mut self, now: Agreement) {
        let disagreed = |a: Agreement| a.pairs - a.agreed;
        let last = std::mem::replace(&mut self.last, now);
        let last = if now.pairs < last.pairs { Agreement::default() } else { last };
        let pairs = now.pairs - last.pairs;
        // Figures that restarted and already exceed the last ones are not noticed here, and the difference may be wrong. It is never
        // more than the new pairs.
        let bad = disagreed(now).saturating_sub(disagreed(last)).min(pairs);
        self.disagreements.observe(Counts { requests: pairs, bad });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(us: &[(u64, u64)]) -> ArmEvidence {
        let mut evidence = ArmEvidence::default();
        for (us, count) in us {
            evidence.latency[latency_bucket(Duration::from_micros(*us))] += count;
            evidence.requests += count;
        }
        evidence
    }

    #[test]
    fn the_p99_bucket_has_one_request_in_a_hundred_above_it() {
        assert_eq!(p99_us(&latencies(&[(100, 99)])), None, "too few requests");
        let (bucket, next) = (latency_bucket(Duration::from_micros(100)), latency_bucket(Duration::from_millis(1)));
        assert_eq!(p99_bucket(&latencies(&[(100, 990), (1000, 10)])), Some(bucket));
        assert_eq!(p99_bucket(&latencies(&[(100, 989), (1000, 11)])), Some(next));
    }

    #[test]
    fn the_threshold_for_slow_comes_from_earlier_requests() {
        let mut evidence = StepEvidence::new(&Guardrails::default(), 50.0);
        evidence.update(latencies(&[(100, 10)]), latencies(&[(100, 1000)]));
        assert_eq!(
            evidence.latency.as_ref().unwrap().control.requests,
            0,
            "before the first update there is no threshold"
        );
        // The candidate is twice as slow, and one and a half times is allowed; a tenth of the control is slow too.
        evidence.update(latencies(&[(100, 10), (200, 50)]), latencies(&[(100, 1900), (400, 100)]));
        let latency = evidence.latency.as_ref().unwrap();
        assert_eq!(latency.candidate, Counts { requests: 50, bad: 50 });
        assert_eq!(latency.control, Counts { requests: 1000, bad: 100 });
    }

    #[test]
    fn a_latency_within_the_limit_is_not_slow() {
        let mut evidence = StepEvidence::new(&Guardrails::default(), 50.0);
        evidence.update(ArmEvidence::default(), latencies(&[(100, 1000)]));
        evidence.update(latencies(&[(140, 100)]), latencies(&[(100, 2000)]));
        assert_eq!(evidence.latency.unwrap().candidate, Counts { requests: 100, bad: 0 });
    }

    #[test]
    fn little_traffic_is_compared_as_well() {
        let failing = |requests, failed| ArmEvidence { requests, failed, ..ArmEvidence::default() };
        let mut evidence = StepEvidence::new(&Guardrails::default(), 10.0);
        // One request per update: nine of ten are the control's. Every request of the candidate fails.
        for n in 1..=400_u64 {
            evidence.update(failing(n / 10, n / 10), failing(n - n / 10, 0));
        }
        assert_eq!((evidence.candidate.requests, evidence.control.requests), (40, 360));
        let errors = evidence.errors.unwrap();
        assert_eq!((errors.candidate, errors.control), (counts(40, 40), counts(360, 0)), "every request is compared");
        assert!(errors.ratio.exceeds_limit(0.001));
    }

    fn counts(requests: u64, bad: u64) -> Counts {
        Counts { requests, bad }
    }

    #[test]
    fn shadow_pairs_are_counted_update_by_update() {
        let mut shadow = ShadowEvidence::default();
        let at = |pairs, agreed| Agreement { pairs, agreed };
        shadow.update(at(60, 60));
        assert_eq!(shadow.disagreements.counts(), Counts { requests: 60, bad: 0 });
        shadow.update(at(100, 99));
        assert_eq!(shadow.disagreements.counts(), Counts { requests: 100, bad: 1 });
        // Other bytes: the figures restarted.
        shadow.update(at(10, 10));
        assert_eq!(shadow.disagreements.counts(), Counts { requests: 110, bad: 1 });
        shadow.update(at(12, 0));
        assert_eq!(shadow.disagreements.counts(), Counts { requests: 112, bad: 3 }, "never more than the new pairs");
        assert!(shadow.disagreements.exceeds(0.001, 0.05));
    }
}
