//! What to do next. Pure: from what was asked for and what was seen to a decision and its words.

use super::evidence::{Compared, ShadowEvidence, StepEvidence};
use super::plan::Plan;
use super::sequence::Counts;
use crate::settings::show_duration;
use std::time::Duration;

/// What a look at a step comes to, each with why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Stay(String),
    Advance(String),
    TakeBack(String),
}

/// A step in which the candidate answers its share.
#[must_use]
pub fn judge(plan: &Plan, evidence: &StepEvidence, held: Duration) -> Decision {
    let level = plan.guardrails.level(&plan.steps);
    let times = plan.guardrails.p99_latency_ratio.unwrap_or(1.0);
    let slow = format!("were slow (above {times} times the control's p99; of the control, above its p99)");
    let watched = [
        (&evidence.errors, "error_rate_ratio", "failed"),
        (&evidence.nonfinite, "nonfinite_ratio", "had outputs that are NaN or infinite"),
        (&evidence.latency, "p99_latency_ratio", slow.as_str()),
    ];
    for (compared, guardrail, what) in watched {
        if let Some(compared) = compared
            && compared.ratio.is_surely_above(level)
        {
            return Decision::TakeBack(broken(guardrail, what, compared, level));
        }
    }
    if held < plan.hold {
        return Decision::Stay(format!("held for {} of {}", seconds(held), show_duration(plan.hold)));
    }
    let requests = evidence.candidate.requests;
    if requests < plan.min_requests {
        return Decision::Stay(format!("the candidate has had {requests} of {} requests", plan.min_requests));
    }
    Decision::Advance(format!("held for {} and {requests} requests without a broken guardrail", seconds(held)))
}

/// The step before the first, in which the candidate is a shadow. `limit`: the share of pairs that may disagree.
#[must_use]
pub fn judge_shadow(plan: &Plan, limit: f64, evidence: &ShadowEvidence, held: Duration) -> Decision {
    let Counts { requests: pairs, bad: disagreed } = evidence.disagreements.seen();
    let level = plan.guardrails.level(&plan.steps);
    let words =
        || format!("{disagreed} of {pairs} pairs disagree ({}), {} allowed", percent(disagreed, pairs), share(limit));
    if evidence.disagreements.is_surely_above(limit, level) {
        return Decision::TakeBack(format!("shadow_disagreement is broken: {}", words()));
    }
    if held < plan.hold {
        return Decision::Stay(format!("a shadow for {} of {}", seconds(held), show_duration(plan.hold)));
    }
    if pairs < plan.min_shadow_pairs {
        return Decision::Stay(format!("{pairs} of {} pairs were compared", plan.min_shadow_pairs));
    }
    if disagreed as f64 > limit * pairs as f64 {
        return Decision::Stay(format!("{}: not beyond doubt, and no reason to begin", words()));
    }
    Decision::Advance(words())
}

fn broken(guardrail: &str, what: &str, compared: &Compared, level: f64) -> String {
    let Compared { limit, candidate, control, ratio } = compared;
    let side = |counts: &Counts| {
        format!("{} of {} requests ({})", counts.bad, counts.requests, percent(counts.bad, counts.requests))
    };
    let (low, high) = ratio.interval(level);
    let times = if high.is_finite() { format!("{low:.2} to {high:.2}") } else { format!("at least {low:.2}") };
    format!(
        "{guardrail} is broken: {} of the candidate {what}, {} of the control: {times} times as often, {limit} allowed",
        side(candidate),
        side(control),
    )
}

fn percent(part: u64, whole: u64) -> String {
    share(if whole == 0 { 0.0 } else { part as f64 / whole as f64 })
}

fn share(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// To the second: what is shown while time passes.
fn seconds(duration: Duration) -> String {
    show_duration(Duration::from_secs(duration.as_secs()))
}
