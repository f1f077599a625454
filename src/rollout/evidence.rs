//! The evidence of a step: what the candidate and the control have done since the step began.

use super::comparison::Test;
use super::guardrail::{Guardrail, Kind};
use super::plan::Plan;
use super::sequence::{Counts, RateSequence};
use crate::shadow::Agreement;
use crate::telemetry::{
    ArmEvidence, Fault, KeyEvidence, LATENCY_BUCKETS, PERIOD_TICKS, ROW_CLASSES, Unit, Watch, latency_bucket,
    latency_of_bucket, rows_of_class,
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
    pub(crate) guardrails: Vec<Guardrail>,
    /// The ratio of the error rates, where the plan requires one.
    pub(super) required: Option<Guardrail>,
    limits: Limits,
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

/// The numbers of the plan that decide what is slow.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// How many times the control's 99th percentile.
    p99_ratio: f64,
    /// How many times the control's median engine time.
    engine_ratio: f64,
    max_p99_us: Option<u64>,
    before_us: Option<u64>,
}

/// The first buckets that are slow.
struct Slow {
    /// By latency, for the candidate and the control.
    latency: Option<(usize, usize)>,
    /// By engine time per row.
    engine: [Option<(usize, usize)>; ROW_CLASSES],
    over_limit: usize,
    over_before: usize,
}

/// One arm between two updates.
#[derive(Clone, Copy)]
struct Since<'a> {
    now: &'a ArmEvidence,
    before: &'a ArmEvidence,
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
/// Runs of the control with a number of rows that are needed before their median engine time is used.
const MIN_RUNS_FOR_MEDIAN: u64 = 100;
/// A run is not slow unless it takes this much longer than the median. Less may come from caches that hold nothing of a version with few
/// requests.
const LEAST_SLOWER_US: f64 = 200.0;
/// Requests of the smaller arm to expect in one comparison. With less traffic several updates are compared together: nothing can be
/// learned from a few requests that are all on one side, and at five requests a second hardly any tenth of a second has both. When to
/// compare depends only on the sum of both arms, never on which arm had the requests. Otherwise a burst of failures that hits both
/// arms would look like the candidate's fault, because its request may have ended the wait.
const EXPECTED_REQUESTS: f64 = 4.0;
/// Ticks of the shortest time that a step is held.
const TICKS: u32 = 64;
/// Not shorter than the time between two checks.
const SHORTEST_TICK: Duration = Duration::from_millis(100);

// === impl StepEvidence ===

impl StepEvidence {
    /// For a step in which the candidate has `percent` % of the units. At 0 and at 100 there is nothing to compare. `p99_before_us`: the
    /// 99th percentile of the latency from before the rollout.
    pub(crate) fn new(plan: &Plan, percent: f64, unit: Unit, p99_before_us: Option<u64>) -> StepEvidence {
        let smaller = percent.min(100.0 - percent) / 100.0;
        let g = &plan.guardrails;
        StepEvidence {
            candidate: ArmEvidence::default(),
            control: ArmEvidence::default(),
            guardrails: Guardrail::of_plan(g, percent, unit, p99_before_us),
            required: plan.require.error_rate_ratio.map(|limit| Guardrail::ratio(Kind::Errors, limit, unit)),
            limits: Limits {
                p99_ratio: g.p99_latency_ratio.unwrap_or(1.0),
                engine_ratio: g.engine_time_ratio.unwrap_or(1.0),
                max_p99_us: g.max_p99_ms.map(|ms| whole(ms * 1e3)),
                before_us: g.p99_before_ratio.zip(p99_before_us).map(|(ratio, us)| whole(us as f64 * ratio)),
            },
            compared: (ArmEvidence::default(), ArmEvidence::default()),
            min_new_requests: EXPECTED_REQUESTS / smaller,
            unit,
            tick: (plan.hold / TICKS).max(SHORTEST_TICK),
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
            for guardrail in self.guardrails.iter_mut().chain(&mut self.required) {
                guardrail.test.begin_period(self.period);
            }
        }
        let slow = Slow::by(&self.control, &self.limits);
        let below = |bucket: Option<usize>| bucket.map_or(u64::MAX, |bucket| latency_of_bucket(bucket) - 1);
        let watch = |side: fn((usize, usize)) -> usize| Watch {
            tick,
            slow_us: below(slow.latency.map(side)),
            limit_us: self.limits.max_p99_us.unwrap_or(u64::MAX),
            before_us: self.limits.before_us.unwrap_or(u64::MAX),
            engine_us: slow.engine.map(|buckets| below(buckets.map(side))),
        };
        (watch(|(candidate, _)| candidate), watch(|(_, control)| control))
    }

