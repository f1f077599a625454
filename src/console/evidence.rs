//! What is known about the arms of a model: its experiment by metric, and how far live rows are from the reference.

use super::{layout, show};
use maud::{Markup, html};
use serde_json::Value;

/// Of the columns of all arms, of one arm at least, and of an experiment.
const BYTES: usize = 14_000;
const BYTES_OF_ARM: usize = 4_000;
const BYTES_OF_EXPERIMENT: usize = 8_000;
/// Arms whose drift is shown.
const ARMS: usize = 3;

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
            p .quiet { "Since revision " (show::number_of(&experiment["began_at_revision"])) ", " (show::ago(&experiment["began"])) ". Counted by " (text(experiment, "unit", 20)) "; the control is arm " (text(experiment, "control", 60)) ". All intervals together are right in " (show::share(1.0 - experiment["alpha"].as_f64().unwrap_or(0.05))) " of the cases, whenever one looks." }
            table {
                thead { tr { th scope="col" { "Metric" } th scope="col" { "Arm" } th scope="col" .number { "Units" } th scope="col" .number { "Mean" } th scope="col" { "Difference to the control" } th scope="col" { "In words" } } }
                tbody { (rows) }
            }
            @if shown < count { p .quiet { (count - shown) " more rows. " code { "sluicegate experiment" } " has all." } }
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

pub(super) fn drift(drift: &Value) -> Markup {
    let versions = list(drift, "versions");
    if versions.is_empty() {
        return html! {};
    }
    let arms: Vec<(&Value, &Value)> =
        versions.iter().flat_map(|version| list(version, "arms").iter().map(move |arm| (version, arm))).collect();
    let bytes = (BYTES / arms.len().max(1)).max(BYTES_OF_ARM);
    html! {
        section #drift aria-labelledby="drift-title" {
            h2 #drift-title { "Drift" }
            p { (text(drift, "summary", 800)) }
            @for trouble in list(drift, "troubles").iter().take(5) { p .warn { (text(trouble, "words", 500)) } }
            @for (version, arm) in arms.iter().take(ARMS) {
                h3 { "Version " (text(version, "version", 20)) ", arm " (text(arm, "arm", 60)) }
                p .quiet { (show::number_of(&arm["rows"])) " rows, compared with " (show::number_of(&version["reference_rows"])) " of the reference (" (text(version, "reference", 40)) ")." }
                @if !list(arm, "columns").is_empty() { (columns(arm, bytes)) }
            }
            @if arms.len() > ARMS { p .quiet { (arms.len() - ARMS) " more arms. " code { "sluicegate drift" } " has all." } }
        }
    }
}

fn columns(arm: &Value, bytes: usize) -> Markup {
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
    let rows = columns.iter().map(|column| {
        let floor = column["floor"].as_f64().unwrap_or(0.0);
        let far = distance(column);
        html! { tr {
            th scope="row" { (show::text(column["name"].as_str().or(column["column"].as_str()).unwrap_or_default(), 100)) }
            td { (show::state(if column["alarm"] == true { "firing" } else { "ok" })) @if column["alarm"] == true { " since " (show::ago(&column["since"])) } }
            td { (super::rollout::interval(0.0, Some(far), floor)) br; (show::number(far)) " of " (show::number(floor)) }
            td { (text(column, "words", 400)) }
        } }
    });
    let (rows, shown) = layout::fitting(rows, bytes);
    html! {
        table {
            thead { tr { th scope="col" { "Column" } th scope="col" { "State" } th scope="col" { "Distance against its floor" } th scope="col" { "In words" } } }
            tbody { (rows) }
        }
        @if columns.len() > shown { p .quiet { "The " (shown) " of " (columns.len()) " columns that moved most. " code { "sluicegate drift" } " has all." } }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_500_columns_those_that_moved_most_are_shown() {
        let column = |n: usize| json!({"column": format!("inputs.x[{n}]"), "alarm": n == 250, "floor": 0.05, "words": "a sentence", "windows": [{"distance": 0.001 * n as f64}]});
        let arm = json!({"arm": "1", "rows": 5, "columns": (0..500).map(column).collect::<Vec<_>>()});
        let drawn = drift(&json!({"versions": [{"version": "1", "arms": [arm]}]})).into_string();
        assert!(drawn.len() < BYTES + 2000, "{} bytes", drawn.len());
        let at = |n: usize| drawn.find(&format!("inputs.x[{n}]<"));
        assert!(at(250) < at(499) && at(499) < at(498) && at(250).is_some(), "{drawn}");
        assert!(at(1).is_none() && drawn.contains("of 500 columns that moved most"), "{drawn}");
    }
}
