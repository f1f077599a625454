//! The command `log`.

use super::client::{Client, Done};
use super::show::{cell, table};
use crate::readable::bytes;
use serde_json::Value;
use std::fmt::Write as _;

impl Client {
    pub(super) fn log(&self) -> Done {
        self.show(&self.get("/api/v1/log")?, log)
    }
}

fn log(answer: &Value) -> String {
    let size = |value: &Value| bytes(value.as_f64().unwrap_or(0.0));
    let dropped: u64 = answer["dropped"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
    let or_none = |value: &Value| if value.is_null() { "–".to_owned() } else { cell(value) };
    let mut rows = vec![
        ("records since the start", cell(&answer["records"])),
        ("lost, by reason in --json", dropped.to_string()),
        ("left out", cell(&answer["left_out"])),
        ("not sealed yet", size(&answer["segment_bytes"])),
        ("sealed", size(&answer["sealed_bytes"])),
        ("disk budget", size(&answer["disk_budget"])),
        ("last written", or_none(&answer["last_written"])),
    ];
    for (what, error) in [("cannot be written", &answer["last_error"]), ("cannot be sealed", &answer["seal_error"])] {
        rows.extend((!error.is_null()).then(|| (what, cell(error))));
    }
    let pair = |(what, value): (&str, String)| vec![what.to_owned(), value];
    let mut text = table(&["PREDICTION LOG", ""], &rows.into_iter().map(pair).collect::<Vec<_>>());
    let upload = &answer["upload"];
    if upload.is_null() {
        text.push_str("\nnothing is uploaded (prediction_log.upload)\n");
        return text;
    }
    let waits = format!("{} files, {}", cell(&upload["waiting_files"]), size(&upload["waiting_bytes"]));
    let mut rows = vec![
        ("address", cell(&upload["to"])),
        ("name of this gateway", cell(&upload["node"])),
        ("since the start", format!("{} files, {} sent", cell(&upload["files"]), size(&upload["bytes"]))),
        ("last upload", or_none(&upload["last_uploaded"])),
        ("waiting", waits),
        ("lost before they were uploaded", cell(&upload["lost_files"])),
    ];
    if !upload["oldest_waiting"].is_null() {
        rows.insert(5, ("oldest waiting since", cell(&upload["oldest_waiting"])));
    }
    if !upload["failing_since"].is_null() {
        rows.push(("failing since", cell(&upload["failing_since"])));
        rows.push(("because", cell(&upload["last_error"])));
    }
    // Writing to a String cannot fail.
    let _ = write!(text, "\n{}", table(&["UPLOADS", ""], &rows.into_iter().map(pair).collect::<Vec<_>>()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_log_and_its_uploads_are_told_in_words() {
        let mut answer = json!({
            "records": 12, "dropped": {"disk": 1, "budget": 2}, "left_out": 0, "segment_bytes": 1024, "sealed_bytes": 2048,
            "disk_budget": 1 << 30, "last_written": null, "last_error": null, "seal_error": null, "upload": null,
        });
        let text = log(&answer);
        assert!(text.contains("nothing is uploaded") && text.contains("lost, by reason in --json"), "{text}");
        answer["upload"] = json!({
            "to": "s3://b/p", "node": "eu-1", "files": 3, "bytes": 10, "last_uploaded": null, "waiting_files": 2, "waiting_bytes": 5,
            "oldest_waiting": "2026-11-28T20:00:00Z", "lost_files": 0, "failing_since": "2026-11-28T20:01:00Z",
            "last_error": "x: the credentials do not allow it (403)",
        });
        let text = log(&answer);
        for part in ["s3://b/p", "2 files", "2026-11-28T20:00:00Z", "the credentials do not allow it (403)"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
