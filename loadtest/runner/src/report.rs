//! Reports: a table for the terminal, JSON for programs, and a page with charts.

mod page;
mod svg;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::judge::{Row, Verdict};
use crate::run::Ran;
use crate::wrong::{Result, While};

/// Writes `<out>/<scenario>.json`, `.html`, `-latency.svg` and `-timeline.svg`.
pub fn write(out: &Path, ran: &Ran, rows: &[Row]) -> Result<()> {
    let name = &ran.scenario.name;
    let value = json!({ "scenario": name, "summary": ran.scenario.summary, "cores": ran.cores, "rows": rows, "phases": ran.phases });
    let (latency, timeline) = (svg::latency(ran), svg::timeline(ran));
    save(&out.join(format!("{name}.json")), &pretty(&value))?;
    save(&out.join(format!("{name}.html")), &page::page(ran, rows, &latency, &timeline))?;
    save(&out.join(format!("{name}-latency.svg")), &latency)?;
    save(&out.join(format!("{name}-timeline.svg")), &timeline)
}

/// Writes only the rows, as JSON.
pub fn write_rows(path: &Path, rows: &[&Row]) -> Result<()> {
    save(path, &pretty(&json!(rows)))
}

/// The table of results, with aligned columns.
pub fn table(rows: &[&Row]) -> String {
    let head = ["scenario", "measure", "target", "measured", "verdict", "server cpu us", "note"].map(str::to_owned);
    let mut lines = vec![head];
    lines.extend(rows.iter().map(|r| {
        let verdict = r.verdict.word().to_owned();
        let (cpu, note) = (r.cpu.clone(), r.note.clone());
        [r.scenario.clone(), r.name.clone(), r.target.clone(), r.said.clone(), verdict, cpu, note]
    }));
    aligned(&lines)
}

/// A table with the results of each phase in each round.
pub fn phases(ran: &Ran) -> String {
    let head = [
        ran.scenario.name.as_str(),
        "round",
        "good/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "whole p99",
        "cpu us",
        "late p99",
        "refused",
        "failed",
        "server",
        "generator",
        "others",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    for phase in &ran.phases {
        let f = &phase.figures;
        lines.push([
            phase.name.clone(),
            (phase.round + 1).to_string(),
            format!("{:.0}", f.throughput),
            format!("{:.0}", f.windowed.p50_us),
            format!("{:.0}", f.windowed.p99_us),
            format!("{:.0}", f.windowed.p999_us),
            format!("{:.0}", f.whole.p99_us),
            format!("{:.1}", f.cpu_us),
            format!("{:.0}", f.late_p99_us),
            f.refused.to_string(),
            f.failed.to_string(),
            format!("{:.0} %", phase.server * 100.0),
            format!("{:.0} %", phase.generator * 100.0),
            format!("{:.0} %", phase.elsewhere * 100.0),
        ]);
    }
    let cores = ran.cores.as_ref().map_or_else(String::new, |cores| format!("{}: {cores}\n", ran.scenario.name));
    aligned(&lines) + &cores + "\n"
}

fn aligned<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            write!(row, "{cell:width$}  ").expect("writing to a string cannot fail");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

fn save(path: &Path, text: &str) -> Result<()> {
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text))
        .while_doing(|| format!("writing {}", path.display()))
}

/// The colour of a verdict on the page.
fn colour(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "#1b7f3b",
        Verdict::Missed => "#b3261e",
        Verdict::Seen => "#555",
    }
}
