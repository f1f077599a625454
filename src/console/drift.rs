//! How far live rows are from the reference, by column: what moved most is drawn, reference and live over each other.

use super::evidence::{list, text};
use super::{layout, show};
use maud::{Markup, html};
use serde_json::Value;
use std::fmt::Write as _;

/// Columns of each arm that the API gives bins of.
pub(super) const DRAWN: usize = 4;
/// Of the tables of columns of all arms, of one arm at least, and of the drawings of all arms.
const BYTES: usize = 14_000;
const BYTES_OF_ARM: usize = 4_000;
const BYTES_OF_DRAWINGS: usize = 10_000;
/// Arms that are shown.
const ARMS: usize = 3;
/// Bins that a drawing has at most, those that its table has, and those whose names fit below it.
const BINS: usize = 120;
const ROWS: usize = 24;
const NAMES: usize = 6;
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 110.0;
/// Space for the shares at the left, and for the names below.
const LEFT: f64 = 46.0;
const BELOW: f64 = 18.0;

pub(super) fn section(drift: &Value) -> Markup {
    let versions = list(drift, "versions");
    if versions.is_empty() {
        return html! {};
    }
    let arms: Vec<(&Value, &Value)> =
        versions.iter().flat_map(|version| list(version, "arms").iter().map(move |arm| (version, arm))).collect();
    let shown = arms.len().clamp(1, ARMS);
    let bytes = (BYTES / arms.len().max(1)).max(BYTES_OF_ARM);
    let rows = |value: &Value| show::counted(value.as_f64().unwrap_or(0.0), "row", "rows");
    html! {
        section #drift aria-labelledby="drift-title" {
            h2 #drift-title { "Drift" }
            p { (text(drift, "summary", 800)) }
            (super::evidence::of_fleet(drift))
            @for trouble in list(drift, "troubles").iter().take(5) { p .warn { (text(trouble, "words", 500)) } }
            @for (version, arm) in arms.iter().take(ARMS) {
                h3 { "Version " (text(version, "version", 20)) ", arm " (text(arm, "arm", 60)) }
                p .quiet { (rows(&arm["rows"])) ", compared with " (rows(&version["reference_rows"])) " of the reference (" (reference(version)) ")." }
                (drawings(arm, BYTES_OF_DRAWINGS / shown))
                @if !list(arm, "columns").is_empty() { (columns(arm, bytes)) }
            }
            @if arms.len() > ARMS { p .quiet { (show::counted((arms.len() - ARMS) as f64, "more arm", "more arms")) ". " code { "sluicegate drift" } " has all." } }
        }
    }
}

fn reference(version: &Value) -> &'static str {
    match version["reference"].as_str() {
        Some("profile") => "the profile of its training data",
        Some("first_day") => "its own first day",
        _ => "none yet",
    }
}

/// What alarms comes first, then what moved most.
fn by_urgency(arm: &Value) -> Vec<&Value> {
    let mut columns: Vec<&Value> = list(arm, "columns").iter().collect();
    columns.sort_by(|a, b| {
        let key = |column: &Value| (column["alarm"] == true, distance(column));
        key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal)
    });
    columns
}

fn distance(column: &Value) -> f64 {
    list(column, "windows").iter().filter_map(|window| window["distance"].as_f64()).fold(0.0, f64::max)
}

fn name(column: &Value) -> String {
    show::text(column["name"].as_str().or(column["column"].as_str()).unwrap_or_default(), 100)
}

fn columns(arm: &Value, bytes: usize) -> Markup {
    let columns = by_urgency(arm);
    let rows = columns.iter().map(|column| {
        let floor = column["floor"].as_f64().unwrap_or(0.0);
        let far = distance(column);
        html! { tr {
            th scope="row" { (name(column)) }
            td { (show::state(if column["alarm"] == true { "firing" } else { "ok" })) @if column["alarm"] == true { " since " (show::ago(&column["since"])) } }
            td { (super::rollout::interval(0.0, Some(far), floor)) br; (show::number(far)) " of " (show::number(floor)) }
            td { (text(column, "words", 400)) }
        } }
    });
    let (rows, shown) = layout::fitting(rows, bytes);
    html! {
        table {
            thead { tr { th scope="col" { "Column" } th scope="col" { "State" } th scope="col" { "Distance against its floor" } th scope="col" { "In words" } } }
            tbody { (rows) }
        }
        @if columns.len() > shown { p .quiet { "The " (shown) " of " (columns.len()) " columns that moved most. " code { "sluicegate drift" } " has all." } }
    }
}

// === drawings ===

