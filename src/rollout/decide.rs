//! Decisions: pure functions from a plan and its evidence to what happens next, with the reason in words.

use super::business::Says;
use super::comparison::Test;
use super::evidence::{ShadowEvidence, StepEvidence};
use super::guardrail::{Guardrail, Kind};
use super::plan::Plan;
use super::sequence::{Counts, RateSequence};
use crate::settings::show_duration;
use crate::telemetry::{ArmEvidence, Fault, Unit};
use std::time::Duration;

/// What to do next, each with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    Stay(String),
    Advance(String),
    TakeBack(String),
    /// Go to the last step at once, and end.
    EndEarly(String),
}

/// Decides at a step in which the candidate answers a share of the requests.
pub(super) fn judge(plan: &Plan, evidence: &StepEvidence, metrics: Says, held: Duration) -> Decision {
    let level = plan.level();
    for guardrail in &evidence.guardrails {
        if guardrail.test.exceeds(level) {
            return Decision::TakeBack(violation(guardrail, evidence.unit(), level, plan));
        }
    }
    if let Says::Worse(words) = metrics {
        return Decision::TakeBack(words);
    }
    if held < plan.hold {
        return Decision::Stay(format!("this step has run for {} of {}", seconds(held), show_duration(plan.hold)));
    }
    let requests = evidence.candidate.requests;
    if requests < plan.min_requests {
        return Decision::Stay(format!(
            "waiting for requests: the candidate has had {requests} of {}",
            plan.min_requests
        ));
    }
    if let Some(missing) = missing(plan, evidence) {
        return Decision::Stay(missing);
    }
    match metrics {
        Says::Wait(words) => return Decision::Stay(words),
        Says::Better(words) => return Decision::EndEarly(format!("the goal is reached: {words}")),
        Says::Nothing | Says::Worse(_) => {}
    }
    Decision::Advance(format!(
        "this step ran for {} with {requests} requests, and no guardrail was violated",
        seconds(held)
    ))
}

/// Decides before the first step, while the candidate is a shadow. `limit`: the share of pairs that may disagree.
pub(super) fn judge_shadow(plan: &Plan, limit: f64, evidence: &ShadowEvidence, held: Duration) -> Decision {
    let Counts { requests: pairs, bad: disagreed } = evidence.disagreements.counts();
    let level = plan.level();
    let summary = || {
        format!("{disagreed} of {pairs} pairs disagree ({}); the limit is {}", percent(disagreed, pairs), share(limit))
    };
    if evidence.disagreements.exceeds(limit, level) {
        return Decision::TakeBack(format!("shadow_disagreement violated: {}", summary()));
    }
    if held < plan.hold {
        return Decision::Stay(format!("a shadow for {} of {}", seconds(held), show_duration(plan.hold)));
    }
    if pairs < plan.min_shadow_pairs {
        return Decision::Stay(format!("waiting for shadow pairs: {pairs} of {} compared", plan.min_shadow_pairs));
    }
    if disagreed as f64 > limit * pairs as f64 {
        return Decision::Stay(format!(
            "{}: too many to begin, and not enough evidence to stop the rollout",
            summary()
        ));
    }
    Decision::Advance(summary())
}

/// The error probability of what `require` asks for, at each step.
const REQUIRE_LEVEL: f64 = 0.05;

