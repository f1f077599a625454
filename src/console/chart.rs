//! The last hour of a model: requests and latency over time, with the changes of its traffic.

use super::{models, percentiles, show};
use jiff::Timestamp;
use maud::{Markup, html};
use serde_json::Value;

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 120.0;
/// Space for the numbers at the left.
const LEFT: f64 = 64.0;
/// Lines that are drawn, points of each, and arms that are listed.
const LINES: usize = 8;
const POINTS: usize = 60;
const ARMS: usize = 8;

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
                    (sentence(series, to)) " One line for each version and arm: the 99th percentile of the latency." @if !changes.is_empty() { " Dashed: " (show::counted(changes.len() as f64, "change", "changes")) " of the traffic." }
                }
            }
            (over_time(series, from))
            table {
                thead { tr { th scope="col" { "Version" } th scope="col" { "Arm" } th scope="col" { "Requests/s" } th scope="col" .number { "Now" } th scope="col" .number { "p50" } th scope="col" .number { "p99" } th scope="col" .number { "Failed" } } }
                tbody { @for (index, one) in series.iter().take(ARMS).enumerate() { tr {
                    th scope="row" { span class=(format!("mark line-{}", index % 4)) aria-hidden="true" {} " " (show::text(one["version"].as_str().unwrap_or_default(), 20)) }
                    td { (show::text(one["arm"].as_str().unwrap_or_default(), 60)) }
                    td { (models::sparkline(&one["last_hour"])) }
                    td .number { (show::number_of(&one["requests_per_s"])) }
                    td .number { (show::ms_of_us(&one["p50_us"])) }
                    td .number { (show::ms_of_us(&one["p99_us"])) }
                    td .number { (show::share_of(&one["failed"])) }
                } } }
            }
            @if series.len() > ARMS { p .quiet { (show::counted((series.len() - ARMS) as f64, "more arm", "more arms")) "." } }
            (percentiles::part(series))
        }
    }
}

/// The versions of a model against their first days.
pub(super) fn first_days(figures: &Value) -> Markup {
    let Some(days) = figures["first_days"].as_array().filter(|days| !days.is_empty()) else { return html! {} };
    let name = |measure: &str| match measure {
        "p50_us" => "Median latency",
        "p99_us" => "99th percentile of the latency",
        _ => "Time in the engine for each row",
    };
    let rows = days.iter().flat_map(|day| {
        day["measures"].as_array().into_iter().flatten().map(move |measure| (&day["version"], &day["from"], measure))
    });
    html! {
        section #first-days aria-labelledby="first-days-title" {
            h2 #first-days-title { "Against the first day" }
            table {
                thead { tr { th scope="col" { "Version" } th scope="col" { "First day" } th scope="col" { "Measure" } th scope="col" .number { "First day" } th scope="col" .number { "Last 24 hours" } th scope="col" .number { "Ratio" } th scope="col" { "State" } } }
                tbody { @for (version, from, measure) in rows { tr {
                    th scope="row" { (show::text(version.as_str().unwrap_or_default(), 20)) }
                    td { (show::ago(from)) }
                    td { (name(measure["measure"].as_str().unwrap_or_default())) }
                    td .number { (show::ms_of_us(&measure["first_day"])) }
                    td .number { (show::ms_of_us(&measure["now"])) }
                    td .number { (show::number_of(&measure["ratio"])) }
                    td { (show::state(if measure["slower"] == true { "worse" } else { "ok" })) }
                } } }
            }
        }
    }
}

/// Logged predictions that the server ran again.
pub(super) fn reproduced(figures: &Value) -> Markup {
    let Some(versions) = figures["reproduced"].as_array().filter(|versions| !versions.is_empty()) else {
        return html! {};
    };
    html! {
        section #reproduced aria-labelledby="reproduced-title" {
            h2 #reproduced-title { "Logged predictions, run again" }
            table {
                thead { tr { th scope="col" { "Version" } th scope="col" { "When" } th scope="col" .number { "Bit for bit" } th scope="col" .number { "Within rounding" } th scope="col" .number { "Different" } th scope="col" .number { "Not run" } th scope="col" { "Remarks" } } }
                tbody { @for version in versions { tr {
                    @let ran = &version["ran"];
                    th scope="row" { (show::text(version["version"].as_str().unwrap_or_default(), 20)) }
                    td { (show::ago(&version["at"])) }
                    @for count in ["equal", "close", "different", "not_run"] { td .number { (show::number_of(&ran[count])) } }
                    td { @for words in [&version["error"], &ran["first_different"], &ran["words"], &ran["why_not_run"]] { (show::text(words.as_str().unwrap_or_default(), 200)) " " } }
                } } }
            }
        }
    }
}

/// The points of one version and arm: seconds since 1970, and milliseconds.
fn points(one: &Value) -> Vec<(f64, f64)> {
    let points = one["points"].as_array().into_iter().flatten();
    points.filter_map(|point| Some((seconds(point["ts"].as_str()?)?, point["p99_us"].as_f64()? / 1e3))).collect()
}

