//! Quality and experiments for a person.

use super::show::{cell, count, list, table};
use serde_json::Value;
use std::fmt::Write as _;

/// A number with four significant digits; nothing for null.
fn number(value: &Value) -> String {
    let Some(x) = value.as_f64() else { return String::new() };
    if value.is_u64() || x == 0.0 {
        return value.to_string();
    }
    let power = x.abs().log10().floor();
    // Four significant digits.
    let digits = (0..12_u8).find(|digits| f64::from(*digits) >= 3.0 - power).unwrap_or(12);
    format!("{x:.*}", usize::from(digits))
}

fn interval(of: &Value) -> String {
    match (number(&of["low"]), number(&of["high"])) {
        (low, _) if low.is_empty() => String::new(),
        (low, high) => format!("{low} to {high}"),
    }
}

fn percent(value: &Value) -> String {
    value.as_f64().map_or_else(String::new, |share| format!("{:.1} %", 100.0 * share))
}

/// The answer without parameters.
pub(super) fn recent(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "arms")
        .map(|arm| {
            let values = arm["values"].as_object().into_iter().flatten();
            let values: Vec<String> = values.map(|(name, of)| format!("{name} {}", number(&of["mean"]))).collect();
            vec![
                cell(&arm["version"]),
                cell(&arm["arm"]),
                cell(&arm["predictions"]),
                cell(&arm["labelled"]),
                number(&arm["accuracy"]),
                number(&arm["mean_absolute_error"]),
                values.join(", "),
            ]
        })
        .collect();
    if rows.is_empty() {
        return format!("no recorded predictions yet\n{}", of_fleet(answer));
    }
    of_fleet(answer) + &table(&["VERSION", "ARM", "ROWS", "LABELS", "ACCURACY", "MEAN ABS ERROR", "VALUES"], &rows)
}

/// Figures over windows.
pub(super) fn windows(answer: &Value) -> String {
    let mut text = format!("from {} to {}\n", cell(&answer["from"]), cell(&answer["to"]));
    if answer["history"] == "reading" {
        text.push_str("the history before the start of the server is still being read: figures may grow\n");
    }
    text.push_str(&of_fleet(answer));
    let mut rows = Vec::new();
    for group in list(answer, "groups") {
        for (name, of) in group["metrics"].as_object().into_iter().flatten() {
            rows.push(vec![
                cell(&group["from"]),
                cell(&group["version"]),
                cell(&group["arm"]),
                cell(&group["segment"]),
                name.clone(),
                number(&of["value"]),
                interval(of),
                cell(&of["n"]),
                percent(&group["labels"]["labelled_share"]),
            ]);
        }
        rows.extend(estimated(group));
    }
    if rows.is_empty() {
        text.push_str("no rows with an outcome in this window\n");
        return text;
    }
    let head = ["FROM", "VERSION", "ARM", "SEGMENT", "METRIC", "VALUE", "95 % INTERVAL", "N", "LABELLED"];
    text.push_str(&table(&head, &rows));
    let smallest = &answer["smallest_segment"];
    if !smallest.is_null() {
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "smallest segment: {} with {}", cell(&smallest["segment"]), count(&smallest["rows"], "row"));
    }
    text.extend(list(answer, "groups").filter_map(contradicted));
    text
}

/// The accuracy that is expected from scores, as a row of the table.
fn estimated(group: &Value) -> Option<Vec<String>> {
    let of = &group["estimated_accuracy"];
    of.is_object().then(|| {
        let what = "accuracy, estimated from scores".to_owned();
        let group = ["from", "version", "arm", "segment"].map(|name| cell(&group[name]));
        group.into_iter().chain([what, number(&of["value"]), interval(of), cell(&of["n"]), String::new()]).collect()
    })
}

/// A line about an estimate that the labels contradict.
fn contradicted(group: &Value) -> Option<String> {
    let of = &group["estimated_accuracy"]["labelled"];
    let (low, high) = (of["low"].as_f64()?, of["high"].as_f64()?);
    (low > 0.0 || high < 0.0).then(|| {
        format!(
            "version {} on {}, from {}: labels of {} show an accuracy of {}, and their scores let expect {}: scores do not mean what they meant before\n",
            cell(&group["version"]),
            cell(&group["arm"]),
            cell(&group["from"]),
            count(&of["n"], "row"),
            number(&of["realised"]),
            number(&of["estimated"])
        )
    })
}

/// Whose rows or counts are in the figures; nothing in no fleet.
pub(super) fn of_fleet(answer: &Value) -> String {
    let fleet = &answer["fleet"];
    if fleet.is_null() {
        return String::new();
    }
    let gateways: Vec<String> = list(fleet, "gateways")
        .map(|gateway| match gateway["as_of"].as_str() {
            Some(as_of) => format!("{} (of {as_of})", cell(&gateway["name"])),
            None => cell(&gateway["name"]),
        })
        .collect();
    let mut text = format!("counted of {}", gateways.join(", "));
    if let Some(until) = answer["closed_until"].as_str() {
        let _ = write!(text, ", until {until}");
    }
    let missing: Vec<String> = list(fleet, "missing").map(cell).collect();
    if !missing.is_empty() {
        let _ = write!(text, "; not of {}", missing.join(", "));
    }
    if let Some(waits) = fleet["waits"].as_str() {
        let _ = write!(text, "; {waits}");
    }
    text.push('\n');
    text
}

pub(super) fn experiment(answer: &Value) -> String {
    let mut text = format!(
        "since revision {} ({}), by {}\n",
        answer["began_at_revision"],
        cell(&answer["began"]),
        cell(&answer["unit"])
    );
    if answer["history"] == "reading" {
        text.push_str("the history before the start of the server is still being read: figures may change\n");
    }
    text.push_str(&of_fleet(answer));
    let arms: Vec<Vec<String>> = list(answer, "arms")
        .map(|arm| {
            vec![
                cell(&arm["arm"]),
                cell(&arm["version"]),
                number(&arm["weight"]),
                cell(&arm["units"]),
                cell(&arm["rows"]),
            ]
        })
        .collect();
    text.push_str(&table(&["ARM", "VERSION", "WEIGHT", "UNITS", "ROWS"], &arms));
    let _ = writeln!(text, "sample ratio: {}", cell(&answer["sample_ratio"]["verdict"]));
    let mut rows = Vec::new();
    for metric in list(answer, "metrics") {
        for arm in list(metric, "arms") {
            let compared = list(metric, "comparisons").find(|c| c["arm"] == arm["arm"]);
            let of = |key: &str| compared.map_or(Value::Null, |c| c[key].clone());
            rows.push(vec![
                cell(&metric["metric"]),
                cell(&arm["arm"]),
                cell(&arm["units"]),
                number(&arm["mean"]),
                number(&of("difference")),
                compared.map(interval).unwrap_or_default(),
                percent(&of("relative")),
                cell(&of("verdict")),
            ]);
        }
    }
    text.push_str(&table(
        &["METRIC", "ARM", "UNITS", "MEAN", "DIFFERENCE", "INTERVAL AT EVERY LOOK", "RELATIVE", "VERDICT"],
        &rows,
    ));
    text.extend(list(answer, "metrics").filter_map(super::rollout::adjusted));
    for sentence in list(answer, "summary") {
        let _ = writeln!(text, "{}", cell(sentence));
    }
    text
}
