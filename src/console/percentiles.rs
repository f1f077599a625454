//! Latency as a curve of percentiles: what share of the requests took at most how long.

use super::show;
use maud::{Markup, html};
use serde_json::Value;

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 150.0;
/// Space for the numbers at the left, and for those below.
const LEFT: f64 = 64.0;
const BELOW: f64 = 18.0;
/// Lines that are drawn, and arms that are listed.
const LINES: usize = 8;
const ARMS: usize = 8;
/// The last share of the scale. Each nine is as wide as the one before.
const LAST: f64 = 0.999;

pub(super) fn part(series: &[Value]) -> Markup {
    let known: Vec<(usize, &Value)> =
        series.iter().enumerate().filter(|(_, one)| of(one).is_some_and(|of| !of.is_empty())).collect();
    if known.is_empty() {
        return html! {};
    }
    html! {
        h3 { "How long requests took" }
        figure .chart {
            (lines(&known))
            figcaption { (sentence(&known)) " One line for each version and arm, since the traffic was changed last." }
        }
        table {
            thead { tr { th scope="col" { "Version" } th scope="col" { "Arm" } th scope="col" .number { "Requests" } @for (_, head) in COLUMNS { th scope="col" .number { (head) } } } }
            tbody { @for (index, one) in known.into_iter().take(ARMS) { tr {
                th scope="row" { span class=(format!("mark line-{}", index % 4)) aria-hidden="true" {} " " (show::text(one["version"].as_str().unwrap_or_default(), 20)) }
                td { (show::text(one["arm"].as_str().unwrap_or_default(), 60)) }
                td .number { (show::number_of(&one["latency"]["requests"])) }
                @for (share, _) in COLUMNS { td .number { (show::ms_of_us(&at(one, share))) } }
            } } }
        }
    }
}

const COLUMNS: [(f64, &str); 6] =
    [(0.5, "p50"), (0.9, "p90"), (0.95, "p95"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "Longest")];

fn of(one: &Value) -> Option<&Vec<Value>> {
    one["latency"]["percentiles"].as_array()
}

/// The microseconds of a share; null where so few requests cannot tell it.
fn at(one: &Value, share: f64) -> Value {
    let found = of(one).into_iter().flatten().find(|point| point["share"].as_f64() == Some(share));
    found.map_or(Value::Null, |point| point["us"].clone())
}

fn sentence(known: &[(usize, &Value)]) -> String {
    let Some((_, one)) = known.iter().max_by_key(|(_, one)| one["latency"]["requests"].as_u64()) else {
        return String::new();
    };
    let version = show::text(one["version"].as_str().unwrap_or_default(), 20);
    let half = show::ms_of_us(&at(one, 0.5));
    match at(one, 0.99) {
        Value::Null => format!("Half of the requests to version {version} took at most {half}."),
        p99 => format!(
            "Half of the requests to version {version} took at most {half}, 99 of 100 at most {}.",
            show::ms_of_us(&p99)
        ),
    }
}

fn lines(known: &[(usize, &Value)]) -> Markup {
    let points = |one: &Value| -> Vec<(f64, f64)> {
        let all = of(one).into_iter().flatten();
        let all = all.filter_map(|point| Some((point["share"].as_f64()?, point["us"].as_f64()? / 1e3)));
        all.filter(|(share, _)| *share <= LAST).collect()
    };
    let drawn: Vec<(usize, Vec<(f64, f64)>)> =
        known.iter().take(LINES).map(|(index, one)| (*index, points(one))).collect();
    let highest = drawn.iter().flat_map(|(_, points)| points).map(|(_, ms)| *ms).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    // From a half on, by the share that took longer: each nine is as wide as the one before.
    let nines = |share: f64| -(1.0 - share).log10();
    let (first, last) = (nines(0.5), nines(LAST));
    let x = |share: f64| LEFT + (nines(share) - first) / (last - first) * (WIDTH - LEFT - 30.0);
    let y = |ms: f64| HEIGHT - BELOW - ms / top * (HEIGHT - BELOW - 8.0);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(sentence(known)) {
            @for ms in [0.0, highest / 2.0, highest] {
                line .axis x1=(LEFT) x2=(WIDTH - 4.0) y1=(format!("{:.1}", y(ms))) y2=(format!("{:.1}", y(ms))) {}
                text .tick x=(LEFT - 6.0) y=(format!("{:.1}", y(ms) + 4.0)) text-anchor="end" { (show::number(ms)) " ms" }
            }
            @for (share, words) in [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")] {
                line .axis x1=(format!("{:.1}", x(share))) x2=(format!("{:.1}", x(share))) y1="8" y2=(HEIGHT - BELOW) {}
                text .tick x=(format!("{:.1}", x(share))) y=(HEIGHT - 4.0) text-anchor="middle" { (words) }
            }
            @for (index, points) in &drawn {
                polyline class=(format!("line-{}", index % 4)) points=(points.iter().map(|(share, ms)| format!("{:.1},{:.1}", x(*share), y(*ms))).collect::<Vec<_>>().join(" ")) {}
                @for (share, ms) in points { circle class=(format!("line-{}", index % 4)) cx=(format!("{:.1}", x(*share))) cy=(format!("{:.1}", y(*ms))) r="2.5" {} }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_curve_says_what_most_requests_took() {
        let percentiles = json!([{"share": 0.5, "us": 400}, {"share": 0.9, "us": 800}, {"share": 0.99, "us": 1500}, {"share": 1.0, "us": 90_000}]);
        let series = [
            json!({"version": "1", "arm": "a", "latency": {"requests": 5, "percentiles": [{"share": 0.5, "us": 9}, {"share": 1.0, "us": 9}]}}),
            json!({"version": "2", "arm": "<b>", "latency": {"requests": 500, "percentiles": percentiles}}),
            json!({"version": "3", "arm": "c", "latency": {"requests": 0, "percentiles": []}}),
        ];
        let drawn = part(&series).into_string();
        assert!(
            drawn.contains("Half of the requests to version 2 took at most 0.4 ms, 99 of 100 at most 1.5 ms."),
            "{drawn}"
        );
        assert!(drawn.contains("90 ms") && drawn.contains("&lt;b&gt;"), "the longest is in the table: {drawn}");
        assert_eq!(drawn.matches("<polyline").count(), 2, "an arm without requests has no line");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        assert!(part(&[]).into_string().is_empty() && part(&[json!({})]).into_string().is_empty());
    }
}