/// A bin: what it holds, and its share of the reference and of the live rows.
struct Bin {
    name: String,
    reference: f64,
    live: f64,
}

fn drawings(arm: &Value, bytes: usize) -> Markup {
    let columns = by_urgency(arm);
    let with_bins = columns.into_iter().filter(|column| !list(&column["bins"], "bins").is_empty());
    let (drawn, _) = layout::fitting(with_bins.map(drawing), bytes);
    html! { @if !drawn.0.is_empty() { div .side-by-side { (drawn) } } }
}

fn drawing(column: &Value) -> Markup {
    let bins: Vec<Bin> = list(&column["bins"], "bins").iter().map(Bin::of).collect();
    let window = text(&column["bins"], "window", 20).replace('_', " ");
    let caption = sentence(&name(column), &window, &bins);
    let mut order: Vec<usize> = (0..bins.len()).collect();
    order.sort_by(|a, b| bins[*b].moved().total_cmp(&bins[*a].moved()));
    order.truncate(ROWS);
    // As they stand in the drawing.
    order.sort_unstable();
    html! {
        figure .chart .spread {
            h4 { (name(column)) " " (show::state(if column["alarm"] == true { "firing" } else { "ok" })) }
            (over_each_other(&bins, &caption))
            figcaption { (caption) }
            details {
                summary { "As a table" }
                table {
                    thead { tr { th scope="col" { "Values" } th scope="col" .number { "Reference" } th scope="col" .number { "Live" } } }
                    tbody { @for bin in order.iter().map(|at| &bins[*at]) { tr {
                        th scope="row" { (show::text(&bin.name, 60)) }
                        td .number { (show::share(bin.reference)) }
                        td .number { (show::share(bin.live)) }
                    } } }
                }
                @if bins.len() > ROWS { p .quiet { "The " (ROWS) " of " (bins.len()) " bins that moved most. " code { "sluicegate drift --bins 1" } " has all." } }
            }
        }
    }
}

fn sentence(name: &str, window: &str, bins: &[Bin]) -> String {
    let elsewhere: f64 = bins.iter().map(Bin::moved).sum::<f64>() / 2.0;
    let mut words = format!(
        "Filled: the reference. Line: the live rows of the last {window}. {} of the live rows would have another value of {name} if all were as in the reference",
        show::share(elsewhere)
    );
    if let Some(most) = bins.iter().max_by(|a, b| a.moved().total_cmp(&b.moved())).filter(|bin| bin.moved() > 0.0) {
        // Writing to a String cannot fail.
        let _ = write!(
            words,
            "; most of all {}: {} of the reference, {} now",
            show::text(&most.name, 60),
            show::share(most.reference),
            show::share(most.live)
        );
    }
    words + "."
}

fn over_each_other(bins: &[Bin], words: &str) -> Markup {
    // Of very many bins, neighbours are drawn as one.
    let joined: Vec<Bin> = bins.chunks(bins.len().div_ceil(BINS).max(1)).map(Bin::joined).collect();
    let highest = joined.iter().map(|bin| bin.reference.max(bin.live)).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest } else { 1.0 };
    let step = (WIDTH - LEFT - 2.0) / joined.len().max(1) as f64;
    let x = |at: usize| LEFT + step * at as f64;
    let y = |share: f64| HEIGHT - BELOW - share / top * (HEIGHT - BELOW - 8.0);
    let steps = |share: &dyn Fn(&Bin) -> f64| {
        let mut path = format!("M{:.1} {:.1}", x(0), y(0.0));
        for (at, bin) in joined.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(path, "V{:.1}H{:.1}", y(share(bin)), x(at + 1));
        }
        let _ = write!(path, "V{:.1}", y(0.0));
        path
    };
    let named = |at: usize| joined.len() <= NAMES || at == 0 || at + 1 == joined.len();
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(words) {
            @for share in [0.0, top] {
                line .axis x1=(LEFT) x2=(WIDTH - 2.0) y1=(format!("{:.1}", y(share))) y2=(format!("{:.1}", y(share))) {}
                text .tick x=(LEFT - 6.0) y=(format!("{:.1}", y(share) + 4.0)) text-anchor="end" { (show::share(share)) }
            }
            path .reference d=(steps(&|bin| bin.reference)) {}
            path .live d=(steps(&|bin| bin.live)) {}
            @for (at, bin) in joined.iter().enumerate().filter(|(at, _)| named(*at)) {
                @let (anchor, place) = if joined.len() <= NAMES { ("middle", x(at) + step / 2.0) } else if at == 0 { ("start", LEFT) } else { ("end", WIDTH - 2.0) };
                text .tick x=(format!("{place:.1}")) y=(HEIGHT - 4.0) text-anchor=(anchor) { (bin.short()) }
            }
        }
    }
}

