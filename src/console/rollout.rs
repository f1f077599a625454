//! A rollout: its steps, and what the evidence says against each limit.

use super::{evidence, show};
use maud::{Markup, html};
use serde_json::Value;

pub(super) fn section(model: &str, rollout: &Value, may_operate: bool) -> Markup {
    let text = |name: &str| show::text(rollout[name].as_str().unwrap_or_default(), 300);
    let state = rollout["state"].as_str().unwrap_or_default();
    let action = |name: &str, label: &str| {
        html! { a .button href=(format!("/models/{}/{name}", show::escaped(model))) { (label) } }
    };
    html! {
        section #rollout aria-labelledby="rollout-title" {
            h2 #rollout-title { "Rollout to version " (text("to")) " " (show::state(state)) }
            p { (text("why")) }
            (steps(rollout))
            @if may_operate && matches!(state, "running" | "shadowing" | "paused") {
                p .actions {
                    @if state == "paused" { (action("resume", "Resume")) } @else { (action("pause", "Pause")) }
                    (action("abort", "Abort and go back"))
                }
            }
            @if let Some(guardrails) = rollout["guardrails"].as_array().filter(|list| !list.is_empty()) {
                h3 { "Evidence of this step" }
                table {
                    thead { tr { th scope="col" { "Guardrail" } th scope="col" .number { "Candidate" } th scope="col" .number { "Control" } th scope="col" { "Interval against the limit" } th scope="col" { "In words" } } }
                    tbody { @for guardrail in guardrails { (row(guardrail)) } }
                }
            }
            (metrics(rollout))
            details {
                summary { "Moves so far" }
                ol { @for step in rollout["moves"].as_array().into_iter().flatten().take(15) {
                    li { (show::ago(&step["ts"])) ": " (show::share_of(&scaled(&step["percent"]))) ", " (show::text(step["reason"].as_str().unwrap_or_default(), 300)) }
                } }
            }
            p .quiet { "Begun by " (text("by")) ", " (show::ago(&rollout["started_at"])) ": " (text("reason")) }
        }
    }
}

fn scaled(percent: &Value) -> Value {
    percent.as_f64().map_or(Value::Null, |percent| (percent / 100.0).into())
}

fn steps(rollout: &Value) -> Markup {
    let current = rollout["step"].as_u64();
    html! {
        ol .steps aria-label="Steps" {
            @for (index, step) in rollout["steps"].as_array().into_iter().flatten().take(50).enumerate() {
                @let is_now = current == Some(index as u64);
                li class=[is_now.then_some("now")] aria-current=[is_now.then_some("step")] { (show::share_of(&scaled(step))) }
            }
        }
    }
}

/// Business metrics of the guardrails and the goal.
fn metrics(rollout: &Value) -> Markup {
    let Some(metrics) = rollout["metrics"].as_array().filter(|list| !list.is_empty()) else { return html! {} };
    html! {
        table {
            thead { tr { th scope="col" { "Metric" } th scope="col" .number { "Candidate" } th scope="col" .number { "Control" } th scope="col" { "Difference" } th scope="col" { "What for" } } }
            tbody { @for metric in metrics { tr {
                th scope="row" { (show::text(metric["metric"].as_str().unwrap_or_default(), 80)) }
                td .number { (show::number_of(&metric["candidate_mean"])) span .quiet { " of " (show::number_of(&metric["candidate_units"])) } }
                td .number { (show::number_of(&metric["control_mean"])) span .quiet { " of " (show::number_of(&metric["control_units"])) } }
                td { (evidence::difference(metric)) @if let Some(explained) = metric["cuped"]["variance_explained"].as_f64() { br; span .quiet { "without the " (show::share(explained)) " of the variance that values from before explain (CUPED); not the difference of the means" } } }
                td { @if metric["not_worse_than"].is_null() { "goal: it ends early when this is better beyond doubt" } @else { "guardrail: not worse than " (show::number_of(&metric["not_worse_than"])) } }
            } } }
        }
    }
}

fn row(guardrail: &Value) -> Markup {
    let name = guardrail["name"].as_str().unwrap_or_default();
    let limit = guardrail["limit"].as_f64().unwrap_or(0.0);
    let (low, high) = (guardrail["interval"][0].as_f64().unwrap_or(0.0), guardrail["interval"][1].as_f64());
    let side = |side: &Value| {
        let (bad, all) = (show::number_of(&side["bad"]), show::number_of(&side["requests"]));
        html! { @if side.is_null() { "–" } @else { (bad) " of " (all) } }
    };
    html! {
        tr {
            th scope="row" { (show::text(&name.replace('_', " "), 60)) }
            td .number { (side(&guardrail["candidate"])) }
            td .number { (side(&guardrail["control"])) }
            td { (interval(low, high, limit)) }
            td { (words(low, high, limit, guardrail["broken"] == true)) }
        }
    }
}

fn words(low: f64, high: Option<f64>, limit: f64, broken: bool) -> Markup {
    let range = match high {
        Some(high) => format!("between {} and {}", show::number(low), show::number(high)),
        None => format!("at least {}", show::number(low)),
    };
    html! {
        (range) "; the limit is " (show::number(limit)) ". "
        @if broken { strong .bad { "Worse than the limit beyond doubt." } }
        @else if high.is_some_and(|high| high <= limit) { "Within the limit beyond doubt." }
        @else { "Not decided yet." }
    }
}

/// An interval on a scale from 0 to twice the limit. An end beyond the scale is drawn to its edge.
pub(super) fn interval(low: f64, high: Option<f64>, limit: f64) -> Markup {
    let scale = if limit > 0.0 { limit * 2.0 } else { high.unwrap_or(1.0).max(low).max(1.0) };
    let at = |value: f64| (value / scale * 160.0).clamp(0.0, 160.0);
    let (from, to) = (at(low), high.map_or(160.0, at));
    html! {
        svg .interval viewBox="0 0 168 20" aria-hidden="true" {
            line .axis x1="4" y1="10" x2="164" y2="10" {}
            line .limit x1=(format!("{:.1}", at(limit) + 4.0)) y1="1" x2=(format!("{:.1}", at(limit) + 4.0)) y2="19" {}
            rect .range x=(format!("{:.1}", from + 4.0)) y="6" width=(format!("{:.1}", (to - from).max(2.0))) height="8" {}
        }
    }
}
