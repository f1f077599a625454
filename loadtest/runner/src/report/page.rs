//! The HTML page: one file without external resources.

use std::fmt::Write as _;

use crate::judge::Row;
use crate::run::Ran;

pub fn page(ran: &Ran, rows: &[Row], latency: &str, timeline: &str) -> String {
    let mut table = String::new();
    for row in rows {
        let cells = [&row.name, &row.target, &row.said, &row.cpu, &row.note].map(|cell| escaped(cell));
        writeln!(
            table,
            "<tr><td>{}<td>{}<td>{}<td style=\"color:{}\">{}<td>{}<td>{}",
            cells[0],
            cells[1],
            cells[2],
            super::colour(row.verdict),
            row.verdict.word(),
            cells[3],
            cells[4]
        )
        .expect("writing to a string cannot fail");
    }
    let (name, summary) = (escaped(&ran.scenario.name), escaped(&ran.scenario.summary));
    let phases = escaped(&super::phases(ran));
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse}}td,th{{text-align:left;padding:.2em 1em .2em 0;border-bottom:1px solid #ddd}}
pre{{overflow-x:auto;font-size:12px}}svg{{max-width:100%;height:auto}}</style>
<h1>{name}</h1><p>{summary}
<table><tr><th>measure<th>target<th>measured<th>verdict<th>server CPU, us<th>note
{table}</table>
<h2>Latency</h2>{latency}
<h2>Latency over time</h2>{timeline}
<h2>Phases</h2><pre>{phases}</pre>
"
    )
}

/// Escapes text for HTML and SVG.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
