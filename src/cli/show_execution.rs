//! Formats how a model's versions run: on which threads, for how long, and how many requests together.

use super::show::{cell, list, table};
use serde_json::Value;
use std::fmt::Write as _;

/// All loaded versions.
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
        _ if version["never_at_once"].is_string() => {
            format!("always on a worker ({})", cell(&version["never_at_once"]))
        }
        Some(true) => "always on the I/O thread (set in model.toml)".to_owned(),
        Some(false) => "always on a worker (set in model.toml)".to_owned(),
        None => format!(
            "up to {} on the I/O thread, else on one of {} workers",
            time(&of["at_once_below_us"]),
            of["workers"]
        ),
    };
    let split = match version["spread"].as_bool() {
        Some(true) => "whenever workers are idle (set in model.toml)",
        Some(false) => "never (set in model.toml)",
        None => "when workers are idle and the measured cost says that it is faster",
    };
    let batching = &version["batching"];
    let why = cell(&batching["why"]);
    let together = if batching["enabled"] == true {
        format!("up to {} rows per run ({why})", batching["max_rows"])
    } else {
        format!("off ({why})")
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "runs:      {place}\nbatching:  {together}");
    if batching["enabled"] == true {
        let _ = writeln!(text, "splitting: {split}");
    }
    let breaker = &version["breaker"];
    if breaker["state"].as_str().is_some_and(|state| state != "closed") || breaker["opened"].as_u64() > Some(0) {
        let (opened, kept_off) = (cell(&breaker["opened"]), cell(&breaker["kept_off"]));
        let _ = writeln!(
            text,
            "breaker:   {}; opened {opened} times, kept off {kept_off} requests",
            cell(&breaker["state"])
        );
    }
    let costs: Vec<Vec<String>> = list(version, "cost")
        .map(|point| {
            let place = if point["at_once"] == true { "I/O thread" } else { "worker" };
            vec![cell(&point["elements"]), time(&point["us"]), place.to_owned()]
        })
        .collect();
    if !costs.is_empty() {
        text.push_str(&table(&["INPUT ELEMENTS", "RUN TIME", "THREAD"], &costs));
    }
    let runs = &version["runs"];
    let mut counts = vec![vec!["one request".to_owned(), cell(&runs["alone"])]];
    counts.extend(
        list(runs, "together").map(|t| vec![format!("batch, up to {} rows", t["rows_up_to"]), cell(&t["runs"])]),
    );
    text.push_str(&table(&["RUNS OF", "COUNT"], &counts));
    let _ = writeln!(
        text,
        "read in one turn and run together: {} requests in {} runs\nsplit across idle workers: {} requests ({} failed splits)\nbatches that failed and were run again request by request: {}\ndropped before they ran: {} requests past their deadline, {} cancelled by the caller\nended while they ran: {} ({} of them did not end)",
        cell(&runs["gathered_requests"]),
        cell(&runs["gathered"]),
        runs["spread"],
        runs["cut_in_vain"],
        runs["taken_apart"],
        runs["expired"],
        runs["left"],
        runs["interrupted"],
        runs["lost"]
    );
    text
}

/// Formats microseconds.
fn time(us: &Value) -> String {
    match us.as_f64() {
        Some(us) if us >= 1000.0 => format!("{:.2} ms", us / 1000.0),
        Some(us) => format!("{us:.1} us"),
        None => String::new(),
    }
}
