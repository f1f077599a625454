//! The value of a model in the bucket of states, as JSON.

use super::board::now;
use super::wire::{self, SharedRollout};
use crate::ledger::SharedModel;
use serde::{Deserialize, Serialize};

/// The form with everything that is shared. A value with nothing but a traffic document has the form 1, which older gateways read.
pub(super) const SCHEMA: u32 = 2;

/// The largest value in bytes. NATS takes 1 MiB with the headers of a message, by default.
pub(super) const LARGEST: usize = (1 << 20) - 1024;

/// What the gateways share of a model, and its last change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SharedState {
    pub schema: u32,
    #[serde(flatten)]
    pub model: SharedModel,
    /// The model's last rollout. It changes with the document, by one compare-and-set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<SharedRollout>,
    /// Who changed it last, on which gateway, how and why.
    #[serde(flatten)]
    pub by: By,
    pub ts: String,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct By {
    pub actor: String,
    pub node: String,
    pub action: String,
    #[serde(default)]
    pub reason: Option<String>,
}

impl SharedState {
    pub fn new(model: SharedModel, by: By) -> SharedState {
        // What was promoted automatically may be unknown to an older gateway, as it was before.
        let SharedModel { document, highest_served, auto_promoted, .. } = model.clone();
        let older = SharedModel { document, highest_served, auto_promoted, ..SharedModel::default() };
        let schema = if model.document.is_some() && model == older { 1 } else { SCHEMA };
        SharedState { schema, model, rollout: None, by, ts: now() }
    }

    pub fn with_rollout(self, rollout: Option<SharedRollout>) -> SharedState {
        SharedState { rollout, ..self }
    }

    /// # Errors
    /// In words.
    pub fn read(bytes: &[u8]) -> Result<SharedState, String> {
        wire::read_up_to(bytes, SCHEMA)
    }

    /// # Errors
    /// In words, when it is larger than a value may be.
    pub fn write(&self) -> Result<Vec<u8>, String> {
        write(self)
    }
}

/// Writes a value of a bucket.
///
/// # Errors
/// In words, when it is larger than a value may be.
pub(super) fn write(value: &impl Serialize) -> Result<Vec<u8>, String> {
    let bytes = serde_json::to_vec(value).map_err(|error| format!("it cannot be written: {error}"))?;
    if bytes.len() > LARGEST {
        return Err(format!(
            "it has {} bytes, and the fleet takes up to {LARGEST} for a model: documents, reviews, and who pushed each version",
            bytes.len()
        ));
    }
    Ok(bytes)
}
