//! The drift of a model for a person.

use super::show::{cell, count, list, table};
use serde_json::Value;
use std::fmt::Write as _;

/// Columns that are listed beside those that alarm, by their distance.
const LISTED: usize = 10;

pub(super) fn drift(answer: &Value) -> String {
    let mut text = format!("{}\n", cell(&answer["summary"]));
    // Writing to a String cannot fail.
    for trouble in list(answer, "troubles") {
        let _ = writeln!(
            text,
            "  {} of version {} on arm {}, since {}: {}",
            cell(&trouble["what"]),
            cell(&trouble["version"]),
            cell(&trouble["arm"]),
            cell(&trouble["since"]),
            cell(&trouble["words"])
        );
    }
    text.push_str(&super::show_outcomes::of_fleet(answer));
    for version in list(answer, "versions") {
        let reference = match version["reference"].as_str() {
            Some("profile") => format!("profile.json of {}", count(&version["reference_rows"], "row")),
            Some(_) => format!("its own first day, {}", count(&version["reference_rows"], "row")),
            None => {
                format!("none yet; {} rows of its first day so far", version["first_day_rows"].as_u64().unwrap_or(0))
            }
        };
        let _ = writeln!(text, "\nversion {}: reference {reference}", cell(&version["version"]));
        for note in list(version, "notes") {
            let _ = writeln!(text, "  note: {}", cell(note));
        }
        for arm in list(version, "arms") {
            let since = arm["since"].as_str().map(|since| format!(" since {since}")).unwrap_or_default();
            let like = if arm["like_with_like"] == true { "" } else { "; hours are not compared like with like yet" };
            let _ = writeln!(
                text,
                "  arm {}: {} of {} rows counted{since}{like}",
                cell(&arm["arm"]),
                cell(&arm["counted"]),
                cell(&arm["rows"])
            );
            text.push_str(&columns(arm));
            list(arm, "columns").for_each(|column| text.push_str(&bins(column)));
        }
    }
    text
}

/// Reference and live rows of a column by bin, where they were asked for.
fn bins(column: &Value) -> String {
    let share = |value: &Value| value.as_f64().map_or_else(String::new, |share| format!("{:.2} %", share * 100.0));
    let row = |bin: &Value| vec![cell(&bin["name"]), share(&bin["reference"]), share(&bin["live"])];
    let rows: Vec<Vec<String>> = list(&column["bins"], "bins").map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let name = if column["name"].is_null() { cell(&column["column"]) } else { cell(&column["name"]) };
    let mut text = format!("    {name}, the last {}:\n", cell(&column["bins"]["window"]).replace('_', " "));
    for line in table(&["VALUES", "REFERENCE", "LIVE"], &rows).lines() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "      {line}");
    }
    text
}

/// The longest window of each column, the most distant columns first.
fn columns(arm: &Value) -> String {
    let last = |column: &Value| list(column, "windows").last().cloned();
    let mut columns: Vec<(&Value, Value)> =
        list(arm, "columns").filter_map(|column| Some((column, last(column)?))).collect();
    let distance = |window: &Value| window["distance"].as_f64().unwrap_or(0.0);
    columns.sort_by(|(_, a), (_, b)| distance(b).total_cmp(&distance(a)));
    let alarms = columns.iter().filter(|(column, _)| column["alarm"] == true).count();
    let more = columns.len().saturating_sub(LISTED.max(alarms));
    columns.sort_by_key(|(column, _)| column["alarm"] != true);
    let number = |value: &Value| value.as_f64().map_or_else(String::new, |number| format!("{number:.3}"));
    let word = |value: &Value| if *value == true { "yes" } else { "no" }.to_owned();
    let row = |(column, window): &(&Value, Value)| {
        let name = if column["name"].is_null() { cell(&column["column"]) } else { cell(&column["name"]) };
        vec![
            name,
            if column["alarm"] == true { "ALARM".to_owned() } else { String::new() },
            cell(&window["window"]),
            cell(&window["rows"]),
            word(&window["different"]),
            word(&window["matters"]),
            format!("{} of {}", number(&window["distance"]), number(&window["floor"])),
            format!("{} of {}", number(&window["evidence"]), number(&window["needed"])),
            number(&window["mean_moved"]),
        ]
    };
    let rows: Vec<Vec<String>> = columns.iter().take(LISTED.max(alarms)).map(row).collect();
    if rows.is_empty() {
        return "  no window has ended yet\n".to_owned();
    }
    let head = ["COLUMN", "", "WINDOW", "ROWS", "DIFFERENT", "MATTERS", "DISTANCE", "EVIDENCE", "MEAN MOVED (SD)"];
    let mut text = String::new();
    for line in table(&head, &rows).lines() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {line}");
    }
    if more > 0 {
        let _ = writeln!(text, "    and {more} more columns: --json has all");
    }
    text
}
