//! The evidence of a step: what the candidate and the control have done since the step began.

use super::plan::Guardrails;
use super::sequence::{Counts, RateSequence, RatioSequence};
use crate::shadow::Agreement;
use crate::telemetry::{
    ArmEvidence, Fault, KeyEvidence, LATENCY_BUCKETS, PERIOD_TICKS, Unit, Watch, latency_bucket, latency_of_bucket,
};
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
    unit: Unit,
    /// The length of a tick: the first request of a key in each tick counts.
    tick: Duration,
    /// The period of the step, from 0.
    period: u32,
}

/// A ratio with its limit.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    pub(crate) limit: f64,
    /// Requests, or keys and those of them that were bad at least once.
    pub(crate) candidate: Counts,
    pub(crate) control: Counts,
    /// Over the whole step. Each key is bad at most once.
    ratio: RatioSequence,
    /// Where keys are counted.
    period: Option<Period>,
}

/// The keys of one period. Each key counts once, with its first request of the period.
#[derive(Debug, Clone)]
struct Period {
    /// From 0.
    number: u32,
    bad: (u64, u64),
    ratio: RatioSequence,
}

/// What a comparison says at a level α.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// The ratios that are not rejected.
    pub(crate) interval: (f64, f64),
    /// Whether the whole interval lies above the limit.
    pub(crate) exceeds: bool,
    /// The keys of the candidate and of the control that were bad in the current period, where these decide.
    pub(crate) in_period: Option<(u64, u64)>,
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
/// Ticks of the shortest time that a step is held.
const TICKS: u32 = 64;
/// Not shorter than the time between two checks.
const SHORTEST_TICK: Duration = Duration::from_millis(100);
/// Keys of the candidate that must be bad before a guardrail is violated: one caller cannot have a rollout moved back.
const MIN_BAD_KEYS: u64 = 3;

// === impl StepEvidence ===

impl StepEvidence {
    /// For a step that is held for at least `hold`, in which the candidate has `percent` % of the units. At 0 and at 100 there is nothing
    /// to compare.
    pub(crate) fn new(guardrails: &Guardrails, hold: Duration, percent: f64, unit: Unit) -> StepEvidence {
        let smaller = percent.min(100.0 - percent) / 100.0;
        let compared = |limit| Comparison::new(limit, unit);
        StepEvidence {
            candidate: ArmEvidence::default(),
            control: ArmEvidence::default(),
            errors: guardrails.error_rate_ratio.map(compared),
            nonfinite: guardrails.nonfinite_ratio.map(compared),
            latency: guardrails.p99_latency_ratio.map(|_| compared(1.0)),
            latency_limit: guardrails.p99_latency_ratio.unwrap_or(1.0),
            compared: (ArmEvidence::default(), ArmEvidence::default()),
            min_new_requests: EXPECTED_REQUESTS / smaller,
            unit,
            tick: (hold / TICKS).max(SHORTEST_TICK),
            period: 0,
        }
    }

    /// What this evidence counts.
    pub(crate) fn unit(&self) -> Unit {
        self.unit
    }

    /// Takes the current totals of both arms.
    pub(super) fn update(&mut self, candidate: ArmEvidence, control: ArmEvidence) {
        match self.unit {
            Unit::Request => self.compare(&candidate, &control),
            Unit::Key => self.compare_keys(&candidate, &control),
        }
        (self.candidate, self.control) = (candidate, control);
    }

    /// Begins the tick of this time of the step. Returns what the next requests of the candidate and of the control are judged by.
    pub(super) fn watch(&mut self, held: Duration) -> (Watch, Watch) {
        let tick = u32::try_from(held.as_nanos() / self.tick.as_nanos().max(1)).unwrap_or(u32::MAX);
        if tick / PERIOD_TICKS != self.period {
            self.period = tick / PERIOD_TICKS;
            for comparison in [&mut self.errors, &mut self.nonfinite, &mut self.latency].into_iter().flatten() {
                comparison.begin_period(self.period);
            }
        }
        let p99 = p99_bucket(&self.control);
        let before = |bucket: usize| latency_of_bucket(bucket) - 1;
        let candidate = p99.map_or(u64::MAX, |p99| before(first_slow_bucket(p99, self.latency_limit)));
        let control = p99.map_or(u64::MAX, |p99| before(p99 + 1));
        (Watch { tick, slow_us: candidate }, Watch { tick, slow_us: control })
    }

