//! A fleet's state as one JSON document, which a single gateway can take over.

#![expect(clippy::zero_sized_map_values, reason = "the names of members are read, and not their values")]

use super::board::now;
use super::wire;
use crate::access::{Models, Role, is_token_name};
use crate::ledger::{SharedModel, StoredToken};
use crate::model::ModelName;
use crate::route::Document;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The form of the document.
const SCHEMA: u32 = 1;
/// The most complaints that are told.
const MOST_COMPLAINTS: usize = 20;
/// What [`SharedModel`] and [`StoredToken`] have. In the buckets of a fleet a newer program may write more; a file with more is another one than this program
/// would store.
const OF_MODEL: [&str; 8] =
    ["document", "unloaded", "retired", "highest_served", "operator_unloaded", "auto_promoted", "reviews", "proposers"];
const OF_TOKEN: [&str; 7] = ["name", "hash", "role", "models", "created_at", "created_by", "expires_at"];

/// All that a fleet shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct FleetState {
    schema: u32,
    /// The name of the fleet, and of the gateway that was asked.
    pub fleet: String,
    pub node: String,
    /// When, in RFC 3339.
    pub at: String,
    pub models: BTreeMap<ModelName, SharedModel>,
    /// Without their secrets. `None`: they were not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<StoredToken>>,
}

/// The names of the members.
#[derive(Deserialize)]
struct Outline {
    models: BTreeMap<String, Names>,
    #[serde(default)]
    tokens: Option<Vec<Names>>,
}

type Names = BTreeMap<String, IgnoredAny>;

impl FleetState {
    pub(super) fn new(fleet: String, node: String, models: BTreeMap<ModelName, SharedModel>) -> FleetState {
        FleetState { schema: SCHEMA, fleet, node, at: now(), models, tokens: None }
    }

    /// Reads a document, and checks it as a whole. Traffic documents get the form that is stored.
    ///
    /// # Errors
    /// Every complaint, in words.
    pub fn read(bytes: &[u8]) -> Result<FleetState, String> {
        let mut state: FleetState = wire::read_up_to(bytes, SCHEMA)?;
        let outline: Outline = wire::read_up_to(bytes, SCHEMA)?;
        let mut complaints = Vec::new();
        for (model, names) in &outline.models {
            unknown(model, names, &OF_MODEL, &mut complaints);
        }
        for (index, names) in outline.tokens.iter().flatten().enumerate() {
            unknown(&format!("tokens[{index}]"), names, &OF_TOKEN, &mut complaints);
        }
        for (index, token) in state.tokens.iter().flatten().enumerate() {
            let wrong = check(token).into_iter().map(|wrong| format!("tokens[{index}]: {wrong}"));
            complaints.extend(wrong);
        }
        for (model, shared) in &mut state.models {
            let Some(text) = &shared.document else { continue };
            match Document::from_json(text) {
                Ok(document) => shared.document = Some(document.to_json()),
                Err(wrong) => complaints.extend(wrong.into_iter().map(|wrong| format!("{model}: {wrong}"))),
            }
        }
        if complaints.is_empty() {
            return Ok(state);
        }
        let more = complaints.len().saturating_sub(MOST_COMPLAINTS);
        complaints.truncate(MOST_COMPLAINTS);
        complaints.extend((more > 0).then(|| format!("and {more} more")));
        Err(complaints.join("; "))
    }
}

fn unknown(of: &str, names: &Names, known: &[&str], complaints: &mut Vec<String>) {
    let unknown = names.keys().filter(|name| !known.contains(&name.as_str()));
    complaints.extend(unknown.map(|name| format!("{of}: {:?} is not known; known: {}", cut(name), known.join(", "))));
}

/// What is wrong with a token. The ledger takes any text.
fn check(token: &StoredToken) -> Vec<String> {
    let mut wrong = Vec::new();
    if !is_token_name(&token.name) {
        let expected = "1 to 64 letters, digits, `.`, `_`, `-`, `@` and `+`, but not local or system";
        wrong.push(format!("name: expected {expected}, got {:?}", cut(&token.name)));
    }
    wrong.extend(token.role.parse::<Role>().err().map(|e| format!("role: {e}")));
    wrong.extend(Models::of(token.models.split(',')).err().map(|e| format!("models: {e}")));
    wrong
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn all_of_a_state_is_checked() {
        let token = |name: &str, role: &str, models: &str| json!({"name": name, "hash": "ab".repeat(32), "role": role, "models": models, "created_at": "2026-11-01T00:00:00Z", "created_by": "ann"});
        let state = |models: Value, tokens: Value| json!({"schema": 1, "fleet": "f", "node": "a", "at": "", "models": models, "tokens": tokens});
        let read = |state: &Value| FleetState::read(state.to_string().as_bytes());
        let right = state(json!({"m": {"unloaded": true}}), json!([token("ci", "operator", "fraud-*,m")]));
        let found = read(&right).unwrap();
        assert_eq!((found.models.len(), found.tokens.as_ref().unwrap().len()), (1, 1));
        let again = serde_json::to_vec(&found).unwrap();
        assert_eq!(FleetState::read(&again).unwrap(), found, "what is written can be read");
        let mut extra_token = token("ci", "admin", "*");
        extra_token["secret"] = 1.into();
        let mut extra = right.clone();
        extra["tokenz"] = json!([]);
        for (wrong, words) in [
            (state(json!({}), json!([token("ci", "god", "*")])), "tokens[0]: role: \"god\" is not a role"),
            (state(json!({}), json!([token("ci", "admin", "")])), "tokens[0]: models: "),
            (state(json!({}), json!([token("a\u{1b}[31m", "admin", "*")])), "tokens[0]: name: expected 1 to 64"),
            (state(json!({}), json!([token("local", "admin", "*")])), "but not local or system, got \"local\""),
            (state(json!({}), json!([extra_token])), "tokens[0]: \"secret\" is not known"),
            (state(json!({"m": {"documents": null}}), json!(null)), "m: \"documents\" is not known; known: document, "),
            (extra, "unknown field `tokenz`"),
            (state(json!({"": {}}), json!(null)), "it cannot be read"),
            (json!(1), "expected an object"),
            (json!([]), "expected an object"),
            (json!({"schema": 9}), "it has the form 9"),
        ] {
            let found = read(&wrong).unwrap_err();
            assert!(found.contains(words) && !found.contains("struct"), "{words}: {found}");
        }
        let many: Vec<Value> = (0..100).map(|_| token("ci", "god", "*")).collect();
        assert!(read(&state(json!({}), json!(many))).unwrap_err().ends_with("; and 80 more"));
    }
}