    /// Compares the keys that were bad since the last update.
    fn compare_keys(&mut self, candidate: &ArmEvidence, control: &ArmEvidence) {
        let (Some(candidate), Some(control)) = (&candidate.keys, &control.keys) else { return };
        let none = KeyEvidence::default();
        let known = self.candidate.keys.as_ref().zip(self.control.keys.as_ref());
        let (candidate_before, control_before) = known.unwrap_or((&none, &none));
        // A side that follows only half as many keys from some moment on: what came before and after it cannot be told apart.
        let same = |now: &KeyEvidence, before: &KeyEvidence| now.weight.to_bits() == before.weight.to_bits();
        let usable = known.is_none() || same(candidate, candidate_before) && same(control, control_before);
        let exposure = candidate.weight / control.weight;
        let since = |of: &dyn Fn(&KeyEvidence) -> u64| {
            let of_candidate = of(candidate).saturating_sub(of(candidate_before));
            (of_candidate, of(control).saturating_sub(of(control_before)))
        };
        for Guardrail { kind, test, .. } in self.guardrails.iter_mut().chain(&mut self.required) {
            let fault = kind.fault();
            // Engine times of half of the keys are slow from the start, so the first request of a key decides.
            let once = |keys: &KeyEvidence| match kind {
                Kind::Engine | Kind::Constant => keys.bad_at_first(fault),
                _ => keys.ever_bad(fault),
            };
            match test {
                Test::Ratio(ratio) => {
                    let counts = |keys: &KeyEvidence| Counts { requests: keys.keys(), bad: once(keys) };
                    (ratio.candidate, ratio.control) = (counts(candidate), counts(control));
                    let bad = since(&|keys| keys.bad_in_periods(fault));
                    if *kind == Kind::Constant {
                        let new = since(&|keys| keys.keys().saturating_sub(keys.bad_at_first(Fault::Failed)));
                        let answered =
                            since(&|keys| keys.in_periods().saturating_sub(keys.bad_in_periods(Fault::Failed)));
                        let counts = |requests: u64, bad: u64| Counts { requests, bad: bad.min(requests) };
                        let pair = |all: (u64, u64), bad: (u64, u64)| (counts(all.0, bad.0), counts(all.1, bad.1));
                        ratio.observe_counted_keys(pair(new, since(&once)), pair(answered, bad));
                    } else if usable {
                        ratio.observe_keys(exposure, since(&once), bad);
                    }
                }
                Test::Share(share) => {
                    let in_step = (since(&KeyEvidence::keys), since(&|keys| keys.bad_at_first(fault)));
                    let in_period = (since(&KeyEvidence::in_periods), since(&|keys| keys.bad_in_periods(fault)));
                    let counts = |((of_candidate, of_control), (bad, bad_control)): ((u64, u64), (u64, u64))| {
                        let both = u64::from(*kind == Kind::Before);
                        let requests = of_candidate + both * of_control;
                        Counts { requests, bad: (bad + both * bad_control).min(requests) }
                    };
                    share.observe(counts(in_step), counts(in_period));
                }
            }
        }
    }

