//! What `top` shows, out of the answers of the admin API: the figures of the console's page of models.
//!
//! All texts are made safe here, so that no name, reason or arm can control the terminal.

use super::super::client::path;
use crate::readable::{self, Tone, UNKNOWN};
use serde_json::Value;

/// Characters of the longest texts that are kept.
const LONG: usize = 300;

/// A model as a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelRow {
    /// As the API has it, to ask for it again. Names of models are letters, digits, `.`, `_` and `-`.
    pub(super) name: String,
    pub(super) tone: Tone,
    pub(super) state: String,
    /// Such as `v1 90 % · v2 10 %`.
    pub(super) answers: String,
    pub(super) requests_per_s: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) failed: Option<f64>,
    pub(super) last_hour: Vec<f64>,
    pub(super) versions: u64,
    /// Rules whose alerts fire.
    pub(super) alerts: usize,
}

/// What models are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// What is wrong first, as the console does.
    Attention,
    Name,
    Requests,
    P99,
    Failed,
    Alerts,
}

/// Models that follow each other in the list, and what is known of all of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Page {
    /// All models.
    pub(super) models: usize,
    /// Those that the filter selects.
    pub(super) found: usize,
    /// Those of them that need attention.
    pub(super) wrong: usize,
    /// The place of the first row among those that were found.
    pub(super) first: usize,
    pub(super) rows: Vec<ModelRow>,
}

/// One model, as lines of text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Detail {
    pub(super) name: String,
    pub(super) tone: Tone,
    pub(super) lines: Vec<String>,
}

/// The longest filter that the API takes, in bytes.
const MAX_FILTER: usize = 128;

/// Where to ask for models.
pub(super) fn place_of_page(filter: &str, order: Order, from: usize, limit: usize) -> String {
    let filter = filter.trim();
    let filter = super::super::client::segment(&filter[..filter.floor_char_boundary(MAX_FILTER)]);
    format!("/api/v1/overview?sort={}&filter={filter}&offset={from}&limit={limit}", order.key())
}

/// Where to ask about one model. Only the first answer is needed.
pub(super) fn places_of(model: &str) -> [String; 5] {
    let place = |rest: &str| path(model, rest);
    [
        place(""),
        place("/traffic"),
        place("/figures?window=1h"),
        place("/rollout"),
        format!("/api/v1/alerts?state=firing&model={}", super::super::client::segment(model)),
    ]
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map_or(&[][..], Vec::as_slice)
}

fn text(value: &Value, most: usize) -> String {
    readable::line(value.as_str().unwrap_or_default(), most)
}

fn or_unknown(value: Option<f64>, shown: fn(f64) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), shown)
}

impl Page {
    /// `from`: the place of the first row in the order of the API. Where the list is `reversed`, the last one is the first.
    pub(super) fn of(answer: &Value, from: usize, reversed: bool) -> Page {
        let count = |name: &str| answer[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let (models, found, wrong) = (count("models"), count("found"), count("wrong"));
        let mut rows: Vec<ModelRow> = list(answer, "rows").iter().map(ModelRow::of).collect();
        if reversed {
            rows.reverse();
        }
        let first = if reversed { found.saturating_sub(from + rows.len()) } else { from };
        Page { models, found, wrong, first, rows }
    }

    /// The model at a place of the list, where that was asked for.
    pub(super) fn at(&self, place: usize) -> Option<&ModelRow> {
        self.rows.get(place.checked_sub(self.first)?)
    }

    pub(super) fn place_of(&self, name: &str) -> Option<usize> {
        Some(self.first + self.rows.iter().position(|row| row.name == name)?)
    }
}

/// How a model is, in a colour and in words.
fn state(retired: bool, ready: bool, reason: &Value, failed: &[String]) -> (Tone, String) {
    if retired {
        (Tone::Quiet, "retired".to_owned())
    } else if !ready {
        let reason = text(reason, LONG);
        (Tone::Bad, if reason.is_empty() { "failed".to_owned() } else { format!("failed: {reason}") })
    } else if failed.is_empty() {
        (Tone::Good, "serving".to_owned())
    } else {
        (Tone::Warning, format!("failed: {}", failed.join(", ")))
    }
}

impl ModelRow {
    /// Of a row of the overview.
    fn of(model: &Value) -> ModelRow {
        let failed: Vec<String> = list(model, "failed_versions").iter().map(|version| text(version, 20)).collect();
        let (tone, state) = state(model["retired"] == true, model["ready"] == true, &model["reason"], &failed);
        let figures = &model["figures"];
        ModelRow {
            name: text(&model["name"], 130),
            tone,
            state,
            answers: answers(model),
            requests_per_s: figures["requests_per_s"].as_f64(),
            p99_us: figures["p99_us"].as_f64(),
            failed: figures["failed"].as_f64(),
            last_hour: list(figures, "last_hour").iter().map(|rate| rate.as_f64().unwrap_or(0.0)).collect(),
            versions: model["versions"].as_u64().unwrap_or(0),
            alerts: list(model, "alerts").len(),
        }
    }

