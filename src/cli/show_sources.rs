//! Formats the answer about the sources of models.

use super::show::{cell, list, table};
use serde_json::Value;
use std::fmt::Write as _;

pub(super) fn sources(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "sources").map(source).collect();
    if rows.is_empty() {
        return "no sources: versions come from the models directory alone ([models.sources] uris)\n".to_owned();
    }
    let mut text = table(&["SOURCE", "STATE", "LAST READ", "NEXT READ", "STORED", "MESSAGE"], &rows);
    let versions: Vec<Vec<String>> = list(answer, "sources").flat_map(versions).collect();
    if !versions.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{}", table(&["VERSION", "STATE", "BYTES", "SOURCE", "MESSAGE"], &versions));
    }
    for (source, remark) in list(answer, "sources").flat_map(|s| list(s, "remarks").map(move |r| (s, r))) {
        let _ = writeln!(text, "{}: {}", cell(&source["source"]), cell(remark));
    }
    let _ = writeln!(text, "cache: {} of {} bytes", cell(&answer["cache"]["bytes"]), cell(&answer["cache"]["limit"]));
    text
}

fn source(source: &Value) -> Vec<String> {
    let next = source["next_read_s"].as_f64().map_or_else(|| "now".to_owned(), |seconds| format!("in {seconds:.0} s"));
    let all = list(source, "versions").count();
    let stored = list(source, "versions").filter(|version| version["state"] == "stored").count();
    let last = cell(&source["last_read"]);
    vec![
        cell(&source["source"]),
        cell(&source["state"]),
        if last.is_empty() { "never".to_owned() } else { last },
        next,
        format!("{stored} of {all}"),
        cell(&source["message"]),
    ]
}

fn versions(source: &Value) -> impl Iterator<Item = Vec<String>> {
    list(source, "versions").map(|version| {
        vec![
            format!("{}/{}", cell(&version["model"]), cell(&version["version"])),
            cell(&version["state"]),
            cell(&version["bytes"]),
            cell(&source["source"]),
            cell(&version["message"]),
        ]
    })
}