/// The slowest span of the hour.
fn sentence(series: &[Value], to: f64) -> String {
    let of_all = series.iter().take(LINES).flat_map(|one| points(one).into_iter().map(move |point| (one, point)));
    let Some((one, (ts, ms))) = of_all.max_by(|(_, a), (_, b)| a.1.total_cmp(&b.1)) else {
        return "No request was answered in the last hour.".to_owned();
    };
    let minutes = ((to - ts) / 60.0).max(0.0).round();
    let when = if minutes < 1.0 {
        "just now".to_owned()
    } else {
        format!("{} ago", show::counted(minutes, "minute", "minutes"))
    };
    let version = show::text(one["version"].as_str().unwrap_or_default(), 20);
    format!(
        "The slowest moment was {when}: 99 of 100 requests to version {version} took at most {} ms.",
        show::number(ms)
    )
}

/// The data of the lines, the highest of each ten minutes.
fn over_time(series: &[Value], from: f64) -> Markup {
    const SPANS: u32 = 6;
    let shown: Vec<(&Value, Vec<(f64, f64)>)> =
        series.iter().take(LINES).map(|one| (one, points(one))).filter(|(_, points)| !points.is_empty()).collect();
    let highest = |points: &[(f64, f64)], span: u32| {
        let begin = from + f64::from(span) * 600.0;
        let within =
            points.iter().filter(|(ts, _)| (begin..begin + 600.0).contains(ts) || (span + 1 == SPANS && *ts >= begin));
        within
            .map(|(_, ms)| *ms)
            .reduce(f64::max)
            .map_or_else(|| "–".to_owned(), |ms| format!("{} ms", show::number(ms)))
    };
    html! {
        @if !shown.is_empty() { details {
            summary { "As a table" }
            div .wide { table {
                thead { tr { th scope="col" { "Highest p99" } @for (one, _) in &shown { th scope="col" .number { "Version " (show::text(one["version"].as_str().unwrap_or_default(), 20)) ", " (show::text(one["arm"].as_str().unwrap_or_default(), 20)) } } } }
                tbody { @for span in 0..SPANS { tr {
                    th scope="row" { (60 - span * 10) " to " (50 - span * 10) " minutes ago" }
                    @for (_, points) in &shown { td .number { (highest(points, span)) } }
                } } }
            } }
        } }
    }
}

fn seconds(text: &str) -> Option<f64> {
    text.parse::<Timestamp>().ok().map(|ts| ts.as_millisecond() as f64 / 1e3)
}

/// The highest points of equally many each: a peak stays.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let highest = |part: &[(f64, f64)]| part.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
    points.chunks(points.len().div_ceil(POINTS).max(1)).filter_map(highest).collect()
}

fn lines(series: &[Value], changes: &[f64], from: f64) -> Markup {
    let all: Vec<Vec<(f64, f64)>> = series.iter().take(LINES).map(|one| thinned(&points(one))).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_few_points_and_keeps_its_peaks() {
        let points: Vec<(f64, f64)> = (0..3600).map(|n| (f64::from(n), if n == 1234 { 99.0 } else { 1.0 })).collect();
        let thin = thinned(&points);
        assert_eq!(thin.len(), POINTS);
        assert!(thin.contains(&(1234.0, 99.0)) && thin.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thinned(&points[..7]), points[..7]);
        assert!(thinned(&[]).is_empty());
    }

    #[test]
    fn the_slowest_moment_is_told_and_the_lines_have_a_table() {
        let to = seconds("2026-11-28T10:59:59Z").unwrap();
        let point =
            |minute: u32, us: u32| serde_json::json!({"ts": format!("2026-11-28T10:{minute:02}:00Z"), "p99_us": us});
        let one =
            |version: &str, points: Vec<Value>| serde_json::json!({"version": version, "arm": "a", "points": points});
        let series = [
            one("1", vec![point(5, 1000), point(15, 2000)]),
            one("2", vec![point(39, 9500), point(59, 500)]),
            one("3", vec![]),
        ];
        let expected = "The slowest moment was 21 minutes ago: 99 of 100 requests to version 2 took at most 9.5 ms.";
        assert_eq!(sentence(&series, to), expected);
        assert_eq!(sentence(&series[2..], to), "No request was answered in the last hour.");
        assert_eq!(
            sentence(&[one("1", vec![point(59, 1)])], to),
            "The slowest moment was 1 minute ago: 99 of 100 requests to version 1 took at most 0.001 ms."
        );
        let table = over_time(&series, to - 3600.0).into_string();
        assert!(
            table.contains("60 to 50 minutes ago</th><td class=\"number\">1 ms</td><td class=\"number\">–</td>"),
            "{table}"
        );
        assert!(
            table.contains("10 to 0 minutes ago</th><td class=\"number\">–</td><td class=\"number\">0.5 ms</td>"),
            "{table}"
        );
        assert!(over_time(&series[2..], to).into_string().is_empty());
    }
}
