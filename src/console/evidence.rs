//! What is known about the arms of a model: its experiment by metric, and the accuracy of a version.

use super::{layout, show};
use maud::{Markup, html};
use serde_json::Value;

/// Of the rows of an experiment.
const BYTES_OF_EXPERIMENT: usize = 8_000;
/// Gateways that are named.
const GATEWAYS: usize = 12;

pub(super) fn experiment(experiment: &Value) -> Markup {
    let metrics = list(experiment, "metrics");
    if metrics.is_empty() || list(experiment, "arms").len() < 2 {
        return html! {};
    }
    let pairs = || metrics.iter().flat_map(|metric| list(metric, "arms").iter().map(move |arm| (metric, arm)));
    let count = pairs().count();
    let (rows, shown) = layout::fitting(pairs().map(|(metric, arm)| of_metric(metric, arm)), BYTES_OF_EXPERIMENT);
    html! {
        section #experiment aria-labelledby="experiment-title" {
            h2 #experiment-title { "Experiment" }
            p { (text(experiment, "summary", 800)) }
            (of_fleet(experiment))
            p .quiet { "Since revision " (show::number_of(&experiment["began_at_revision"])) ", " (show::ago(&experiment["began"])) ". Counted by " (text(experiment, "unit", 20)) "; the control is arm " (text(experiment, "control", 60)) ". All intervals together are right in " (show::share(1.0 - experiment["alpha"].as_f64().unwrap_or(0.05))) " of the cases, whenever one looks." }
            table {
                thead { tr { th scope="col" { "Metric" } th scope="col" { "Arm" } th scope="col" .number { "Units" } th scope="col" .number { "Mean" } th scope="col" { "Difference to the control" } th scope="col" { "In words" } } }
                tbody { (rows) }
            }
            @if shown < count { p .quiet { (show::counted((count - shown) as f64, "more row", "more rows")) ". " code { "sluicegate experiment" } " has all." } }
        }
    }
}

fn of_metric(metric: &Value, arm: &Value) -> Markup {
    let comparison = list(metric, "comparisons").iter().find(|one| one["arm"] == arm["arm"]);
    html! { tr {
        th scope="row" { (text(metric, "metric", 80)) }
        td { (text(arm, "arm", 60)) }
        td .number { (show::number_of(&arm["units"])) }
        td .number { (show::number_of(&arm["mean"])) }
        td { @if let Some(comparison) = comparison { (difference(comparison)) } @else { span .quiet { "control" } } }
        td { @if let Some(comparison) = comparison { (text(comparison, "words", 400)) } }
    } }
}

/// The interval of a difference, around 0.
pub(super) fn difference(comparison: &Value) -> Markup {
    let number = |name: &str| comparison[name].as_f64();
    let (Some(low), Some(high), Some(middle)) = (number("low"), number("high"), number("difference")) else {
        return html! { span .quiet { "–" } };
    };
    let scale = low.abs().max(high.abs()).max(f64::MIN_POSITIVE);
    let at = |value: f64| 84.0 + (value / scale).clamp(-1.0, 1.0) * 80.0;
    html! {
        svg .interval viewBox="0 0 168 20" role="img" aria-label=(format!("between {} and {}", show::number(low), show::number(high))) {
            line .axis x1="4" y1="10" x2="164" y2="10" {}
            line .limit x1="84" y1="1" x2="84" y2="19" {}
            rect .range x=(format!("{:.1}", at(low))) y="6" width=(format!("{:.1}", (at(high) - at(low)).max(2.0))) height="8" {}
            line .middle x1=(format!("{:.1}", at(middle))) x2=(format!("{:.1}", at(middle))) y1="3" y2="17" {}
        }
        br;
        (show::number(middle)) " (" (show::number(low)) " to " (show::number(high)) ")" @if let Some(verdict) = comparison["verdict"].as_str() { " " (show::state(verdict)) }
    }
}

/// The accuracy of a version over a window: of the rows with labels, and as their scores let expect.
pub(super) fn accuracy(quality: &Value, version: &str) -> Markup {
    let groups: Vec<&Value> = list(quality, "groups").iter().filter(|group| group["version"] == version).collect();
    if groups.iter().all(|group| group["estimated_accuracy"].is_null()) {
        return html! {};
    }
    let interval = |of: &Value| {
        html! {
            (show::share_of(&of["value"]))
            @if !of["low"].is_null() { span .quiet { " (" (show::share_of(&of["low"])) " to " (show::share_of(&of["high"])) ", " (show::number_of(&of["n"])) " rows)" } }
        }
    };
    html! {
        section #accuracy aria-labelledby="accuracy-title" {
            h2 #accuracy-title { "Accuracy of the last seven days" }
            table {
                thead { tr { th scope="col" { "Arm" } th scope="col" .number { "With a label" } th scope="col" { "From labels" } th scope="col" { "Estimated from scores" } th scope="col" { "Remarks" } } }
                tbody { @for group in groups {
                    @let checked = &group["estimated_accuracy"]["labelled"];
                    @let contradicted = checked["low"].as_f64().is_some_and(|low| low > 0.0) || checked["high"].as_f64().is_some_and(|high| high < 0.0);
                    tr {
                        th scope="row" { (text(group, "arm", 60)) }
                        td .number { (show::share_of(&group["labels"]["labelled_share"])) }
                        td { (interval(&group["metrics"]["accuracy"])) }
                        td { (interval(&group["estimated_accuracy"])) }
                        td { @if contradicted { span .warn { "The labels contradict the estimate: scores do not mean what they meant before." } } }
                    }
                } }
            }
        }
    }
}

/// Whose rows or counts are in the figures; nothing in no fleet.
pub(super) fn of_fleet(answer: &Value) -> Markup {
    let fleet = &answer["fleet"];
    if fleet.is_null() {
        return html! {};
    }
    let gateways = list(fleet, "gateways");
    let named: Vec<String> = gateways.iter().take(GATEWAYS).map(|gateway| text(gateway, "name", 64)).collect();
    let missing: Vec<&str> = list(fleet, "missing").iter().filter_map(Value::as_str).take(GATEWAYS).collect();
    html! {
        p .quiet {
            "Counted of " (named.join(", "))
            @if gateways.len() > GATEWAYS { " and " (show::counted((gateways.len() - GATEWAYS) as f64, "more gateway", "more gateways")) }
            "."
        }
        @if !missing.is_empty() { p .warn { "Not counted: what " (missing.join(", ")) " answered." } }
        @if fleet["waits"].is_string() { p .warn { (text(fleet, "waits", 200)) } }
    }
}

pub(super) fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map_or(&[][..], Vec::as_slice)
}

pub(super) fn text(value: &Value, name: &str, most: usize) -> String {
    show::text(value[name].as_str().unwrap_or_default(), most)
}
