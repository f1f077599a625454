//! Decisions: pure functions from a plan and its evidence to what happens next, with the reason in words.

use super::evidence::{Comparison, ShadowEvidence, StepEvidence, Verdict};
use super::plan::Plan;
use super::sequence::Counts;
use crate::settings::show_duration;
use crate::telemetry::Unit;
use std::time::Duration;

/// What to do next, each with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    Stay(String),
    Advance(String),
    TakeBack(String),
}

/// Decides at a step in which the candidate answers a share of the requests.
pub(super) fn judge(plan: &Plan, evidence: &StepEvidence, held: Duration) -> Decision {
    let level = plan.guardrails.level(&plan.steps);
    let guardrails = [
        (&evidence.errors, "error_rate_ratio", "failed", "had a failed request"),
        (&evidence.nonfinite, "nonfinite_ratio", "had NaN or infinite outputs", "had NaN or infinite outputs"),
        (&evidence.latency, "p99_latency_ratio", "were slow", "had a slow request"),
    ];
    for (comparison, guardrail, requests, keys) in guardrails {
        let Some(comparison) = comparison else { continue };
        let verdict = comparison.verdict(level);
        if verdict.exceeds {
            let (units, what) = match evidence.unit() {
                Unit::Request => ("requests", requests),
                Unit::Key => ("keys", keys),
            };
            return Decision::TakeBack(violation(guardrail, units, what, comparison, &verdict, plan));
        }
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
    Decision::Advance(format!(
        "this step ran for {} with {requests} requests, and no guardrail was violated",
        seconds(held)
    ))
}

/// Decides before the first step, while the candidate is a shadow. `limit`: the share of pairs that may disagree.
pub(super) fn judge_shadow(plan: &Plan, limit: f64, evidence: &ShadowEvidence, held: Duration) -> Decision {
    let Counts { requests: pairs, bad: disagreed } = evidence.disagreements.counts();
    let level = plan.guardrails.level(&plan.steps);
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

fn violation(
    guardrail: &str,
    units: &str,
    what: &str,
    comparison: &Comparison,
    verdict: &Verdict,
    plan: &Plan,
) -> String {
    let Comparison { candidate, control, limit, .. } = comparison;
    let (low, high) = verdict.interval;
    let interval =
        if high.is_finite() { format!("between {low:.2} and {high:.2}") } else { format!("at least {low:.2}") };
    let slow = if guardrail == "p99_latency_ratio" {
        let times = plan.guardrails.p99_latency_ratio.unwrap_or(1.0);
        format!("; slow means above the control's p99, for the candidate above {times} times that")
    } else {
        String::new()
    };
    let counts = match verdict.in_period {
        None => format!(
            "{} of {} candidate {units} {what} ({}), {} of {} control {units} ({})",
            candidate.bad,
            candidate.requests,
            percent(candidate.bad, candidate.requests),
            control.bad,
            control.requests,
            percent(control.bad, control.requests),
        ),
        Some((candidate, control)) => {
            format!("in the current period {candidate} candidate {units} and {control} control {units} {what}")
        }
    };
    format!("{guardrail} violated: {counts}; the ratio is {interval}, the limit is {limit}{slow}")
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