    pub(super) fn requests(&self) -> String {
        or_unknown(self.requests_per_s, readable::number)
    }

    pub(super) fn p99(&self) -> String {
        or_unknown(self.p99_us, readable::ms_of_us)
    }

    pub(super) fn failed_share(&self) -> String {
        or_unknown(self.failed, readable::share)
    }

    /// A mark in front of the state, so that colour alone says nothing.
    pub(super) fn state_with_mark(&self) -> String {
        format!("{} {}", mark(self.tone), self.state)
    }
}

pub(super) fn mark(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "✓",
        Tone::Warning => "!",
        Tone::Bad => "✕",
        Tone::Quiet => "·",
    }
}

fn answers(model: &Value) -> String {
    let shares = list(model, "answers");
    let one = |answer: &Value| {
        format!("v{} {}", text(&answer["version"], 10), or_unknown(answer["share"].as_f64(), readable::share))
    };
    let mut shown: Vec<String> = shares.iter().take(4).map(one).collect();
    if shares.len() > 4 {
        shown.push("…".to_owned());
    }
    shown.join(" · ")
}

impl Order {
    const ALL: [Order; 6] = [Order::Attention, Order::Name, Order::Requests, Order::P99, Order::Failed, Order::Alerts];

    pub(super) fn next(self) -> Order {
        let at = Order::ALL.iter().position(|order| *order == self).unwrap_or(0);
        Order::ALL[(at + 1) % Order::ALL.len()]
    }

    /// For the API.
    fn key(self) -> &'static str {
        match self {
            Order::Attention => "attention",
            Order::Name => "name",
            Order::Requests => "requests",
            Order::P99 => "p99",
            Order::Failed => "failed",
            Order::Alerts => "alerts",
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Order::Attention => "what is wrong first",
            Order::Name => "name",
            Order::Requests => "requests/s",
            Order::P99 => "p99",
            Order::Failed => "failed",
            Order::Alerts => "alerts",
        }
    }
}

/// Rates as a line of blocks, `width` characters long; the highest rate is a whole block. Empty without rates.
pub(super) fn sparkline(rates: &[f64], width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = rates.iter().copied().fold(0.0, f64::max);
    if width == 0 || highest <= 0.0 {
        return String::new();
    }
    let cells = width.min(rates.len());
    let cell = |index: usize| {
        let (from, to) = (index * rates.len() / cells, (index + 1) * rates.len() / cells);
        let mean = rates[from..to].iter().sum::<f64>() / (to - from) as f64;
        let height = (0..8).filter(|step| mean / highest * 8.0 > f64::from(*step)).count();
        if height == 0 { ' ' } else { BLOCKS[height - 1] }
    };
    (0..cells).map(cell).collect()
}

