//! Lifecycle events: what happened to a model, told once. Most come from the audit trail.

use crate::ledger;
use crate::model::{ModelName, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// The kinds of events that a target can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EventKind {
    #[serde(rename = "version.ready")]
    Ready,
    #[serde(rename = "version.failed")]
    Failed,
    #[serde(rename = "version.promoted")]
    Promoted,
    #[serde(rename = "version.rolled_back")]
    RolledBack,
    #[serde(rename = "rollout.moved")]
    Moved,
    #[serde(rename = "rollout.taken_back")]
    TakenBack,
    #[serde(rename = "rollout.finished")]
    Finished,
    #[serde(rename = "approval.wanted")]
    ApprovalWanted,
    #[serde(rename = "break_glass")]
    BreakGlass,
    #[serde(rename = "retrain")]
    Retrain,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The same in every message about it.
    pub id: String,
    pub event: EventKind,
    pub ts: Timestamp,
    pub model: Option<ModelName>,
    pub version: Option<Version>,
    pub actor: String,
    pub reason: Option<String>,
    /// One sentence.
    pub summary: String,
    /// The page of the console.
    pub link: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
}

/// How to make the training set of a new version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    pub from: Timestamp,
    pub to: Timestamp,
    /// A command for the machine with the data directory.
    pub command: String,
}

impl EventKind {
    pub const ALL: [EventKind; 10] = [
        EventKind::Ready,
        EventKind::Failed,
        EventKind::Promoted,
        EventKind::RolledBack,
        EventKind::Moved,
        EventKind::TakenBack,
        EventKind::Finished,
        EventKind::ApprovalWanted,
        EventKind::BreakGlass,
        EventKind::Retrain,
    ];

    /// Stable: receivers and configurations depend on it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            EventKind::Ready => "version.ready",
            EventKind::Failed => "version.failed",
            EventKind::Promoted => "version.promoted",
            EventKind::RolledBack => "version.rolled_back",
            EventKind::Moved => "rollout.moved",
            EventKind::TakenBack => "rollout.taken_back",
            EventKind::Finished => "rollout.finished",
            EventKind::ApprovalWanted => "approval.wanted",
            EventKind::BreakGlass => "break_glass",
            EventKind::Retrain => "retrain",
        }
    }

    /// The events that a word of the configuration chooses: one, all of a group (`rollout.*`), or `events` for all. Empty for another word.
    #[must_use]
    pub fn chosen_by(word: &str) -> Vec<EventKind> {
        let fits = |kind: &EventKind| match word.strip_suffix('*') {
            Some(group) => group.ends_with('.') && kind.as_str().starts_with(group),
            None => word == "events" || kind.as_str() == word,
        };
        EventKind::ALL.into_iter().filter(fits).collect()
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The events that a change of the audit trail makes. `chain` identifies the audit trail.
pub(super) fn of_change(chain: &str, change: &ledger::Event) -> Vec<Event> {
    let after: Value = change.after.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let before: Value = change.before.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut kinds = Vec::new();
    kinds.extend(match change.action.as_str() {
        "promote" | "auto_promote" | "first_document" => Some(EventKind::Promoted),
        "rollback" => Some(EventKind::RolledBack),
        "rollout_start" | "rollout_step" => Some(EventKind::Moved),
        "rollout_take_back" => Some(EventKind::TakenBack),
        "rollout_finish" | "rollout_abort" | "rollout_stop" => Some(EventKind::Finished),
        "propose" => Some(EventKind::ApprovalWanted),
        _ => None,
    });
    if overrides_approval(&after) {
        kinds.push(EventKind::BreakGlass);
    }
    let version = version_in(&after);
    let model = change.model.clone();
    let event = |kind: EventKind| Event {
        id: format!("{}/{}/{kind}", &chain[..chain.len().min(16)], change.id),
        event: kind,
        ts: change.ts,
        model: model.clone(),
        version,
        actor: change.actor.clone(),
        reason: change.reason.clone(),
        summary: summary(kind, change, model.as_ref(), (&before, &after)),
        link: link_of(model.as_ref()),
        training: None,
    };
    kinds.into_iter().map(event).collect()
}

/// Whether the change gave traffic to versions that nobody approved.
pub(super) fn overrides_approval(after: &Value) -> bool {
    after["break_glass"].as_array().is_some_and(|versions| !versions.is_empty())
}

/// The page of the console about a model.
pub(super) fn link_of(model: Option<&ModelName>) -> String {
    model.map_or_else(|| "/alerts".to_owned(), |model| format!("/models/{model}"))
}

/// The version that a change is about, or the heaviest one after it.
fn version_in(after: &Value) -> Option<Version> {
    if let Some(version) = after["version"].as_str() {
        return version.parse().ok();
    }
    let arms = after["split"].as_array()?.iter();
    let weight = |arm: &&Value| arm["weight"].as_f64().unwrap_or_default();
    let heaviest = arms.max_by(|a, b| weight(a).total_cmp(&weight(b)))?;
    heaviest["version"].as_str()?.parse().ok()
}

/// The split of a document: `1=90, 2=10`.
fn split_of(document: &Value) -> String {
    let arms = document["split"].as_array().into_iter().flatten();
    let shown: Vec<String> = arms
        .take(20)
        .map(|arm| format!("{}={}", arm["version"].as_str().unwrap_or("?"), arm["weight"].as_f64().unwrap_or_default()))
        .collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}

fn summary(
    kind: EventKind,
    change: &ledger::Event,
    model: Option<&ModelName>,
    (before, after): (&Value, &Value),
) -> String {
    let model = model.map_or_else(|| "the server".to_owned(), ToString::to_string);
    let did = match kind {
        EventKind::Promoted => "traffic was given to a version",
        EventKind::RolledBack => "traffic was rolled back",
        EventKind::Moved => "a rollout moved traffic",
        EventKind::TakenBack => "a guardrail was broken, and the rollout was taken back",
        EventKind::Finished => match change.action.as_str() {
            "rollout_finish" => "the rollout is finished",
            "rollout_abort" => "the rollout was aborted",
            _ => "the rollout was stopped by another change",
        },
        EventKind::ApprovalWanted => "a version waits for an approval",
        EventKind::BreakGlass => "an admin gave traffic to a version that nobody approved",
        EventKind::Ready => "a version is ready",
        EventKind::Failed => "a version failed",
        EventKind::Retrain => "a new version should be trained",
    };
    let (from, to) = (split_of(before), split_of(after));
    let split =
        if after["split"].is_array() && from != to { format!(" (split: {from} → {to})") } else { String::new() };
    format!("{model}: {did}{split}, by {}", change.actor)
}