    /// Compares the requests since the last comparison, once there are enough of them.
    fn compare(&mut self, candidate: &ArmEvidence, control: &ArmEvidence) {
        let (candidate_before, control_before) = &self.compared;
        let of_candidate = Since { now: candidate, before: candidate_before };
        let of_control = Since { now: control, before: control_before };
        if ((of_candidate.requests() + of_control.requests()) as f64) < self.min_new_requests {
            return;
        }
        // The thresholds for "slow" come from the control's earlier requests. A threshold from the compared requests themselves would
        // break the martingale.
        let slow = Slow::by(control_before, &self.limits);
        let above = |from: usize| move |arm: &ArmEvidence| arm.latency[from..].iter().sum::<u64>();
        for Guardrail { kind, test, .. } in self.guardrails.iter_mut().chain(&mut self.required) {
            let counts = |side: Since, slow_from: fn((usize, usize)) -> usize| match kind {
                Kind::Errors | Kind::MaxErrors => Some(side.counts(|arm| arm.failed)),
                Kind::Nonfinite => Some(side.counts(|arm| arm.nonfinite)),
                Kind::Latency => Some(side.counts(above(slow_from(slow.latency?)))),
                Kind::MaxP99 => Some(side.counts(above(slow.over_limit))),
                Kind::Before => Some(side.counts(above(slow.over_before))),
                Kind::Engine => Some(side.runs(&slow.engine.map(|buckets| buckets.map(slow_from)))),
                Kind::Constant => {
                    let Counts { requests, bad } = side.counts(|arm| arm.failed);
                    let answered = requests - bad;
                    let changed = side.count(|arm| arm.watched.as_ref().map_or(0, |watched| watched.changed));
                    Some(Counts { requests: answered, bad: changed.min(answered) })
                }
            };
            let (Some(candidate), Some(control)) =
                (counts(of_candidate, |(candidate, _)| candidate), counts(of_control, |(_, control)| control))
            else {
                continue;
            };
            match test {
                Test::Ratio(ratio) => ratio.observe(candidate, control),
                Test::Share(share) if *kind == Kind::Before => {
                    let both =
                        Counts { requests: candidate.requests + control.requests, bad: candidate.bad + control.bad };
                    share.observe(both, both);
                }
                Test::Share(share) => share.observe(candidate, candidate),
            }
        }
        self.compared = (candidate.clone(), control.clone());
    }
}

// === impl Since ===

impl Since<'_> {
    fn count(&self, of: impl Fn(&ArmEvidence) -> u64) -> u64 {
        of(self.now).saturating_sub(of(self.before))
    }

    fn requests(&self) -> u64 {
        self.count(|arm| arm.requests)
    }

    /// The requests, and how many of them were bad.
    fn counts(&self, bad: impl Fn(&ArmEvidence) -> u64) -> Counts {
        let requests = self.requests();
        Counts { requests, bad: self.count(bad).min(requests) }
    }

    /// The runs in classes of rows with a threshold, and how many of them were slow.
    fn runs(&self, slow_from: &[Option<usize>; ROW_CLASSES]) -> Counts {
        let mut sum = Counts::default();
        for (class, from) in slow_from.iter().enumerate() {
            let Some(from) = *from else { continue };
            let runs = |from: usize| {
                self.count(|arm| arm.watched.as_ref().map_or(0, |watched| watched.engine[class][from..].iter().sum()))
            };
            let all = runs(0);
            sum.requests += all;
            sum.bad += runs(from).min(all);
        }
        sum
    }
}

// === impl Slow ===

impl Slow {
    /// By the control's requests until now.
    fn by(control: &ArmEvidence, limits: &Limits) -> Slow {
        let above = |us: Option<u64>| us.map_or(LATENCY_BUCKETS, bucket_above);
        let engine = |class: usize| {
            let runs = &control.watched.as_ref()?.engine[class];
            let median = median_bucket(runs)?;
            let upper = latency_of_bucket(median + 1) as f64;
            let most = (upper * limits.engine_ratio).max(upper + LEAST_SLOWER_US / rows_of_class(class) as f64);
            Some((bucket_above(whole(most)), median + 1))
        };
        Slow {
            latency: p99_bucket(control).map(|p99| (first_slow_bucket(p99, limits.p99_ratio), p99 + 1)),
            engine: std::array::from_fn(engine),
            over_limit: above(limits.max_p99_us),
            over_before: above(limits.before_us),
        }
    }
}

