//! Which version answered when: the shares of the last traffic documents over time.

use super::show;
use jiff::Timestamp;
use maud::{Markup, html};
use serde_json::Value;

const WIDTH: f64 = 680.0;
/// Space for the names of the versions at the left, and for the times below.
const LEFT: f64 = 90.0;
const BELOW: f64 = 18.0;
/// The height of a version, and of its bar at a share of 1.
const LANE: f64 = 26.0;
const BAR: f64 = 18.0;
/// Revisions and versions that are drawn.
const REVISIONS: usize = 12;
const VERSIONS: usize = 6;
/// The shortest span that is drawn, in seconds.
const SHORTEST: f64 = 60.0;

/// A traffic document while it was in force. Times are seconds since 1970.
struct Span<'v> {
    revision: u64,
    ts: &'v Value,
    from: f64,
    to: f64,
    /// By version, the heaviest first.
    shares: Vec<(String, f64)>,
}

pub(super) fn section(history: &Value) -> Markup {
    let now = Timestamp::now().as_millisecond() as f64 / 1e3;
    let spans = spans(history, now);
    let (Some(newest), Some(oldest)) = (spans.first(), spans.last()) else { return html! {} };
    let from = oldest.from.min(now - SHORTEST);
    let words = sentence(&spans, newest);
    let all = history["history"].as_array().map_or(0, Vec::len);
    html! {
        section #timeline aria-labelledby="timeline-title" {
            h2 #timeline-title { "Which version answered when" }
            figure .chart {
                (lanes(&spans, from, now, &words))
                figcaption { (words) " A bar is as high as the share of the version." }
            }
            details {
                summary { "As a table" }
                table {
                    thead { tr { th scope="col" .number { "Revision" } th scope="col" { "In force since" } th scope="col" { "For" } th scope="col" { "Answers" } } }
                    tbody { @for span in &spans { tr {
                        th scope="row" .number { (span.revision) }
                        td { (show::ago(span.ts)) }
                        td { (duration(span.to - span.from)) }
                        td { (answers(&span.shares)) }
                    } } }
                }
                @if all > spans.len() { p .quiet { "The newest " (spans.len()) " of " (all) " changes. " code { "sluicegate history" } " has all." } }
            }
        }
    }
}

/// The newest first.
fn spans(history: &Value, now: f64) -> Vec<Span<'_>> {
    let mut to = now;
    let revisions = history["history"].as_array().into_iter().flatten().take(REVISIONS);
    revisions
        .filter_map(|revision| {
            let ts = &revision["ts"];
            let from = ts.as_str()?.parse::<Timestamp>().ok()?.as_millisecond() as f64 / 1e3;
            // A clock that was set back makes no span of a negative length.
            let (from, until) = (from.min(to), to);
            to = from;
            Some(Span {
                revision: revision["revision"].as_u64()?,
                ts,
                from,
                to: until,
                shares: shares(&revision["document"]),
            })
        })
        .collect()
}

/// The share of each version of a split, the heaviest first.
fn shares(document: &Value) -> Vec<(String, f64)> {
    let arms = document["split"].as_array().map_or(&[][..], Vec::as_slice);
    let sum: f64 = arms.iter().filter_map(|arm| arm["weight"].as_f64()).sum();
    let mut shares: Vec<(String, f64)> = Vec::new();
    for arm in arms {
        let version = arm["version"].as_str().unwrap_or_default();
        let share = if sum > 0.0 { arm["weight"].as_f64().unwrap_or(0.0) / sum } else { 0.0 };
        match shares.iter_mut().find(|(known, _)| known == version) {
            Some((_, known)) => *known += share,
            None => shares.push((version.to_owned(), share)),
        }
    }
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    shares
}

fn answers(shares: &[(String, f64)]) -> String {
    if shares.is_empty() {
        return "no version".to_owned();
    }
    let words: Vec<String> = shares
        .iter()
        .take(VERSIONS)
        .map(|(version, share)| format!("version {} {}", show::text(version, 20), show::share(*share)))
        .collect();
    format!("{}{}", words.join(", "), if shares.len() > VERSIONS { ", and others" } else { "" })
}

fn sentence(spans: &[Span], newest: &Span) -> String {
    let Some((version, share)) = newest.shares.first() else { return "No version answers.".to_owned() };
    let leads = |span: &&Span| span.shares.first().is_some_and(|(first, _)| first == version);
    // The oldest revision of those without another leader in between.
    let leading = spans.iter().take_while(leads).count();
    let since = spans.get(leading.saturating_sub(1)).unwrap_or(newest);
    let before = spans.get(leading).map(|span| format!("; before that: {}", answers(&span.shares)));
    format!(
        "Version {} answers {} and has answered most requests for {}{}.",
        show::text(version, 20),
        show::share(*share),
        duration(newest.to - since.from),
        before.unwrap_or_default()
    )
}