impl Detail {
    /// `answers` in the order of [`places_of`].
    pub(super) fn of(answers: &[Value; 5]) -> Detail {
        let [model, traffic, figures, rollout, alerts] = answers;
        let failed = list(model, "versions").iter().filter(|version| version["state"] == "failed");
        let failed: Vec<String> = failed.map(|version| text(&version["version"], 20)).collect();
        let (tone, _) = state(!model["retired"].is_null(), model["ready"] == true, &model["reason"], &failed);
        let mut lines = vec![format!("revision {}", or_unknown(model["revision"].as_f64(), readable::number))];
        for note in list(model, "notes").iter().take(5) {
            lines.push(text(note, LONG));
        }
        for alert in list(alerts, "alerts").iter().take(10) {
            let severity = alert["severity"].as_str().unwrap_or("warning");
            let mark = mark(readable::tone(severity));
            lines.push(format!("{mark} {}: {}", readable::line(severity, 20), text(&alert["summary"], LONG)));
        }
        if let Some(state) = rollout["state"].as_str() {
            let percent = rollout["percent"].as_f64().map(|percent| readable::share(percent / 100.0));
            let [state, percent] = [readable::line(state, 40), percent.unwrap_or_else(|| UNKNOWN.to_owned())];
            let (to, why) = (text(&rollout["to"], 20), text(&rollout["why"], LONG));
            lines.push(format!("rollout to version {to}: {}, {percent}; {why}", state.replace('_', " ")));
        }
        lines.push(String::new());
        lines.extend(arms(traffic, figures));
        lines.push(String::new());
        lines.extend(versions(model));
        Detail { name: text(&model["name"], 130), tone, lines }
    }
}

fn arms(traffic: &Value, figures: &Value) -> Vec<String> {
    let rows: Vec<Vec<String>> = list(traffic, "shares")
        .iter()
        .map(|arm| {
            let own = |one: &&Value| one["arm"] == arm["arm"] && one["version"] == arm["version"];
            let now = list(figures, "series").iter().find(own).unwrap_or(&Value::Null);
            let value = |value: &Value, shown: fn(f64) -> String| or_unknown(value.as_f64(), shown);
            let rates: Vec<f64> = list(now, "last_hour").iter().map(|rate| rate.as_f64().unwrap_or(0.0)).collect();
            vec![
                text(&arm["arm"], 60),
                text(&arm["version"], 20),
                value(&arm["configured"], readable::share),
                value(&arm["observed"], readable::share),
                value(&now["requests_per_s"], readable::number),
                value(&now["p50_us"], readable::ms_of_us),
                value(&now["p99_us"], readable::ms_of_us),
                value(&now["failed"], readable::share),
                sparkline(&rates, 20),
            ]
        })
        .collect();
    if rows.is_empty() {
        return vec!["no version of this model serves".to_owned()];
    }
    let head = ["ARM", "VERSION", "CONFIGURED", "OBSERVED", "REQUESTS/S", "P50", "P99", "FAILED", "LAST HOUR"];
    lines_of(&super::super::table(&head, &rows))
}

fn versions(model: &Value) -> Vec<String> {
    let rows: Vec<Vec<String>> = list(model, "versions")
        .iter()
        .rev()
        .take(200)
        .map(|version| {
            let state = version["state"].as_str().unwrap_or_default();
            let mut remarks = text(&version["reason"], LONG);
            for note in list(version, "notes").iter().take(3) {
                remarks =
                    if remarks.is_empty() { text(note, LONG) } else { format!("{remarks}; {}", text(note, LONG)) };
            }
            vec![
                text(&version["version"], 20),
                format!("{} {}", mark(readable::tone(state)), readable::line(state, 20)),
                text(&version["engine"], 20),
                or_unknown(version["bytes"].as_f64(), readable::bytes),
                or_unknown(version["in_flight"].as_f64(), readable::number),
                remarks,
            ]
        })
        .collect();
    lines_of(&super::super::table(&["VERSION", "STATE", "ENGINE", "SIZE", "IN FLIGHT", "REMARKS"], &rows))
}

fn lines_of(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}
