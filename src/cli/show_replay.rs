//! The result of a replay as text.

use super::show::{cell, table};
use super::show_shadow;
use serde_json::Value;
use std::fmt::Write as _;

/// The result that `replay --json` prints and the admin API answers.
pub(crate) fn replayed(answer: &Value) -> String {
    let mut text = format!(
        "replayed {} requests ({} records) of {} through version {} on {}; tolerance: rtol {}, atol {}\n",
        cell(&answer["requests"]),
        cell(&answer["records"]),
        cell(&answer["model"]),
        cell(&answer["version"]),
        cell(&answer["engine"]),
        cell(&answer["tolerance"]["rtol"]),
        cell(&answer["tolerance"]["atol"]),
    );
    // Writing to a String cannot fail.
    for (reason, n) in answer["left_out"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "left out {n}: {}", reason.replace('_', " "));
    }
    if let Some(gone) = answer["files_gone"].as_u64().filter(|gone| *gone > 0) {
        let _ = writeln!(text, "{gone} files were deleted by retention before they were read");
    }
    text.push_str(&show_shadow::pairs(answer));
    let verdicts: Vec<&Value> = answer["gates"].as_array().into_iter().flatten().collect();
    if !verdicts.is_empty() {
        let row = |verdict: &&Value| {
            let found = verdict["found"].as_f64().map_or_else(|| "no data".to_owned(), |found| found.to_string());
            vec![cell(&verdict["gate"]), if verdict["passed"] == true { "passed" } else { "FAILED" }.to_owned(), found]
        };
        text.push('\n');
        text.push_str(&table(&["GATE", "RESULT", "FOUND"], &verdicts.iter().map(row).collect::<Vec<_>>()));
        for verdict in verdicts.iter().filter(|verdict| verdict["champion"].is_object()) {
            let paired = &verdict["champion"];
            let _ = writeln!(
                text,
                "{}: the champion has {} on the same {} rows; difference {}; {}",
                cell(&verdict["gate"]),
                cell(&paired["champion"]),
                cell(&paired["rows"]),
                cell(&paired["difference"]),
                cell(&paired["words"]),
            );
        }
    }
    text
}