/// What the plan requires and the evidence does not show yet, in words.
fn missing(plan: &Plan, evidence: &StepEvidence) -> Option<String> {
    let unit = evidence.unit();
    let required = plan.require;
    let waiting = |what: &str, so_far: String, limit: String| {
        Some(format!("waiting for evidence: {what} {so_far} at most, and {limit} is required"))
    };
    if let (Some(limit), Some(Test::Ratio(ratio))) =
        (required.error_rate_ratio, evidence.required.as_ref().map(|required| &required.test))
    {
        let upper = ratio.upper_end(REQUIRE_LEVEL);
        if upper > limit {
            let so_far = if upper.is_finite() { format!("{upper:.2}") } else { "unlimited".to_owned() };
            return waiting("the ratio of the error rates is", so_far, format!("{limit}"));
        }
    }
    let rate = |side: &ArmEvidence| RateSequence::of(errors(side, unit));
    if let Some(limit) = required.max_error_rate {
        let upper = rate(&evidence.candidate).interval(REQUIRE_LEVEL).1;
        if upper > limit {
            return waiting("the candidate's error rate is", share(upper), share(limit));
        }
    }
    if let Some(limit) = required.error_rate_difference {
        let upper = rate(&evidence.candidate).interval(REQUIRE_LEVEL / 2.0).1;
        let difference = upper - rate(&evidence.control).interval(REQUIRE_LEVEL / 2.0).0;
        if difference > limit {
            return waiting("the difference of the error rates is", share(difference), share(limit));
        }
    }
    None
}

/// Requests, or keys by their first request, and how many of them failed.
fn errors(side: &ArmEvidence, unit: Unit) -> Counts {
    match (unit, &side.keys) {
        (Unit::Key, Some(keys)) => Counts { requests: keys.keys(), bad: keys.bad_at_first(Fault::Failed) },
        _ => Counts { requests: side.requests, bad: side.failed },
    }
}

fn violation(guardrail: &Guardrail, unit: Unit, level: f64, plan: &Plan) -> String {
    let Guardrail { kind, limit, test } = guardrail;
    let (name, did) = (kind.name(), kind.words(unit));
    let units = match unit {
        Unit::Request => "requests",
        Unit::Key => "keys",
    };
    let verdict = test.verdict(level);
    let (low, high) = verdict.interval;
    let (candidate, control) = test.counts();
    let whose = if *kind == Kind::Before { "of both sides" } else { "of the candidate" };
    let Some(control) = control else {
        let Counts { requests, bad } = candidate;
        let of_all = match verdict.in_period {
            None => format!("{bad} of {requests} {units} {whose} {did}"),
            Some((bad, _)) => format!("in the current period {bad} {units} {whose} {did}"),
        };
        let limit = match kind {
            Kind::MaxErrors => format!("the limit is {}", share(*limit)),
            Kind::MaxP99 => format!("1 % may take longer than {limit} ms"),
            _ => format!("1 % may take longer than {limit} times the p99 from before the rollout"),
        };
        return format!("{name} violated: {of_all}; the share is between {} and {}, {limit}", share(low), share(high));
    };
    let interval =
        if high.is_finite() { format!("between {low:.2} and {high:.2}") } else { format!("at least {low:.2}") };
    let counts = match verdict.in_period {
        None => format!(
            "{} of {} candidate {units} {did} ({}), {} of {} control {units} ({})",
            candidate.bad,
            candidate.requests,
            percent(candidate.bad, candidate.requests),
            control.bad,
            control.requests,
            percent(control.bad, control.requests),
        ),
        Some((candidate, control)) => {
            format!("in the current period {candidate} candidate {units} and {control} control {units} {did}")
        }
    };
    let meaning = match kind {
        Kind::Latency => format!(
            ", the limit is 1; slow means above the control's p99, for the candidate above {} times that",
            plan.guardrails.p99_latency_ratio.unwrap_or(1.0)
        ),
        Kind::Engine => format!(
            ", the limit is 1; long means above the control's median for as many rows, for the candidate above {limit} times that"
        ),
        Kind::Constant => format!(" of the control to the candidate, the limit is {limit}"),
        _ => format!(", the limit is {limit}"),
    };
    format!("{name} violated: {counts}; the ratio is {interval}{meaning}")
}

fn percent(part: u64, whole: u64) -> String {
    share(if whole == 0 { 0.0 } else { part as f64 / whole as f64 })
}

fn share(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// The duration in whole seconds.
fn seconds(duration: Duration) -> String {
    show_duration(Duration::from_secs(duration.as_secs()))
}
