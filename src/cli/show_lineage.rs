//! The lineage of a version for a person.

use super::show::table;
use serde_json::Value;
use std::fmt::Write as _;

/// A text, a number, or nothing.
fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn lineage(answer: &Value) -> String {
    let mut text = format!("version {} of {}: {}\n", word(&answer["version"]), word(&answer["model"]), state(answer));
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<17}{value}");
        }
    };
    let files = &answer["files"];
    for file in files["all"].as_array().into_iter().flatten() {
        line("file", format!("{}  sha256 {}", word(&file["name"]), word(&file["sha256"])));
    }
    line("digest", word(&files["digest"]));
    line("signed by", word(&files["signed_by"]));
    line("first ready", word(&answer["first_ready_at"]));
    let training = &answer["training"];
    let data = &training["data"];
    line("data", word(&data["digest"]));
    let range = |from: &Value, to: &Value| match (word(from), word(to)) {
        (from, to) if from.is_empty() && to.is_empty() => String::new(),
        (from, to) => format!("{from} to {to}"),
    };
    line("data range", range(&data["from"], &data["to"]));
    line("data rows", word(&data["rows"]));
    line("data location", word(&data["location"]));
    line(
        "code",
        [word(&training["code"]["commit"]), word(&training["code"]["repository"])].join(" ").trim().to_owned(),
    );
    line("trained by", word(&training["trainer"]));
    line("trained at", word(&training["trained_at"]));
    for (name, members) in [("parameter", &training["parameters"]), ("metric", &training["metrics"])] {
        for (member, value) in members.as_object().into_iter().flatten() {
            line(name, format!("{member} = {}", word(value)));
        }
    }
    for parent in answer["parents"].as_array().into_iter().flatten() {
        line("parent", format!("{}/{} {}", word(&parent["model"]), word(&parent["version"]), word(&parent["sha256"])));
    }
    line("parents end", word(&answer["parents_end"]));
    for other in answer["compared_with"].as_array().into_iter().flatten() {
        let (agreed, pairs) = (word(&other["agreed"]), word(&other["pairs"]));
        line("compared with", format!("version {}: {agreed} of {pairs} answers agreed", word(&other["primary"])));
    }
    let events: Vec<Vec<String>> = answer["events"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| {
            let traffic = event["traffic"].as_array().into_iter().flatten().map(word).collect::<Vec<_>>().join(", ");
            let mut row: Vec<String> = ["id", "ts", "actor", "action"].iter().map(|key| word(&event[*key])).collect();
            row.extend([traffic, word(&event["reason"])]);
            row
        })
        .collect();
    if !events.is_empty() {
        text.push('\n');
        text.push_str(&table(&["EVENT", "TIME", "ACTOR", "ACTION", "TRAFFIC", "REASON"], &events));
    }
    text.push_str("\nnot known:\n");
    for unknown in answer["unknown"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "  {}", word(unknown));
    }
    text
}

fn state(answer: &Value) -> String {
    if answer["state"].is_null() { "only in the audit trail".to_owned() } else { word(&answer["state"]) }
}
