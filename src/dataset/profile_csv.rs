//! The columns of a CSV file.

use super::error::Error;
use super::profile_rows::Rows;
use super::scan::Progress;
use crate::columns::{Cell, Kind};
use serde_json::Value;
use std::path::Path;

/// What stands for a missing value, as pandas writes and reads it.
const MISSING: [&str; 7] = ["", "nan", "NaN", "NA", "null", "None", "<NA>"];

/// Reads a file with a header. Cells are numbers where they are written so, lists as `sluicegate export` writes them, else texts.
pub(super) fn read(path: &Path, rows: &mut Rows, progress: Progress) -> Result<(), Error> {
    let wrong = |e: csv::Error| Error::at("read", path, e);
    let mut reader = csv::Reader::from_path(path).map_err(wrong)?;
    let header: Vec<String> = reader.headers().map_err(wrong)?.iter().map(str::to_owned).collect();
    let is_export = header.iter().any(|name| is_of_export(name));
    let kinds: Vec<Option<Kind>> = header.iter().map(|name| rows.kind(name)).collect();
    for (done, record) in reader.records().enumerate() {
        let record = record.map_err(wrong)?;
        if done % 10_000 == 0 {
            progress("reading rows", done, done);
        }
        rows.begin_row();
        for ((name, kind), text) in header.iter().zip(&kinds).zip(&record) {
            if is_export && !is_of_export(name) {
                continue;
            }
            match list(text).filter(|_| is_export) {
                Some(items) => rows.add_list(name, 0, items.iter().map(|item| Some(of_json(item)))),
                None => rows.add_cell(name, 0, of_text(text, *kind)),
            }
        }
    }
    Ok(())
}

fn is_of_export(name: &str) -> bool {
    name.starts_with("inputs.") || name.starts_with("outputs.")
}

fn of_text(text: &str, kind: Option<Kind>) -> Cell<'_> {
    let trimmed = text.trim();
    if MISSING.contains(&trimmed) {
        return Cell::Missing;
    }
    match (kind, trimmed) {
        (Some(Kind::Text), _) => Cell::Text(text.as_bytes()),
        (_, "true" | "True") => Cell::Bool(true),
        (_, "false" | "False") => Cell::Bool(false),
        _ => trimmed.parse().map_or(Cell::Text(text.as_bytes()), Cell::Number),
    }
}

/// A list of an export, in which `NaN` and `Infinity` are allowed.
fn list(text: &str) -> Option<Vec<Value>> {
    if !text.starts_with('[') {
        return None;
    }
    let strict = || serde_json::from_str(text).ok();
    let is_of_numbers = !text.contains('"');
    let replaced =
        || serde_json::from_str(&text.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null"));
    strict().or_else(|| replaced().ok().filter(|_| is_of_numbers))
}

fn of_json(value: &Value) -> Cell<'_> {
    match value {
        Value::Number(number) => number.as_f64().map_or(Cell::Missing, Cell::Number),
        Value::Bool(bool) => Cell::Bool(*bool),
        Value::String(text) => Cell::Text(text.as_bytes()),
        _ => Cell::Missing,
    }
}
