//! What `top` shows, out of the answers of the admin API: the figures of the console's page of models.
//!
//! All texts are made safe here, so that no name, reason or arm can control the terminal.

use super::super::client::path;
use crate::readable::{self, Tone, UNKNOWN};
use serde_json::Value;
use std::cmp::Ordering;

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
    pub(super) versions: usize,
    pub(super) alerts: usize,
    /// 0: nothing is wrong.
    pub(super) urgency: u8,
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

/// Answers of the API about all models.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) models: Value,
    pub(super) figures: Value,
    pub(super) alerts: Value,
}

/// One model, as lines of text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Detail {
    pub(super) name: String,
    pub(super) tone: Tone,
    pub(super) lines: Vec<String>,
}

/// Where to ask about all models. Only the first answer is needed; others may be forbidden.
pub(super) const PLACES: [&str; 3] = ["/api/v1/models", "/api/v1/figures", "/api/v1/alerts?state=firing"];

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

impl Answers {
    pub(super) fn rows(&self) -> Vec<ModelRow> {
        let mut alerts = std::collections::HashMap::<&str, usize>::new();
        for model in list(&self.alerts, "alerts").iter().filter_map(|alert| alert["model"].as_str()) {
            *alerts.entry(model).or_default() += 1;
        }
        let row = |model: &Value| {
            let name = model["name"].as_str().unwrap_or_default();
            ModelRow::of(model, &self.figures["models"][name], alerts.get(name).copied().unwrap_or(0))
        };
        list(&self.models, "models").iter().map(row).collect()
    }
}

impl ModelRow {
    fn of(model: &Value, figures: &Value, alerts: usize) -> ModelRow {
        let failed: Vec<String> = list(model, "versions")
            .iter()
            .filter(|version| version["state"] == "failed")
            .map(|version| text(&version["version"], 20))
            .collect();
        let retired = !model["retired"].is_null();
        let (tone, state, urgency) = if retired {
            (Tone::Quiet, "retired".to_owned(), 0)
        } else if model["ready"] != true {
            let reason = text(&model["reason"], LONG);
            let state = if reason.is_empty() { "failed".to_owned() } else { format!("failed: {reason}") };
            (Tone::Bad, state, 3)
        } else if failed.is_empty() {
            (Tone::Good, "serving".to_owned(), if alerts > 0 { 2 } else { 0 })
        } else {
            (Tone::Warning, format!("failed: {}", failed.join(", ")), if alerts > 0 { 2 } else { 1 })
        };
        ModelRow {
            name: text(&model["name"], 130),
            tone,
            state,
            answers: answers(model),
            requests_per_s: figures["requests_per_s"].as_f64(),
            p99_us: figures["p99_us"].as_f64(),
            failed: figures["failed"].as_f64(),
            last_hour: list(figures, "last_hour").iter().map(|rate| rate.as_f64().unwrap_or(0.0)).collect(),
            versions: list(model, "versions").len(),
            alerts,
            urgency,
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

    /// Large numbers first, unknown ones last; equal ones by name.
    pub(super) fn compare(self, a: &ModelRow, b: &ModelRow) -> Ordering {
        let down = |of: fn(&ModelRow) -> Option<f64>| {
            let value = |row| of(row).unwrap_or(f64::NEG_INFINITY);
            value(b).total_cmp(&value(a))
        };
        let first = match self {
            Order::Attention => b.urgency.cmp(&a.urgency),
            Order::Name => Ordering::Equal,
            Order::Requests => down(|row| row.requests_per_s),
            Order::P99 => down(|row| row.p99_us),
            Order::Failed => down(|row| row.failed),
            Order::Alerts => b.alerts.cmp(&a.alerts),
        };
        first.then_with(|| a.name.to_lowercase().cmp(&b.name.to_lowercase()))
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
        let row = ModelRow::of(model, &Value::Null, 0);
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
        Detail { name: row.name, tone: row.tone, lines }
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
