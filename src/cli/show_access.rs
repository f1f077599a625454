//! Formats answers about tokens and identities.

use super::show::{cell, list, table};
use serde_json::Value;
use std::fmt::Write as _;

/// The tokens, which an offline command lists in the form of the admin API too.
pub(crate) fn tokens(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "tokens")
        .map(|t| {
            let expires = if t["expired"] == true {
                format!("{} (expired)", cell(&t["expires_at"]))
            } else {
                cell(&t["expires_at"])
            };
            let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
            vec![
                cell(&t["name"]),
                cell(&t["role"]),
                cell(&t["models"]),
                or(expires, "never"),
                or(cell(&t["last_used"]), "never"),
                format!("{} by {}", cell(&t["created_at"]), cell(&t["created_by"])),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no tokens\n".to_owned();
    }
    table(&["NAME", "ROLE", "MODELS", "EXPIRES", "LAST USED", "CREATED"], &rows)
}

pub(super) fn callers(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "callers")
        .map(|caller| {
            let idle = format!("{:.0} s", caller["idle_s"].as_f64().unwrap_or_default());
            let columns = ["caller", "priority", "in_flight", "last_minute", "refused_last_minute"];
            columns.iter().map(|column| cell(&caller[*column])).chain([idle]).collect()
        })
        .collect();
    if rows.is_empty() {
        return "nobody has sent a request\n".to_owned();
    }
    table(&["CALLER", "PRIORITY", "IN FLIGHT", "LAST MINUTE", "REFUSED", "IDLE"], &rows)
}

pub(super) fn whoami(answer: &Value) -> String {
    let how = match answer["via"].as_str() {
        Some("unproven") => "no credentials, and none are needed".to_owned(),
        _ => format!("by {}", cell(&answer["via"])),
    };
    let mut text = format!("{} ({how})\n", cell(&answer["actor"]));
    for grant in list(answer, "grants") {
        let models =
            if grant["models"] == serde_json::json!(["*"]) { "all models".to_owned() } else { cell(&grant["models"]) };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {} for {models}", cell(&grant["role"]));
    }
    let _ = writeln!(text, "  may: {}", list(answer, "actions").map(cell).collect::<Vec<_>>().join(", "));
    text
}
