//! The last hour of a model: requests and latency over time, with the changes of its traffic.

use super::{models, show};
use jiff::Timestamp;
use maud::{Markup, html};
use serde_json::Value;

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 120.0;
/// Space for the numbers at the left.
const LEFT: f64 = 64.0;

pub(super) fn section(figures: &Value, history: &Value) -> Markup {
    let Some(series) = figures["series"].as_array().filter(|series| !series.is_empty()) else { return html! {} };
    let to = figures["to"].as_str().and_then(seconds).unwrap_or_else(|| Timestamp::now().as_second() as f64);
    let from = to - 3600.0;
    let changes: Vec<f64> = history["history"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|revision| seconds(revision["ts"].as_str()?))
        .filter(|ts| (from..=to).contains(ts))
        .collect();
    html! {
        section #figures aria-labelledby="figures-title" {
            h2 #figures-title { "The last hour" }
            figure .chart {
                (lines(series, &changes, from))
                figcaption {
                    "The 99th percentile of the latency, one line for each version and arm." @if !changes.is_empty() { " Dashed: a change of the traffic." }
                }
            }
            table {
                thead { tr { th scope="col" { "Version" } th scope="col" { "Arm" } th scope="col" { "Requests/s" } th scope="col" .number { "Now" } th scope="col" .number { "p50" } th scope="col" .number { "p99" } th scope="col" .number { "Failed" } } }
                tbody { @for (index, one) in series.iter().enumerate() { tr {
                    th scope="row" { span class=(format!("mark line-{}", index % 4)) aria-hidden="true" {} " " (show::text(one["version"].as_str().unwrap_or_default(), 20)) }
                    td { (show::text(one["arm"].as_str().unwrap_or_default(), 60)) }
                    td { (models::sparkline(&one["last_hour"])) }
                    td .number { (show::number_of(&one["requests_per_s"])) }
                    td .number { (show::ms_of_us(&one["p50_us"])) }
                    td .number { (show::ms_of_us(&one["p99_us"])) }
                    td .number { (show::share_of(&one["failed"])) }
                } } }
            }
        }
    }
}

fn seconds(text: &str) -> Option<f64> {
    text.parse::<Timestamp>().ok().map(|ts| ts.as_millisecond() as f64 / 1e3)
}

fn lines(series: &[Value], changes: &[f64], from: f64) -> Markup {
    let points = |one: &Value| -> Vec<(f64, f64)> {
        let points = one["points"].as_array().into_iter().flatten();
        points.filter_map(|point| Some((seconds(point["ts"].as_str()?)?, point["p99_us"].as_f64()? / 1e3))).collect()
    };
    let all: Vec<Vec<(f64, f64)>> = series.iter().take(12).map(points).collect();
    let highest = all.iter().flatten().map(|(_, ms)| *ms).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let x = |ts: f64| LEFT + ((ts - from) / 3600.0).clamp(0.0, 1.0) * (WIDTH - LEFT - 4.0);
    let y = |ms: f64| HEIGHT - 16.0 - ms / top * (HEIGHT - 24.0);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!("99th percentile of the latency in the last hour, at most {} milliseconds", show::number(highest))) {
            @for ms in [0.0, highest / 2.0, highest] {
                line .axis x1=(LEFT) x2=(WIDTH - 4.0) y1=(format!("{:.1}", y(ms))) y2=(format!("{:.1}", y(ms))) {}
                text .tick x=(LEFT - 6.0) y=(format!("{:.1}", y(ms) + 4.0)) text-anchor="end" { (show::number(ms)) " ms" }
            }
            @for ts in changes {
                line .change x1=(format!("{:.1}", x(*ts))) x2=(format!("{:.1}", x(*ts))) y1="4" y2=(HEIGHT - 16.0) {}
            }
            @for (index, points) in all.iter().enumerate() {
                polyline class=(format!("line-{}", index % 4)) points=(points.iter().map(|(ts, ms)| format!("{:.1},{:.1}", x(*ts), y(*ms))).collect::<Vec<_>>().join(" ")) {}
                @if let Some((ts, ms)) = points.last() { circle class=(format!("line-{}", index % 4)) cx=(format!("{:.1}", x(*ts))) cy=(format!("{:.1}", y(*ms))) r="2.5" {} }
            }
            text .tick x=(LEFT) y=(HEIGHT - 2.0) { "1 hour ago" }
            text .tick x=(WIDTH - 4.0) y=(HEIGHT - 2.0) text-anchor="end" { "now" }
        }
    }
}
