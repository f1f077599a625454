//! `approve` and `reject`: shows what there is to look at, and sends the review of exactly that.

use super::client::{Client, Done, path, print, segment};
use super::show::{cell, list, table};
use super::{CommandError, ReviewOptions};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// The most bytes of one attachment. The server refuses more.
const MAX_ATTACHMENT: u64 = 256 << 10;

impl Client {
    pub(super) fn review(&self, options: &ReviewOptions, approve: bool) -> Done {
        let ReviewOptions { model, version, reason, attachments } = options;
        let place = format!("{}/versions/{}", path(model, ""), segment(version));
        let attached = read_attachments(attachments)?;
        let seen = self.get(&format!("{place}/approval"))?;
        let Some(reason) = reason else { return self.show(&seen, looked_at) };
        let seen = seen.json()?;
        if !self.json() {
            // Printed before the review is sent.
            print(&looked_at(&seen))?;
        }
        let mut body = json!({"reason": reason, "artifact": seen["artifact"]});
        if !attached.is_empty() {
            body["attachments"] = attached.into();
        }
        let (verb, done) = if approve { ("approve", "approved") } else { ("reject", "rejected") };
        let answer = self.send("POST", &format!("{place}:{verb}"), &body)?;
        self.show(&answer, |answer| format!("version {version} of {model} is {done} by {}\n", cell(&answer["by"])))
    }
}

fn read_attachments(files: &[std::path::PathBuf]) -> Result<Map<String, Value>, CommandError> {
    let mut attached = Map::new();
    for file in files {
        let shown = file.display();
        let failed = |e: &dyn std::fmt::Display| CommandError::Failed(format!("cannot attach {shown}: {e}"));
        let size = std::fs::metadata(file).map_err(|e| failed(&e))?.len();
        if size > MAX_ATTACHMENT {
            return Err(failed(&format_args!("it has {size} bytes, and the limit is {MAX_ATTACHMENT}")));
        }
        let text = std::fs::read(file).map_err(|e| failed(&e))?;
        let value = serde_json::from_slice(&text).map_err(|e| failed(&format_args!("it is not JSON: {e}")))?;
        let name = file.file_name().map_or_else(|| shown.to_string(), |name| name.to_string_lossy().into_owned());
        if attached.insert(name.clone(), value).is_some() {
            return Err(failed(&format_args!("there is another attachment named {name}")));
        }
    }
    Ok(attached)
}

/// What there is to look at.
pub(super) fn looked_at(answer: &Value) -> String {
    let evidence = &answer["evidence"];
    let version = &evidence["version"];
    let mut text =
        format!("{} version {}: {}\n", cell(&answer["model"]), cell(&answer["version"]), cell(&version["state"]));
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<14}{value}");
        }
    };
    let required = if answer["required"] == true { "" } else { " (not required for this model)" };
    let review = &answer["review"];
    let by = if review.is_null() {
        String::new()
    } else {
        format!(" by {} at {}: {}", cell(&review["by"]), cell(&review["at"]), cell(&review["reason"]))
    };
    line("approval", format!("{}{by}{required}", cell(&answer["status"])));
    let proposers = list(answer, "proposers").map(cell).collect::<Vec<_>>().join(", ");
    line("proposed by", if proposers.is_empty() { proposers } else { format!("{proposers} (may not approve it)") });
    line("files", cell(&answer["artifact"]));
    line("sha256", cell(&version["sha256"]));
    line("engine", cell(&version["engine"]));
    line(
        "golden",
        match version["golden_cases"].as_u64() {
            Some(0) => "no cases: nothing shows that its answers are right".to_owned(),
            _ => format!("{} cases passed", cell(&version["golden_cases"])),
        },
    );
    line("notes", cell(&version["notes"]));
    for kind in ["inputs", "outputs"] {
        let tensors: Vec<String> = list(&version["signature"], kind)
            .map(|t| format!("{} {} {}", cell(&t["name"]), cell(&t["datatype"]), t["shape"]))
            .collect();
        line(kind, tensors.join(", "));
    }
    if version["metadata"].is_object() {
        line("version.toml", version["metadata"].to_string());
    }
    let pairs: Vec<Vec<String>> = list(&evidence["shadow"], "primaries")
        .map(|p| vec![cell(&p["primary"]), cell(&p["pairs"]), cell(&p["agreement"]), cell(&p["shadow_failed"])])
        .collect();
    if !pairs.is_empty() {
        text.push_str(&table(&["SHADOW OF", "PAIRS", "AGREEMENT", "FAILED"], &pairs));
    }
    let arms: Vec<Vec<String>> = list(&evidence["quality"], "arms")
        .map(|a| vec![cell(&a["arm"]), cell(&a["predictions"]), cell(&a["accuracy"]), cell(&a["mean_absolute_error"])])
        .collect();
    if !arms.is_empty() {
        text.push_str(&table(&["ARM", "PREDICTIONS", "ACCURACY", "MEAN ABS ERROR"], &arms));
    }
    text
}
