//! Where and how a model's versions run, as tables.

use super::show::{cell, list, table};
use serde_json::Value;
use std::fmt::Write as _;

/// Each loaded version: where runs happen, what they cost, and which ran together.
pub(super) fn execution(answer: &Value) -> String {
    let versions: Vec<String> = list(answer, "versions").map(|v| version(v, answer)).collect();
    if versions.is_empty() {
        return format!("{} has no version loaded\n", cell(&answer["model"]));
    }
    versions.join("\n")
}

fn version(version: &Value, of: &Value) -> String {
    let mut text = format!("version {} ({})\n", cell(&version["version"]), cell(&version["engine"]));
    let place = match version["at_once"].as_bool() {
        Some(true) => "at once, on the thread that read the request: model.toml says so".to_owned(),
        Some(false) => "on a worker: model.toml says so".to_owned(),
        None => format!("at once up to {}, else on one of {} workers", time(&of["at_once_below_us"]), of["workers"]),
    };
    let cut = match version["spread"].as_bool() {
        Some(true) => "always, where workers idle: model.toml says so",
        Some(false) => "never: model.toml says so",
        None => "where workers idle and it was measured to pay",
    };
    let batching = &version["batching"];
    let why = cell(&batching["why"]);
    let together = if batching["enabled"] == true {
        format!("up to {} rows: {why}", batching["max_rows"])
    } else {
        format!("never: {why}")
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "runs:      {place}\ntogether:  {together}");
    if batching["enabled"] == true {
        let _ = writeln!(text, "cut:       {cut}");
    }
    let costs: Vec<Vec<String>> = list(version, "cost")
        .map(|point| {
            let place = if point["at_once"] == true { "at once" } else { "on a worker" };
            vec![cell(&point["elements"]), time(&point["us"]), place.to_owned()]
        })
        .collect();
    if !costs.is_empty() {
        text.push_str(&table(&["ELEMENTS", "A RUN TAKES", "WHERE"], &costs));
    }
    let runs = &version["runs"];
    let mut counts = vec![vec!["alone".to_owned(), cell(&runs["alone"])]];
    counts.extend(list(runs, "together").map(|t| vec![format!("up to {}", t["rows_up_to"]), cell(&t["runs"])]));
    text.push_str(&table(&["ROWS TOGETHER", "RUNS"], &counts));
    let _ = writeln!(
        text,
        "cut by rows over idle workers: {} requests, {} in vain\ntaken apart after a failure: {} runs; dropped before they ran: {} past their deadline, {} whose caller had left",
        runs["spread"], runs["cut_in_vain"], runs["taken_apart"], runs["expired"], runs["left"]
    );
    text
}

/// Of microseconds.
fn time(us: &Value) -> String {
    match us.as_f64() {
        Some(us) if us >= 1000.0 => format!("{:.2} ms", us / 1000.0),
        Some(us) => format!("{us:.1} us"),
        None => String::new(),
    }
}