/// Such as "3 hours": a length of time to one number.
fn duration(seconds: f64) -> String {
    let units = [(86_400.0, "day", "days"), (3600.0, "hour", "hours"), (60.0, "minute", "minutes")];
    let unit = units.into_iter().find(|(length, ..)| seconds >= *length).unwrap_or((1.0, "second", "seconds"));
    show::counted((seconds.max(0.0) / unit.0).floor(), unit.1, unit.2)
}

fn lanes(spans: &[Span], from: f64, now: f64, words: &str) -> Markup {
    let mut versions: Vec<&str> = Vec::new();
    for (version, _) in spans.iter().flat_map(|span| &span.shares) {
        if versions.len() < VERSIONS && !versions.contains(&version.as_str()) {
            versions.push(version);
        }
    }
    let height = versions.len() as f64 * LANE + BELOW;
    let x = |ts: f64| LEFT + ((ts - from) / (now - from)).clamp(0.0, 1.0) * (WIDTH - LEFT - 4.0);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(words) {
            @for (lane, version) in versions.iter().enumerate() {
                @let bottom = (lane + 1) as f64 * LANE - 4.0;
                line .axis x1=(LEFT) x2=(WIDTH - 4.0) y1=(format!("{bottom:.1}")) y2=(format!("{bottom:.1}")) {}
                text .lane x="0" y=(format!("{:.1}", bottom - 4.0)) { "version " (show::text(version, 6)) }
                @for span in spans {
                    @if let Some((_, share)) = span.shares.iter().find(|(known, share)| known == version && *share > 0.0) {
                        @let tall = (share * BAR).max(1.5);
                        rect class=(format!("part-{}", lane % 4)) x=(format!("{:.1}", x(span.from))) y=(format!("{:.1}", bottom - tall))
                            width=(format!("{:.1}", (x(span.to) - x(span.from)).max(1.0))) height=(format!("{tall:.1}")) {}
                    }
                }
            }
            @for span in spans { line .change x1=(format!("{:.1}", x(span.from))) x2=(format!("{:.1}", x(span.from))) y1="2" y2=(height - BELOW) {} }
            text .tick x=(LEFT) y=(height - 4.0) { (duration(now - from)) " ago" }
            text .tick x=(WIDTH - 4.0) y=(height - 4.0) text-anchor="end" { "now" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn revision(number: u64, minutes_ago: i64, split: &Value) -> Value {
        let ts = Timestamp::from_second(Timestamp::now().as_second() - minutes_ago * 60).unwrap();
        json!({"revision": number, "ts": ts.to_string(), "document": {"split": split}})
    }

    #[test]
    fn the_time_line_says_since_when_a_version_answers_most() {
        let arm = |version: &str, weight: f64| json!({"version": version, "weight": weight});
        let history = json!({"history": [
            revision(4, 10, &json!([arm("2", 100.0)])),
            revision(3, 125, &json!([arm("2", 75.0), arm("1", 25.0)])),
            revision(2, 180, &json!([arm("1", 80.0), arm("<b>", 20.0)])),
            revision(1, 60 * 24 * 3, &json!([arm("1", 1.0)])),
        ]});
        let drawn = section(&history).into_string();
        let expected = "Version 2 answers 100 % and has answered most requests for 2 hours; before that: version 1 80 %, version &lt;b&gt; 20 %.";
        assert!(drawn.contains(expected), "{drawn}");
        assert_eq!(drawn.matches("<rect").count(), 6, "one bar for each version of each revision: {drawn}");
        assert!(drawn.contains("3 days ago") && !drawn.contains("<b>") && !drawn.contains("NaN"), "{drawn}");
    }

    #[test]
    fn it_is_bounded_and_stands_odd_histories() {
        assert!(section(&Value::Null).into_string().is_empty());
        let none = section(&json!({"history": [revision(1, 0, &json!([]))]})).into_string();
        assert!(none.contains("No version answers."), "{none}");
        let zero =
            section(&json!({"history": [revision(1, 0, &json!([{"version": "1", "weight": 0.0}]))]})).into_string();
        assert!(!zero.contains("NaN") && !zero.contains("inf"), "{zero}");
        let future = section(&json!({"history": [revision(2, -90, &json!([{"version": "1", "weight": 1.0}])), revision(1, 5, &json!([]))]})).into_string();
        assert!(!future.contains("NaN") && !future.contains("-0."), "a clock that was set back: {future}");
        let arms: Vec<Value> = (0..40).map(|n| json!({"version": n.to_string(), "weight": 1.0})).collect();
        let many: Vec<Value> =
            (0..500).map(|n| revision(500 - n, 5 * i64::try_from(n).unwrap(), &json!(arms))).collect();
        let drawn = section(&json!({"history": many})).into_string();
        assert!(drawn.len() < 16_000 && drawn.contains("The newest 12 of 500 changes"), "{}", drawn.len());
    }
}
