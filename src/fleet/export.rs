//! A fleet's state as one JSON document, which a single gateway can take over.

use super::board::now;
use super::wire;
use crate::ledger::{SharedModel, StoredToken};
use crate::model::ModelName;
use crate::route::Document;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The form of the document.
const SCHEMA: u32 = 1;

/// All that a fleet shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        let mut complaints = Vec::new();
        for (model, shared) in &mut state.models {
            let Some(text) = &shared.document else { continue };
            match Document::from_json(text) {
                Ok(document) => shared.document = Some(document.to_json()),
                Err(wrong) => complaints.extend(wrong.into_iter().map(|wrong| format!("{model}: {wrong}"))),
            }
        }
        if complaints.is_empty() { Ok(state) } else { Err(complaints.join("; ")) }
    }
}
