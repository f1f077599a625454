//! Formats answers as tables.

use super::terminal::one_line;
use serde_json::Value;
use std::fmt::Write as _;

/// Columns are as wide as their widest cell, with two spaces between them. The last column is not padded. Line breaks in a cell
/// become spaces.
#[must_use]
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if i == 0 { "" } else { "  " };
            // Writing to a String cannot fail.
            let _ = write!(line, "{gap}{cell:width$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A value as a cell: strings on one line, without quotes, nothing for null, lists separated by commas.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => one_line(s),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// `1 row`, `2 rows`.
pub(super) fn count(number: &Value, what: &str) -> String {
    let end = if *number == 1 { "" } else { "s" };
    format!("{} {what}{end}", cell(number))
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

pub(super) fn models(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "models")
        .map(|m| {
            let with_state = |wanted: &dyn Fn(&str) -> bool| {
                list(m, "versions")
                    .filter(|v| v["state"].as_str().is_some_and(wanted))
                    .map(|v| cell(&v["version"]))
                    .collect::<Vec<_>>()
                    .join(",")
            };
            let other = with_state(&|s| !matches!(s, "serving" | "ready" | "failed"));
            vec![
                cell(&m["name"]),
                with_state(&|s| s == "serving"),
                with_state(&|s| s == "ready"),
                with_state(&|s| s == "failed"),
                other,
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no models found\n".to_owned();
    }
    table(&["MODEL", "SERVING", "READY", "FAILED", "OTHER"], &rows)
}

pub(super) fn versions(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "versions")
        .map(|v| {
            let stage = v["stage"].as_str().map(|s| format!(" ({s})")).unwrap_or_default();
            let joined = list(v, "notes").map(cell).collect::<Vec<_>>().join("; ");
            let notes =
                [cell(&v["reason"]), joined].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("; ");
            vec![cell(&v["version"]), format!("{}{stage}", cell(&v["state"])), cell(&v["engine"]), notes]
        })
        .collect();
    table(&["VERSION", "STATE", "ENGINE", "NOTES"], &rows)
}

pub(super) fn traffic(answer: &Value) -> String {
    let mut text = format!("revision {}\n", cell(&answer["revision"]));
    let total: f64 = list(answer, "split").filter_map(|a| a["weight"].as_f64()).sum();
    let rows: Vec<Vec<String>> = list(answer, "split")
        .map(|a| {
            let share = a["weight"].as_f64().filter(|_| total > 0.0).map_or(0.0, |w| 100.0 * w / total);
            let observed = list(answer, "shares").find(|s| s["arm"] == a["arm"]);
            let requests = observed.map(|s| cell(&s["requests"])).unwrap_or_default();
            let seen = observed
                .and_then(|s| s["observed"].as_f64())
                .map(|o| format!("{:.2} %", 100.0 * o))
                .unwrap_or_default();
            vec![cell(&a["arm"]), cell(&a["version"]), format!("{share:.2} %"), seen, requests]
        })
        .collect();
    text.push_str(&table(&["ARM", "VERSION", "CONFIGURED", "OBSERVED", "REQUESTS"], &rows));
    let ratio = &answer["sample_ratio"];
    if let (Some(verdict), Some(p)) = (ratio["verdict"].as_str(), ratio["p_value"].as_f64()) {
        let verdict_text = match verdict {
            "mismatch" => "MISMATCH: the arms did not get the shares of their weights",
            "too_few" => "too few requests to test",
            _ => "ok",
        };
        let note =
            ratio["note"].as_str().filter(|_| verdict == "mismatch").map(|n| format!("; {n}")).unwrap_or_default();
        let _ = writeln!(text, "sample ratio: {verdict_text} (p = {p:.4}){note}");
    }
    for key in ["sticky_by", "rules", "shadows", "labels", "salt", "reason"] {
        if !answer[key].is_null() {
            let _ = writeln!(text, "{key}: {}", answer[key]);
        }
    }
    if let Some(share) = answer["moves"]["share"].as_f64() {
        let keys = if answer["sticky_by"].is_null() { "requests" } else { "keys" };
        let _ = writeln!(text, "this change moved about {:.1} % of the {keys} to another arm", 100.0 * share);
        for note in list(&answer["moves"], "notes") {
            let _ = writeln!(text, "  {}", cell(note));
        }
    }
    let rollout = &answer["ends_rollout"];
    if !rollout.is_null() {
        text.push_str(&ended_rollout(rollout, false));
    }
    text
}

/// Which arm a key gets, and why.
pub(super) fn assignment(answer: &Value) -> String {
    let (key, arm, version) = (cell(&answer["key"]), cell(&answer["arm"]), cell(&answer["version"]));
    let mut text =
        format!("{key}: arm {arm}, version {version} (revision {})\n{}\n", answer["revision"], cell(&answer["why"]));
    let source = if answer["default_salt"] == true { " (the model's name)" } else { "" };
    let _ = writeln!(text, "salt: {}{source}", cell(&answer["salt"]));
    let number = |value: &Value| value.as_f64().map_or_else(|| "overflow".to_owned(), |n| format!("{n:.6}"));
    let rows: Vec<Vec<String>> = list(answer, "arms")
        .map(|a| {
            vec![cell(&a["arm"]), cell(&a["version"]), cell(&a["weight"]), number(&a["draw"]), number(&a["score"])]
        })
        .collect();
    text.push_str(&table(&["ARM", "VERSION", "WEIGHT", "DRAW", "SCORE"], &rows));
    text
}

pub(super) fn promotion(answer: &Value, dry_run: bool) -> String {
    let mut text = moved(answer, dry_run);
    if dry_run && !answer["would_be"].is_null() {
        let _ = writeln!(text, "the traffic document would be: {}", answer["would_be"]);
    }
    let gates: Vec<Vec<String>> = list(answer, "gates")
        .map(|g| {
            let verdict = if g["passed"] == true { "passed" } else { "FAILED" };
            vec![cell(&g["gate"]), verdict.to_owned(), cell(&g["asked"]), cell(&g["found"])]
        })
        .collect();
    if !gates.is_empty() {
        text.push_str(&table(&["GATE", "RESULT", "REQUIRED", "FOUND"], &gates));
    }
    if answer["would_pass"] == false {
        text.push_str("the promotion would be refused\n");
    }
    text
}

pub(super) fn rollback(answer: &Value, dry_run: bool) -> String {
    let mut text = moved(answer, dry_run);
    let tense = if dry_run { "would restore" } else { "restored" };
    let _ = writeln!(text, "{tense} the traffic document of revision {}", cell(&answer["restored"]));
    let loaded = list(answer, "loaded").map(cell).collect::<Vec<_>>().join(", ");
    if !loaded.is_empty() {
        let tense = if dry_run { "would be loaded first" } else { "loaded again first" };
        let _ = writeln!(text, "{tense}: {loaded}");
    }
    text
}

pub(super) fn retired(answer: &Value) -> String {
    let (model, retired) = (cell(&answer["model"]), &answer["retired"]);
    let already = if answer["changed"] == false { " already" } else { "" };
    let (at, by, reason) = (cell(&retired["at"]), cell(&retired["by"]), cell(&retired["reason"]));
    format!("{model} is{already} retired ({at}, {by}: {reason}); promoting a version brings it back\n")
}

/// One line that says from where to where the traffic moved, and lines with the differences and the rollout that it ends.
fn moved(answer: &Value, dry_run: bool) -> String {
    let (model, to, revision) = (cell(&answer["model"]), cell(&answer["to"]), cell(&answer["revision"]));
    let from = side(answer, "from_split", "from");
    let to_side = side(answer, "to_split", "to").unwrap_or_default();
    let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
    let mut text = match (answer["returns"] == true, dry_run) {
        (true, true) => {
            format!("dry run: retired model {model} would be served again, by version {to}; nothing was changed\n")
        }
        (true, false) => format!("{model}: was retired, and is served again by version {to}, revision {revision}\n"),
        (false, true) if from == format!(" from {to_side}") && list(answer, "difference").next().is_none() => {
            format!("dry run: {model}: {to_side} serves already; nothing was changed\n")
        }
        (false, true) if from == format!(" from {to_side}") => {
            format!("dry run: {model}: {to_side} would go on; nothing was changed; what would change:\n")
        }
        (false, true) => format!("dry run: {model} would change{from} to {to_side}; nothing was changed\n"),
        (false, false) if from == format!(" from {to_side}") && list(answer, "difference").next().is_none() => {
            format!("{model}: {to_side} serves already, revision {revision}\n")
        }
        (false, false) if from == format!(" from {to_side}") => {
            format!("{model}: {to_side} goes on, revision {revision}; what changed:\n")
        }
        (false, false) => format!("{model}: changed{from} to {to_side}, revision {revision}\n"),
    };
    for difference in list(answer, "difference") {
        let _ = writeln!(text, "  {}", cell(difference));
    }
    let rollout = &answer["ends_rollout"];
    if !rollout.is_null() {
        text.push_str(&ended_rollout(rollout, dry_run));
    }
    text
}

fn ended_rollout(rollout: &Value, dry_run: bool) -> String {
    let ends = if dry_run { "would end" } else { "ended" };
    let (to, percent, by) = (cell(&rollout["to"]), &rollout["percent"], cell(&rollout["by"]));
    let percent = percent.as_f64().unwrap_or_default();
    format!("this {ends} the rollout to version {to} at {percent} %, which {by} began\n")
}

/// `version 1`, or `the split 1=70, 2=30` where several arms get traffic. `None` where nothing served.
fn side(answer: &Value, split: &str, heaviest: &str) -> Option<String> {
    let arms: Vec<&Value> = list(answer, split).filter(|arm| arm["weight"].as_f64() > Some(0.0)).collect();
    if arms.len() > 1 {
        return Some(format!("the split {}", arms.into_iter().map(show_arm).collect::<Vec<_>>().join(", ")));
    }
    answer[heaviest].as_str().map(|version| format!("version {version}"))
}

/// `1=70`, with the name of an arm that differs from its version.
fn show_arm(arm: &Value) -> String {
    let (name, version, weight) =
        (cell(&arm["arm"]), cell(&arm["version"]), arm["weight"].as_f64().unwrap_or_default());
    if name == version { format!("{version}={weight}") } else { format!("{name}:{version}={weight}") }
}

pub(super) fn history(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "history")
        .map(|h| {
            let arm = |a: &Value| {
                let name = if a["arm"] == a["version"] { String::new() } else { format!("{}:", cell(&a["arm"])) };
                format!("{name}{}={}", cell(&a["version"]), cell(&a["weight"]))
            };
            let split = list(&h["document"], "split").map(arm).collect::<Vec<_>>().join(",");
            vec![cell(&h["revision"]), cell(&h["ts"]), cell(&h["actor"]), cell(&h["action"]), split, cell(&h["reason"])]
        })
        .collect();
    table(&["REVISION", "TIME", "ACTOR", "ACTION", "SPLIT", "REASON"], &rows)
}

pub(super) fn audit(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "events")
        .map(|e| {
            let mut row: Vec<String> =
                ["id", "ts", "actor", "action", "model"].iter().map(|key| cell(&e[*key])).collect();
            row.extend([gates(&e["after"]["gates"]), cell(&e["reason"])]);
            row
        })
        .collect();
    table(&["ID", "TIME", "ACTOR", "ACTION", "MODEL", "GATES", "REASON"], &rows)
}

/// The gates that a promotion passed, and whether they replaced those of `model.toml`.
fn gates(kept: &Value) -> String {
    if kept.is_null() {
        return String::new();
    }
    let passed: Vec<String> = list(kept, "verdicts").map(|verdict| cell(&verdict["gate"])).collect();
    let passed = if passed.is_empty() { "off".to_owned() } else { passed.join(",") };
    if kept["instead_of"].is_null() { passed } else { format!("{passed} (instead of model.toml)") }
}
