//! What is known about the arms of a model: its experiment by metric, and how far live rows are from the reference.

use super::show;
use maud::{Markup, html};
use serde_json::Value;

/// Columns of a model that are shown.
const COLUMNS: usize = 500;

pub(super) fn experiment(experiment: &Value) -> Markup {
    let metrics = list(experiment, "metrics");
    if metrics.is_empty() || list(experiment, "arms").len() < 2 {
        return html! {};
    }
    html! {
        section #experiment aria-labelledby="experiment-title" {
            h2 #experiment-title { "Experiment" }
            p { (text(experiment, "summary", 800)) }
            p .quiet { "Since revision " (show::number_of(&experiment["began_at_revision"])) ", " (show::ago(&experiment["began"])) ". Counted by " (text(experiment, "unit", 20)) "; the control is arm " (text(experiment, "control", 60)) ". All intervals together are right in " (show::share(1.0 - experiment["alpha"].as_f64().unwrap_or(0.05))) " of the cases, whenever one looks." }
            table {
                thead { tr { th scope="col" { "Metric" } th scope="col" { "Arm" } th scope="col" .number { "Units" } th scope="col" .number { "Mean" } th scope="col" { "Difference to the control" } th scope="col" { "In words" } } }
                tbody {
                    @for metric in metrics { @for arm in list(metric, "arms") {
                        @let comparison = list(metric, "comparisons").iter().find(|one| one["arm"] == arm["arm"]);
                        tr {
                            th scope="row" { (text(metric, "metric", 80)) }
                            td { (text(arm, "arm", 60)) }
                            td .number { (show::number_of(&arm["units"])) }
                            td .number { (show::number_of(&arm["mean"])) }
                            td { @if let Some(comparison) = comparison { (difference(comparison)) } @else { span .quiet { "control" } } }
                            td { @if let Some(comparison) = comparison { (text(comparison, "words", 400)) } }
                        }
                    } }
                }
            }
        }
    }
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

pub(super) fn drift(drift: &Value) -> Markup {
    let versions = list(drift, "versions");
    if versions.is_empty() {
        return html! {};
    }
    let arms = versions.iter().flat_map(|version| list(version, "arms").iter().map(move |arm| (version, arm)));
    html! {
        section #drift aria-labelledby="drift-title" {
            h2 #drift-title { "Drift" }
            p { (text(drift, "summary", 800)) }
            @for trouble in list(drift, "troubles").iter().take(50) { p .warn { (text(trouble, "words", 500)) } }
            @for (version, arm) in arms {
                h3 { "Version " (text(version, "version", 20)) ", arm " (text(arm, "arm", 60)) }
                p .quiet { (show::number_of(&arm["rows"])) " rows, compared with " (show::number_of(&version["reference_rows"])) " of the reference (" (text(version, "reference", 40)) ")." }
                @if !list(arm, "columns").is_empty() { (columns(arm)) }
            }
        }
    }
}

fn columns(arm: &Value) -> Markup {
    let mut columns: Vec<&Value> = list(arm, "columns").iter().collect();
    // What alarms comes first, then what moved most.
    let distance = |column: &Value| {
        let of = list(column, "windows").iter().filter_map(|window| window["distance"].as_f64());
        of.fold(0.0, f64::max)
    };
    columns.sort_by(|a, b| {
        let key = |column: &Value| (column["alarm"] == true, distance(column));
        key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal)
    });
    html! {
        table {
            thead { tr { th scope="col" { "Column" } th scope="col" { "State" } th scope="col" { "Distance against its floor" } th scope="col" { "In words" } } }
            tbody { @for column in columns.iter().take(COLUMNS) {
                @let floor = column["floor"].as_f64().unwrap_or(0.0);
                @let far = distance(column);
                tr {
                    th scope="row" { (show::text(column["name"].as_str().or(column["column"].as_str()).unwrap_or_default(), 100)) }
                    td { (show::state(if column["alarm"] == true { "firing" } else { "ok" })) @if column["alarm"] == true { " since " (show::ago(&column["since"])) } }
                    td { (super::rollout::interval(0.0, Some(far), floor)) br; (show::number(far)) " of " (show::number(floor)) }
                    td { (text(column, "words", 400)) }
                }
            } }
        }
        @if columns.len() > COLUMNS { p .quiet { (columns.len() - COLUMNS) " more columns." } }
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

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map_or(&[][..], Vec::as_slice)
}

fn text(value: &Value, name: &str, most: usize) -> String {
    show::text(value[name].as_str().unwrap_or_default(), most)
}
