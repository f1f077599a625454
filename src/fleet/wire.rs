//! What the buckets hold, as JSON. A newer form has a higher `schema`: an older gateway says so and keeps what it has.

use crate::model::ModelName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The form of all values.
pub(super) const SCHEMA: u32 = 1;

/// A model's traffic document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SharedDocument {
    pub schema: u32,
    pub document: Value,
    /// Who changed it, on which gateway, how and why.
    pub actor: String,
    pub node: String,
    pub action: String,
    #[serde(default)]
    pub reason: Option<String>,
    pub ts: String,
}

/// What a gateway says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Node {
    pub schema: u32,
    /// Of the data directory: another one under the same name is another gateway.
    pub id: String,
    /// Of the program.
    pub program: String,
    /// Every version that was found at its start is ready or failed.
    pub ready: bool,
    pub since: String,
    pub models: BTreeMap<String, NodeModel>,
}

/// What a gateway has of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeModel {
    /// The fleet's revision that is in force. 0: none.
    pub revision: u64,
    /// The versions that get un-pinned traffic.
    pub serving: Vec<String>,
    /// The versions that can get traffic, with those that serve.
    pub ready: Vec<String>,
    /// Versions that failed, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
    /// Why a newer revision is not in force yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

/// Only the form of a value.
#[derive(Deserialize)]
struct Form {
    schema: u32,
}

/// Reads a value of a bucket.
///
/// # Errors
/// In words.
pub(super) fn read<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    let form: Form = serde_json::from_slice(bytes).map_err(|error| format!("it cannot be read: {error}"))?;
    if form.schema > SCHEMA {
        return Err(format!(
            "it has the form {}, and this version of Sluicegate reads up to {SCHEMA}: upgrade this gateway",
            form.schema
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| format!("it cannot be read: {error}"))
}

/// The key of a model. Points separate the parts of a key, and may not stand at its ends.
pub(super) fn key(model: &ModelName) -> String {
    model.as_str().replace('.', "=2E")
}

/// The model of a key. `None` for a key that no gateway wrote.
pub(super) fn model(key: &str) -> Option<ModelName> {
    key.replace("=2E", ".").parse().ok()
}
