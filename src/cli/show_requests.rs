//! Requests of the prediction log as text.

use super::show::{cell, count, list, table};
use super::terminal::one_line;
use serde_json::Value;
use std::fmt::Write as _;

/// Elements of a tensor that are shown as text. JSON has more.
const ELEMENTS: usize = 24;

/// What `requests --json` prints and the admin API answers.
pub(crate) fn found(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = list(answer, "requests")
        .map(|of| {
            vec![
                cell(&of["ts"]),
                cell(&of["request_id"]),
                cell(&of["version"]),
                cell(&of["arm"]),
                cell(&of["role"]),
                cell(&of["status"]),
                milliseconds(&of["latency_us"]),
                cell(&of["rows"]),
                cell(&of["difference"]),
            ]
        })
        .collect();
    let mut text = if rows.is_empty() {
        "no matching requests\n".to_owned()
    } else {
        table(&["TIME", "REQUEST", "VERSION", "ARM", "ROLE", "STATUS", "LATENCY", "ROWS", "DIFFERENCE"], &rows)
    };
    // Writing to a String cannot fail.
    match (answer["next"].as_str(), answer["ended"].as_str()) {
        (Some(next), Some("time")) => {
            let _ = writeln!(text, "the time for one search is over; older requests: --after {next}");
        }
        (Some(next), _) => {
            let _ = writeln!(text, "older requests: --after {next}");
        }
        (None, _) => {}
    }
    text + &not_read(answer)
}

/// Damaged files, which may hold more.
fn not_read(answer: &Value) -> String {
    let files = answer["not_read"]["files"].as_u64().unwrap_or(0);
    let mut text = String::new();
    for of in list(&answer["not_read"], "named") {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "not read: {}: {}", cell(&of["file"]), cell(&of["why"]));
    }
    let named = list(&answer["not_read"], "named").count() as u64;
    if files > named {
        let _ = writeln!(text, "not read: {} more files", files - named);
    }
    text
}

/// What `request --json` prints and the admin API answers.
pub(crate) fn one(answer: &Value) -> String {
    let mut text = String::new();
    for of in list(answer, "predictions") {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} answer of {} version {} (arm {}), {}: {}, {} of {} ms in the model, {}, sha256 {}",
            cell(&of["role"]),
            cell(&answer["model"]),
            cell(&of["version"]),
            cell(&of["arm"]),
            cell(&of["ts"]),
            cell(&of["status"]),
            of["infer_us"].as_f64().unwrap_or_default() / 1e3,
            of["latency_us"].as_f64().unwrap_or_default() / 1e3,
            count(&of["rows"], "row"),
            cell(&of["sha256"]).get(..12).unwrap_or_default(),
        );
        if of["truncated"] == true {
            text.push_str("  tensors were left out, because the record is larger than max_record_bytes\n");
        }
        for side in ["inputs", "outputs"] {
            list(of, side).for_each(|tensor| text.push_str(&tensor_line(side, tensor)));
        }
        if let Some(words) = of["compared"]["words"].as_str() {
            let verdict = if of["compared"]["agrees"] == true { "agrees" } else { "DISAGREES" };
            let _ = writeln!(text, "  {verdict} with the answer to the caller: {}", one_line(words));
        }
    }
    if answer["more"] == true {
        text.push_str("there are more requests with this id\n");
    }
    for of in list(answer, "feedback") {
        let label = if of["label"].is_null() { String::new() } else { format!(" label {}", cell(&of["label"])) };
        let values = if of["values"].as_object().is_some_and(|values| !values.is_empty()) {
            format!(" values {}", of["values"])
        } else {
            String::new()
        };
        let _ = writeln!(text, "feedback for row {}:{label}{values} ({})", cell(&of["row"]), cell(&of["ts"]));
    }
    for (what, line) in answer["commands"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "{what}: {}", cell(line));
    }
    if answer["contents"] == "withheld" {
        text.push_str("inputs, outputs and feedback are not shown: reading them needs the role operator or admin\n");
    }
    text + &not_read(answer)
}

fn tensor_line(side: &str, tensor: &Value) -> String {
    let data = tensor["data"].as_array().map_or(&[][..], Vec::as_slice);
    let mut shown = data.iter().take(ELEMENTS).map(Value::to_string).collect::<Vec<_>>().join(",");
    let elements = tensor["elements"].as_u64().unwrap_or_default();
    if elements > data.len().min(ELEMENTS) as u64 {
        let _ = write!(shown, "{}… of {elements}", if shown.is_empty() { "" } else { "," });
    }
    let note = match tensor["recorded"].as_str() {
        Some("as_is") | None => String::new(),
        Some(how) => format!(" ({how})"),
    };
    let shape = if tensor["shape"].is_null() { String::new() } else { tensor["shape"].to_string() };
    format!("  {side}.{}{note} {}{shape} [{shown}]\n", cell(&tensor["name"]), cell(&tensor["datatype"]))
}

fn milliseconds(us: &Value) -> String {
    us.as_f64().map_or_else(String::new, |us| format!("{} ms", us / 1e3))
}
