//! How many rows the engine runs at once, by version.

use super::show;
use maud::{Markup, html};
use serde_json::Value;

/// Versions that are shown.
const VERSIONS: usize = 2;

/// A size of runs: what it is called, and how many runs had it.
struct Size {
    words: String,
    runs: f64,
}

pub(super) fn section(execution: &Value) -> Markup {
    let versions = execution["versions"].as_array().map_or(&[][..], Vec::as_slice);
    let with_runs: Vec<(&Value, Vec<Size>)> =
        versions.iter().rev().map(|version| (version, sizes(version))).filter(|(_, sizes)| !sizes.is_empty()).collect();
    if with_runs.is_empty() {
        return html! {};
    }
    html! {
        section #runs aria-labelledby="runs-title" {
            h2 #runs-title { "Rows in a run" }
            @for (version, sizes) in with_runs.iter().take(VERSIONS) {
                h3 { "Version " (show::text(version["version"].as_str().unwrap_or_default(), 20)) }
                p { (sentence(version, sizes)) }
                (table(sizes))
            }
            @if with_runs.len() > VERSIONS { p .quiet { "The newest " (VERSIONS) " of " (with_runs.len()) " versions. " code { "sluicegate execution" } " has all." } }
        }
    }
}

fn sizes(version: &Value) -> Vec<Size> {
    let runs = &version["runs"];
    let alone = runs["alone"].as_f64().unwrap_or(0.0);
    let alone = (alone > 0.0).then(|| Size { words: "one request".to_owned(), runs: alone });
    let mut before = 1;
    let together = runs["together"].as_array().into_iter().flatten().filter_map(|size| {
        let (up_to, runs) = (size["rows_up_to"].as_u64()?, size["runs"].as_f64()?);
        let from = std::mem::replace(&mut before, up_to) + 1;
        let words = if from >= up_to { format!("{up_to} rows") } else { format!("{from} to {up_to} rows") };
        (runs > 0.0).then_some(Size { words, runs })
    });
    alone.into_iter().chain(together).collect()
}

fn sentence(version: &Value, sizes: &[Size]) -> String {
    let all: f64 = sizes.iter().map(|size| size.runs).sum();
    let together: f64 = sizes.iter().filter(|size| size.words != "one request").map(|size| size.runs).sum();
    let batching = &version["batching"];
    let why = show::text(batching["why"].as_str().unwrap_or("not known"), 200);
    let most = show::number_of(&batching["max_rows"]);
    if batching["enabled"] != true {
        return format!("Each request runs alone ({why}).");
    }
    if together > 0.0 {
        format!(
            "{} of the runs had several requests together; at most {most} rows ({why}).",
            show::share(together / all)
        )
    } else {
        format!("No run had several requests together yet; at most {most} rows may be in one ({why}).")
    }
}

fn table(sizes: &[Size]) -> Markup {
    let all: f64 = sizes.iter().map(|size| size.runs).sum();
    html! {
        table {
            thead { tr { th scope="col" { "In a run" } th scope="col" .number { "Runs" } th scope="col" .number { "Share" } th scope="col" { span .hidden { "Drawn" } } } }
            tbody { @for size in sizes { tr {
                th scope="row" { (size.words) }
                td .number { (show::number(size.runs)) }
                td .number { (show::share(size.runs / all)) }
                td { svg .runs viewBox="0 0 200 10" preserveAspectRatio="none" aria-hidden="true" { rect .part-0 x="0" y="0" width=(format!("{:.1}", size.runs / all * 200.0)) height="10" {} } }
            } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_of_runs_are_told_with_their_shares() {
        let version = json!({"version": "2", "batching": {"enabled": true, "max_rows": 32, "why": "<measured>"},
            "runs": {"alone": 60, "together": [{"rows_up_to": 2, "runs": 30}, {"rows_up_to": 4, "runs": 0}, {"rows_up_to": 8, "runs": 10}]}});
        let drawn = section(&json!({"versions": [version, {"version": "3", "runs": {"alone": 0, "together": []}}]}));
        let drawn = drawn.into_string();
        assert!(
            drawn.contains("40 % of the runs had several requests together; at most 32 rows (&lt;measured&gt;)."),
            "{drawn}"
        );
        assert!(
            drawn.contains(">2 rows<") && drawn.contains(">5 to 8 rows<") && !drawn.contains(">3 to 4 rows<"),
            "{drawn}"
        );
        assert!(!drawn.contains("Version 3"), "nothing ran: {drawn}");
        assert!(section(&Value::Null).into_string().is_empty());
        let idle = json!({"versions": [{"version": "1", "batching": {"enabled": true, "max_rows": 8, "why": "x"}, "runs": {"alone": 1}}]});
        assert!(section(&idle).into_string().contains("No run had several requests together yet"));
        let off = json!({"versions": [{"version": "1", "batching": {"enabled": false, "why": "off in model.toml"}, "runs": {"alone": 1}}]});
        assert!(section(&off).into_string().contains("Each request runs alone (off in model.toml)."));
    }
}