impl Bin {
    fn of(bin: &Value) -> Bin {
        let share = |name: &str| bin[name].as_f64().unwrap_or(0.0).clamp(0.0, 1.0);
        Bin {
            name: bin["name"].as_str().unwrap_or_default().to_owned(),
            reference: share("reference"),
            live: share("live"),
        }
    }

    fn joined(bins: &[Bin]) -> Bin {
        let sum = |share: &dyn Fn(&Bin) -> f64| bins.iter().map(share).sum::<f64>();
        let name = bins.first().map(|bin| bin.name.clone()).unwrap_or_default();
        Bin { name, reference: sum(&|bin| bin.reference), live: sum(&|bin| bin.live) }
    }

    fn moved(&self) -> f64 {
        (self.live - self.reference).abs()
    }

    /// For the space below a bin.
    fn short(&self) -> String {
        let name = self.name.strip_prefix("the value ").unwrap_or(&self.name);
        let name = if name.starts_with("a value that") { "other" } else { name };
        show::text(name, 18)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_500_columns_those_that_moved_most_are_shown() {
        let column = |n: usize| json!({"column": format!("inputs.x[{n}]"), "alarm": n == 250, "floor": 0.05, "words": "a sentence", "windows": [{"distance": 0.001 * n as f64}]});
        let arm = json!({"arm": "1", "rows": 5, "columns": (0..500).map(column).collect::<Vec<_>>()});
        let drawn = section(&json!({"versions": [{"version": "1", "arms": [arm]}]})).into_string();
        assert!(drawn.len() < BYTES + 2000, "{} bytes", drawn.len());
        let at = |n: usize| drawn.find(&format!("inputs.x[{n}]<"));
        assert!(at(250) < at(499) && at(499) < at(498) && at(250).is_some(), "{drawn}");
        assert!(at(1).is_none() && drawn.contains("of 500 columns that moved most"), "{drawn}");
    }

    fn drawn(bins: &[Value]) -> String {
        let bins = json!({"window": "four_weeks", "ordered": 2, "bins": bins});
        let column = json!({"column": "inputs.x[0]", "name": "<b>age</b>", "alarm": true, "floor": 0.05, "words": "it moved", "windows": [{"distance": 0.5}], "bins": bins});
        let arm = json!({"arm": "1", "rows": 1, "columns": [{"column": "inputs.y", "alarm": false, "windows": [{"distance": 0.9}], "bins": null}, column]});
        section(&json!({"versions": [{"version": "1", "reference": "profile", "reference_rows": 900, "arms": [arm]}]}))
            .into_string()
    }

    #[test]
    fn reference_and_live_rows_are_drawn_over_each_other_with_their_table_and_a_sentence() {
        let bin = |name: &str, reference: f64, live: f64| json!({"name": name, "reference": reference, "live": live});
        let page = drawn(&[bin("below 4", 0.5, 0.2), bin("from 4 on", 0.4, 0.75), bin("missing", 0.1, 0.05)]);
        let (reference, live) = (page.matches("class=\"reference\"").count(), page.matches("class=\"live\"").count());
        assert_eq!((reference, live), (1, 1), "only the column with bins is drawn: {page}");
        assert!(page.contains("Line: the live rows of the last four weeks. 35 % of the live rows"), "{page}");
        assert!(page.contains("most of all from 4 on: 40 % of the reference, 75 % now."), "{page}");
        assert!(
            page.contains("<td class=\"number\">40 %</td><td class=\"number\">75 %</td>"),
            "the data as a table: {page}"
        );
        assert!(
            page.contains("&lt;b&gt;age") && !page.contains("<b>age") && page.contains("1 row, compared with 900 rows"),
            "{page}"
        );
    }

    #[test]
    fn a_drawing_is_bounded_and_stands_odd_shares() {
        let long = "a value with a long name ".repeat(40);
        let bins: Vec<Value> = (0..2000).map(|n| json!({"name": format!("{n} {long}"), "reference": 1e-3, "live": if n == 7 { Value::Null } else { json!(n) }})).collect();
        let page = drawn(&bins);
        assert!(page.len() < 20_000 && page.contains("bins that moved most"), "{} bytes", page.len());
        for odd in [drawn(&[json!({"name": "any number", "reference": 0.0, "live": 0.0})]), drawn(&[])] {
            assert!(!odd.contains("NaN") && !odd.contains("inf"), "{odd}");
        }
    }
}