    /// Compares the keys that were bad since the last update.
    fn compare_keys(&mut self, candidate: &ArmEvidence, control: &ArmEvidence) {
        let (Some(candidate), Some(control)) = (&candidate.keys, &control.keys) else { return };
        let (candidate_before, control_before) = (self.candidate.keys.as_ref(), self.control.keys.as_ref());
        // A side that follows only half as many keys from some moment on: what came before and after it cannot be told apart.
        let same = |now: &KeyEvidence, before: Option<&KeyEvidence>| {
            before.is_none_or(|before| now.weight.to_bits() == before.weight.to_bits())
        };
        let usable = same(candidate, candidate_before) && same(control, control_before);
        let exposure = candidate.weight / control.weight;
        let comparisons = [
            (&mut self.errors, Fault::Failed),
            (&mut self.nonfinite, Fault::Nonfinite),
            (&mut self.latency, Fault::Slow),
        ];
        for (comparison, fault) in comparisons {
            let Some(comparison) = comparison else { continue };
            let counts = |keys: &KeyEvidence| Counts { requests: keys.keys(), bad: keys.ever_bad(fault) };
            (comparison.candidate, comparison.control) = (counts(candidate), counts(control));
            if !usable {
                continue;
            }
            let since = |of: &dyn Fn(&KeyEvidence) -> u64| {
                let new = |now, before: Option<&KeyEvidence>| of(now).saturating_sub(before.map_or(0, of));
                (new(candidate, candidate_before), new(control, control_before))
            };
            comparison.observe_keys(
                exposure,
                since(&|keys| keys.ever_bad(fault)),
                since(&|keys| keys.bad_in_periods(fault)),
            );
        }
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
    fn new(limit: f64, unit: Unit) -> Comparison {
        let ratio = RatioSequence::new(limit);
        let period = (unit == Unit::Key).then(|| Period { number: 0, bad: (0, 0), ratio: ratio.clone() });
        Comparison { limit, candidate: Counts::default(), control: Counts::default(), ratio, period }
    }

    fn observe(&mut self, candidate: Counts, control: Counts) {
        for (sum, more) in [(&mut self.candidate, candidate), (&mut self.control, control)] {
            sum.requests += more.requests;
            sum.bad += more.bad;
        }
        self.ratio.observe(candidate, control);
    }

    /// Adds keys that were bad for the first time in the step, and keys that were bad in this period.
    fn observe_keys(&mut self, exposure: f64, in_step: (u64, u64), in_period: (u64, u64)) {
        self.ratio.observe_bad(exposure, in_step.0, in_step.1);
        if let Some(period) = &mut self.period {
            period.ratio.observe_bad(exposure, in_period.0, in_period.1);
            period.bad = (period.bad.0 + in_period.0, period.bad.1 + in_period.1);
        }
    }

    fn begin_period(&mut self, number: u32) {
        if let Some(period) = &mut self.period {
            *period = Period { number, bad: (0, 0), ratio: RatioSequence::new(self.limit) };
        }
    }

    /// What the observations say. With keys, half of α is for the whole step and half for its periods, of which the j-th has the part
    /// 1/(j(j+1)): these parts add up to 1 however many periods there are.
    pub(crate) fn verdict(&self, alpha: f64) -> Verdict {
        let Some(period) = &self.period else {
            let exceeds = self.ratio.exceeds_limit(alpha);
            return Verdict { interval: self.ratio.interval(alpha), exceeds, in_period: None };
        };
        let j = f64::from(period.number) + 1.0;
        let (of_step, of_period) = (alpha / 2.0, alpha / 2.0 / (j * (j + 1.0)));
        if self.candidate.bad >= MIN_BAD_KEYS && self.ratio.exceeds_limit(of_step) {
            return Verdict { interval: self.ratio.interval(of_step), exceeds: true, in_period: None };
        }
        if period.bad.0 >= MIN_BAD_KEYS && period.ratio.exceeds_limit(of_period) {
            let interval = period.ratio.interval(of_period);
            return Verdict { interval, exceeds: true, in_period: Some(period.bad) };
        }
        Verdict { interval: self.ratio.interval(of_step), exceeds: false, in_period: None }
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

    const HOLD: Duration = Duration::from_mins(10);

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
        let mut evidence = StepEvidence::new(&Guardrails::default(), HOLD, 50.0, Unit::Request);
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
        let mut evidence = StepEvidence::new(&Guardrails::default(), HOLD, 50.0, Unit::Request);
        evidence.update(ArmEvidence::default(), latencies(&[(100, 1000)]));
        evidence.update(latencies(&[(140, 100)]), latencies(&[(100, 2000)]));
        assert_eq!(evidence.latency.unwrap().candidate, Counts { requests: 100, bad: 0 });
    }

    #[test]
    fn little_traffic_is_compared_as_well() {
        let failing = |requests, failed| ArmEvidence { requests, failed, ..ArmEvidence::default() };
        let mut evidence = StepEvidence::new(&Guardrails::default(), HOLD, 10.0, Unit::Request);
        // One request per update: nine of ten are the control's. Every request of the candidate fails.
        for n in 1..=400_u64 {
            evidence.update(failing(n / 10, n / 10), failing(n - n / 10, 0));
        }
        assert_eq!((evidence.candidate.requests, evidence.control.requests), (40, 360));
        let errors = evidence.errors.unwrap();
        assert_eq!((errors.candidate, errors.control), (counts(40, 40), counts(360, 0)), "every request is compared");
        assert!(errors.verdict(0.001).exceeds);
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
