//! The guardrails of a step: which there are, what they count, and their words.

use super::comparison::{Test, Verdict};
use super::plan::Guardrails;
use crate::telemetry::{Fault, Unit};

/// A guardrail and its evidence.
#[derive(Debug, Clone)]
pub(crate) struct Guardrail {
    pub(crate) kind: Kind,
    /// As the plan gives it.
    pub(crate) limit: f64,
    pub(crate) test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Errors,
    Nonfinite,
    Latency,
    Engine,
    Constant,
    MaxErrors,
    MaxP99,
    Before,
}

/// A guardrail that would be broken with more false alarms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NearGuardrail {
    pub(crate) name: &'static str,
    /// The lower end of the interval at `level`; above the limit of the test.
    pub(crate) low: f64,
    /// As the plan gives it.
    pub(crate) limit: f64,
    pub(crate) level: f64,
}

/// The share of requests that may be above a 99th percentile.
const ABOVE_P99: f64 = 0.01;

impl Guardrail {
    /// The guardrails that are on in a step in which the candidate has `percent` %.
    pub(super) fn of_plan(g: &Guardrails, percent: f64, unit: Unit, p99_before_us: Option<u64>) -> Vec<Guardrail> {
        // Slow requests are compared by thresholds that contain the limit, so that their ratio must not exceed 1.
        let slow = |kind, limit| Guardrail { kind, limit, test: Test::ratio(1.0, unit) };
        let share = |kind, limit, share| Guardrail { kind, limit, test: Test::share(share, unit) };
        // An arm with fewer requests than another sees its callers' inputs change more often.
        let constant = g.constant_output_ratio.filter(|_| percent <= 50.0);
        [
            g.error_rate_ratio.map(|limit| Guardrail::ratio(Kind::Errors, limit, unit)),
            g.nonfinite_ratio.map(|limit| Guardrail::ratio(Kind::Nonfinite, limit, unit)),
            g.p99_latency_ratio.map(|limit| slow(Kind::Latency, limit)),
            g.engine_time_ratio.map(|limit| slow(Kind::Engine, limit)),
            constant.map(|limit| Guardrail { kind: Kind::Constant, limit, test: Test::reversed_ratio(limit, unit) }),
            g.max_error_rate.map(|limit| share(Kind::MaxErrors, limit, limit)),
            g.max_p99_ms.map(|limit| share(Kind::MaxP99, limit, ABOVE_P99)),
            g.p99_before_ratio.filter(|_| p99_before_us.is_some()).map(|limit| share(Kind::Before, limit, ABOVE_P99)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Whether the guardrail would be broken at the level α of `level`, although the plan's own level does not break it.
    pub(crate) fn near(&self, level: f64) -> Option<NearGuardrail> {
        let Verdict { interval: (low, _), exceeds, .. } = self.test.verdict(level);
        exceeds.then_some(NearGuardrail { name: self.kind.name(), low, limit: self.limit, level })
    }

    pub(super) fn ratio(kind: Kind, limit: f64, unit: Unit) -> Guardrail {
        Guardrail { kind, limit, test: Test::ratio(limit, unit) }
    }
}

impl Kind {
    /// As in the plan.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Errors => "error_rate_ratio",
            Kind::Nonfinite => "nonfinite_ratio",
            Kind::Latency => "p99_latency_ratio",
            Kind::Engine => "engine_time_ratio",
            Kind::Constant => "constant_output_ratio",
            Kind::MaxErrors => "max_error_rate",
            Kind::MaxP99 => "max_p99_ms",
            Kind::Before => "p99_before_ratio",
        }
    }

    /// What is counted of a key's requests.
    pub(super) fn fault(self) -> Fault {
        match self {
            Kind::Errors | Kind::MaxErrors => Fault::Failed,
            Kind::Nonfinite => Fault::Nonfinite,
            Kind::Latency => Fault::Slow,
            Kind::Engine => Fault::SlowEngine,
            Kind::Constant => Fault::Changed,
            Kind::MaxP99 => Fault::OverLimit,
            Kind::Before => Fault::OverBefore,
        }
    }

    /// What the counted requests, or keys, did.
    pub(super) fn words(self, unit: Unit) -> &'static str {
        match (self, unit) {
            (Kind::Errors | Kind::MaxErrors, Unit::Request) => "failed",
            (Kind::Errors | Kind::MaxErrors, Unit::Key) => "had a failed request",
            (Kind::Nonfinite, _) => "had NaN or infinite outputs",
            (Kind::Latency, Unit::Request) => "were slow",
            (Kind::Latency, Unit::Key) => "had a slow request",
            (Kind::Engine, Unit::Request) => "took long in the engine",
            (Kind::Engine, Unit::Key) => "had a request that took long in the engine",
            (Kind::Constant, Unit::Request) => "had another answer than the request before",
            (Kind::Constant, Unit::Key) => "had another answer than the arm's request before",
            (Kind::MaxP99, Unit::Request) => "took longer than the limit",
            (Kind::MaxP99, Unit::Key) => "had a request that took longer than the limit",
            (Kind::Before, Unit::Request) => "took longer than the p99 from before the rollout allows",
            (Kind::Before, Unit::Key) => "had a request that took longer than the p99 from before the rollout allows",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sequence::Counts;
    use super::*;

    /// Feeds a ratio with 2 of 100 failures against 1 of 100 until it is broken at the level. Returns the batch that came near, and the one
    /// that broke it.
    fn near_and_broken(level: f64) -> (u32, u32) {
        let mut guardrail = Guardrail::ratio(Kind::Errors, 1.0, Unit::Request);
        let mut near = None;
        for batch in 1..10_000 {
            let Test::Ratio(ratio) = &mut guardrail.test else { panic!("it is a ratio") };
            ratio.observe(Counts { requests: 100, bad: 2 }, Counts { requests: 100, bad: 1 });
            if near.is_none() && guardrail.near(4.0 * level).is_some() {
                near = Some(batch);
            }
            if guardrail.test.exceeds(level) {
                return (near.unwrap(), batch);
            }
        }
        panic!("twice as many failures are found");
    }

    #[test]
    fn a_guardrail_is_near_its_limit_before_it_is_broken() {
        for level in [0.001, 0.01] {
            let (near, broken) = near_and_broken(level);
            assert!(
                near < broken && near * 2 > broken,
                "level {level}: near after {near} batches, broken after {broken}"
            );
        }
        let mut equal = Guardrail::ratio(Kind::Errors, 1.0, Unit::Request);
        let Test::Ratio(ratio) = &mut equal.test else { panic!("it is a ratio") };
        for _ in 0..1000 {
            ratio.observe(Counts { requests: 100, bad: 1 }, Counts { requests: 100, bad: 1 });
        }
        assert_eq!(equal.near(0.04), None);
        let found = Guardrail { limit: 1.0, ..Guardrail::ratio(Kind::Errors, 0.1, Unit::Request) };
        assert_eq!(found.near(0.5), None, "without evidence nothing is near");
    }
}
