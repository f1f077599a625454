//! How requests flow: from callers over rules and the split to versions, and copies to shadows.

use super::show;
use maud::{Markup, html};
use serde_json::Value;

/// What is drawn of one arm, rule or shadow.
#[derive(Debug, PartialEq)]
struct Stream {
    label: String,
    version: String,
    /// From 0 to 1; `None` where only requests that match a rule come.
    share: Option<f64>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rule,
    Arm,
    Shadow,
}

const ROW: usize = 44;
/// More streams than this are listed and not drawn.
const MOST: usize = 16;

fn streams(document: &Value) -> Vec<Stream> {
    let list = |name: &str| document[name].as_array().map_or(&[][..], Vec::as_slice);
    let version = |entry: &Value| entry["version"].as_str().unwrap_or_default().to_owned();
    let rules = list("rules").iter().map(|rule| {
        let what = ["header", "parameter"].iter().find_map(|kind| rule[*kind].as_str()).unwrap_or("rule");
        let equals = rule["equals"].as_str().map(|value| format!(" = {value}")).unwrap_or_default();
        Stream { label: format!("{what}{equals}"), version: version(rule), share: None, kind: Kind::Rule }
    });
    let sum: f64 = list("split").iter().filter_map(|arm| arm["weight"].as_f64()).sum();
    let arms = list("split").iter().map(|arm| {
        let weight = arm["weight"].as_f64().unwrap_or(0.0);
        let label = arm["arm"].as_str().unwrap_or_default().to_owned();
        let share = Some(if sum > 0.0 { weight / sum } else { 0.0 });
        Stream { label, version: version(arm), share, kind: Kind::Arm }
    });
    let shadows = list("shadows").iter().map(|shadow| Stream {
        label: "shadow".to_owned(),
        version: version(shadow),
        share: Some(shadow["sample"].as_f64().unwrap_or(1.0)),
        kind: Kind::Shadow,
    });
    rules.chain(arms).chain(shadows).collect()
}

/// The drawing of a traffic document, with its sentence.
pub(super) fn drawing(document: &Value) -> Markup {
    let streams = streams(document);
    let sentence = sentence(&streams);
    let height = streams.len().clamp(1, MOST) * ROW + 8;
    let middle = height / 2;
    html! {
        figure .flow {
            svg viewBox=(format!("0 0 640 {height}")) role="img" aria-label=(sentence) {
                rect .box x="4" y=(middle - 16) width="92" height="32" rx="4" {}
                text x="50" y=(middle + 5) text-anchor="middle" { "callers" }
                @for (index, stream) in streams.iter().take(MOST).enumerate() {
                    @let y = index * ROW + ROW / 2 + 4;
                    @let width = stream.width();
                    path class=(format!("stream {}", stream.kind.class())) stroke-width=(format!("{width:.1}"))
                        d=(format!("M96 {middle} C 180 {middle}, 150 {y}, 240 {y} L 500 {y}")) {}
                    text .label x="250" y=(format!("{:.1}", y as f64 - width / 2.0 - 5.0)) { (stream.words()) }
                    rect .box x="500" y=(y - 15) width="136" height="30" rx="4" {}
                    text x="568" y=(y + 5) text-anchor="middle" { "version " (show::text(&stream.version, 12)) }
                }
            }
            figcaption { (sentence) }
        }
    }
}

impl Stream {
    /// Of the line, in units of the drawing.
    fn width(&self) -> f64 {
        match self.kind {
            Kind::Arm => (self.share.unwrap_or(0.0) * 18.0).max(1.5),
            Kind::Rule | Kind::Shadow => 2.5,
        }
    }

    /// Such as "control: 90 %".
    fn words(&self) -> String {
        let share = self.share.map(show::share);
        match (&share, self.label == self.version) {
            (Some(share), true) => share.clone(),
            (Some(share), false) => format!("{}: {share}", show::text(&self.label, 26)),
            (None, _) => show::text(&self.label, 32),
        }
    }
}

impl Kind {
    fn class(self) -> &'static str {
        match self {
            Kind::Rule => "rule",
            Kind::Arm => "arm",
            Kind::Shadow => "shadow",
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what} comes first") } else { format!("{count} {what}s come first") }
}

fn sentence(streams: &[Stream]) -> String {
    let arms: Vec<String> = streams
        .iter()
        .filter(|stream| stream.kind == Kind::Arm)
        .map(|arm| format!("version {} answers {}", arm.version, show::share(arm.share.unwrap_or(0.0))))
        .collect();
    let count = |kind: Kind| streams.iter().filter(|stream| stream.kind == kind).count();
    let mut sentence = if arms.is_empty() { "No version answers".to_owned() } else { arms.join(", ") };
    if let Some(first) = sentence.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    if count(Kind::Rule) > 0 {
        sentence = format!("{sentence}; {}", counted(count(Kind::Rule), "rule"));
    }
    let shadows: Vec<String> = streams
        .iter()
        .filter(|stream| stream.kind == Kind::Shadow)
        .map(|s| format!("version {} gets copies of {}", s.version, show::share(s.share.unwrap_or(1.0))))
        .collect();
    if !shadows.is_empty() {
        sentence = format!("{sentence}; {}", shadows.join(", "));
    }
    sentence + "."
}

/// The shares of a split as one thin bar.
pub(super) fn bar(shares: &[(String, f64)]) -> Markup {
    let begins = shares.iter().scan(0.0, |sum, (_, share)| {
        let begin = *sum;
        *sum += share;
        Some(begin)
    });
    html! {
        svg .bar viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
            @for (index, ((_, share), begin)) in shares.iter().zip(begins).enumerate() {
                rect class=(format!("part-{}", index % 4)) x=(format!("{:.2}", begin * 100.0)) y="0" width=(format!("{:.2}", share * 100.0)) height="6" {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_is_told_in_a_sentence() {
        let document = json!({
            "split": [{"version": "1", "weight": 90.0, "arm": "control"}, {"version": "2", "weight": 10.0, "arm": "new"}],
            "rules": [{"header": "x-cohort", "equals": "beta", "version": "2"}],
            "shadows": [{"version": "3", "sample": 0.25}],
        });
        let words = sentence(&streams(&document));
        let expected =
            "Version 1 answers 90 %, version 2 answers 10 %; 1 rule comes first; version 3 gets copies of 25 %.";
        assert_eq!(words, expected);
        assert_eq!(sentence(&streams(&Value::Null)), "No version answers.");
        let drawn = drawing(&document).into_string();
        assert!(drawn.contains("x-cohort = beta") && drawn.contains("version 3"), "{drawn}");
    }

    #[test]
    fn labels_are_text() {
        let document = json!({"split": [{"version": "1", "weight": 1.0, "arm": "<script>alert(1)</script>"}]});
        let drawn = drawing(&document).into_string();
        assert!(!drawn.contains("<script") && drawn.contains("&lt;script"), "{drawn}");
    }
}