/// A positive number without its fraction.
fn whole(number: f64) -> u64 {
    // Durations are far below the 2^53 that a double holds exactly.
    Duration::try_from_secs_f64(number).map_or(u64::MAX, |duration| duration.as_secs())
}

/// The first bucket whose values are all above this one.
fn bucket_above(us: u64) -> usize {
    (latency_bucket(Duration::from_micros(us)) + 1).min(LATENCY_BUCKETS - 1)
}

/// The bucket of the median; `None` while there are too few runs.
fn median_bucket(runs: &[u64; LATENCY_BUCKETS]) -> Option<usize> {
    let all: u64 = runs.iter().sum();
    if all < MIN_RUNS_FOR_MEDIAN {
        return None;
    }
    let mut below = 0;
    let bucket = runs.iter().position(|count| {
        below += count;
        2 * below >= all
    });
    bucket.filter(|bucket| bucket + 1 < LATENCY_BUCKETS)
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
    bucket_above(whole(latency_of_bucket(bucket + 1) as f64 * times))
}

/// The 99th percentile of the latency in microseconds, rounded up by at most an eighth; `None` while there are too few requests.
pub(crate) fn p99_us(evidence: &ArmEvidence) -> Option<u64> {
    p99_bucket(evidence).map(|bucket| latency_of_bucket(bucket + 1))
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

    fn step(percent: f64) -> StepEvidence {
        let plan = Plan::parse(&serde_json::json!({"to": "2", "reason": "a test"})).unwrap();
        StepEvidence::new(&plan, percent, Unit::Request, None)
    }

    fn counts_of(evidence: &StepEvidence, kind: Kind) -> (Counts, Counts) {
        let guardrail = evidence.guardrails.iter().find(|guardrail| guardrail.kind == kind).unwrap();
        let (candidate, control) = guardrail.test.counts();
        (candidate, control.unwrap())
    }

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
        let mut evidence = step(50.0);
        evidence.update(latencies(&[(100, 10)]), latencies(&[(100, 1000)]));
        assert_eq!(counts_of(&evidence, Kind::Latency).1.requests, 0, "before the first update there is no threshold");
        // The candidate is twice as slow, and one and a half times is allowed; a tenth of the control is slow too.
        evidence.update(latencies(&[(100, 10), (200, 50)]), latencies(&[(100, 1900), (400, 100)]));
        let (candidate, control) = counts_of(&evidence, Kind::Latency);
        assert_eq!(candidate, Counts { requests: 50, bad: 50 });
        assert_eq!(control, Counts { requests: 1000, bad: 100 });
    }

    #[test]
    fn a_latency_within_the_limit_is_not_slow() {
        let mut evidence = step(50.0);
        evidence.update(ArmEvidence::default(), latencies(&[(100, 1000)]));
        evidence.update(latencies(&[(140, 100)]), latencies(&[(100, 2000)]));
        assert_eq!(counts_of(&evidence, Kind::Latency).0, Counts { requests: 100, bad: 0 });
    }

    #[test]
    fn little_traffic_is_compared_as_well() {
        let failing = |requests, failed| ArmEvidence { requests, failed, ..ArmEvidence::default() };
        let mut evidence = step(10.0);
        // One request per update: nine of ten are the control's. Every request of the candidate fails.
        for n in 1..=400_u64 {
            evidence.update(failing(n / 10, n / 10), failing(n - n / 10, 0));
        }
        assert_eq!((evidence.candidate.requests, evidence.control.requests), (40, 360));
        assert_eq!(counts_of(&evidence, Kind::Errors), (counts(40, 40), counts(360, 0)), "every request is compared");
        assert!(evidence.guardrails[0].test.exceeds(0.001));
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
