//! Formats the results of shadows as tables.

use super::show::{cell, list as members, table};
use serde_json::Value;
use std::fmt::Write as _;

/// A model's shadows, one row per primary version they were compared with.
pub(super) fn list(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = members(answer, "shadows").flat_map(rows).collect();
    if rows.is_empty() {
        return format!("{} has no shadows and no results of earlier ones\n", cell(&answer["model"]));
    }
    table(&HEAD, &rows)
}

const HEAD: [&str; 8] =
    ["SHADOW", "SAMPLE", "PRIMARY", "COMPARED", "AGREE", "FAILED (primary/shadow/both)", "TIME PER ROW", "DROPPED"];

fn rows(shadow: &Value) -> Vec<Vec<String>> {
    let sample = shadow["sample"].as_f64().map_or_else(|| "off".to_owned(), percent);
    let dropped: u64 = shadow["dropped"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
    let row = |primary: String, pairs: String, agreed: String, failed: String, latency: String| {
        vec![cell(&shadow["version"]), sample.clone(), primary, pairs, agreed, failed, latency, dropped.to_string()]
    };
    let nothing = || vec![row(String::new(), "0".to_owned(), String::new(), String::new(), String::new())];
    let rows: Vec<Vec<String>> = members(shadow, "primaries")
        .map(|p| {
            let failed = ["primary_failed", "shadow_failed", "both_failed"].map(|key| cell(&p[key])).join("/");
            let ratio = p["latency"]["ratio_of_p50"].as_f64().map(|r| format!("{r:.2} x")).unwrap_or_default();
            let agreed = p["agreement"].as_f64().map(percent).unwrap_or_default();
            row(cell(&p["primary"]), cell(&p["pairs"]), agreed, failed, ratio)
        })
        .collect();
    if rows.is_empty() { nothing() } else { rows }
}

/// One shadow in detail: its outputs and the pairs with the largest differences.
pub(super) fn one(shadow: &Value) -> String {
    let mut text = table(&HEAD, &rows(shadow));
    let dropped: Vec<String> = shadow["dropped"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, n)| n.as_u64() != Some(0))
        .map(|(reason, n)| format!("{n} {reason}"))
        .collect();
    let dropped = if dropped.is_empty() { "none".to_owned() } else { dropped.join(", ") };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "\ncopied {}, compared {}, waiting {}, dropped: {dropped}; tolerance: rtol {}, atol {}",
        shadow["offered"],
        shadow["compared"],
        shadow["waiting"],
        shadow["tolerance"]["rtol"],
        shadow["tolerance"]["atol"]
    );
    text.push_str(&pairs(shadow));
    text
}

/// The comparison with each primary: outputs, times and the pairs with the largest differences.
#[must_use]
pub(crate) fn pairs(shadow: &Value) -> String {
    let mut text = String::new();
    for pair in members(shadow, "primaries") {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\ncompared with version {}, since {}:", cell(&pair["primary"]), cell(&pair["since"]));
        let outputs: Vec<Vec<String>> = members(pair, "outputs").map(output).collect();
        let head = [
            "OUTPUT",
            "COMPARED",
            "AGREE",
            "WITHIN TOLERANCE",
            "LARGEST DIFF",
            "MEAN DIFF",
            "TOP-1 FLIPS",
            "NON-FINITE",
        ];
        text.push_str(&table(&head, &outputs));
        let latency = &pair["latency"];
        for side in ["primary", "shadow"] {
            let _ = writeln!(
                text,
                "{side} run time as it ran: p50 {} µs, p99 {} µs",
                latency[side]["p50_us"], latency[side]["p99_us"]
            );
        }
        let alternated = &latency["alternated"];
        let us = |side: &str| alternated[side].as_f64();
        if let (Some(primary), Some(shadow)) = (us("primary_us_per_row"), us("shadow_us_per_row")) {
            let (runs, ratio) = (&alternated["runs"], latency["ratio_of_p50"].as_f64().unwrap_or_default());
            let _ = writeln!(
                text,
                "time per row, alternately on one thread ({runs} runs of both): primary {primary:.2} µs, shadow {shadow:.2} µs ({ratio:.2} x)"
            );
        }
        let worst: Vec<&Value> = members(pair, "worst").take(5).collect();
        if !worst.is_empty() {
            let _ = writeln!(text, "largest differences (--json has all, with both answers):");
        }
        for pair in worst {
            let _ = writeln!(text, "  {}: {}", cell(&pair["request_id"]), cell(&pair["words"]));
        }
    }
    text
}

fn output(output: &Value) -> Vec<String> {
    let number = |key: &str| output[key].as_f64().map(|n| format!("{n:.3e}")).unwrap_or_default();
    vec![
        cell(&output["name"]),
        cell(&output["pairs"]),
        cell(&output["agreed"]),
        output["share_within"].as_f64().map(percent).unwrap_or_default(),
        number("largest_difference"),
        number("mean_difference"),
        output["top1_flip_share"].as_f64().map(percent).unwrap_or_default(),
        cell(&output["nonfinite"]),
    ]
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}
