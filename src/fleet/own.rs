//! What this gateway reports of itself.

use super::board::Board;
use super::wire::{Fetching, Node, NodeModel, SCHEMA};
use super::{SOURCE, placement};
use crate::mirror::{Mirror, Unfinished};
use crate::registry::{Entry, Reader, State};
use std::collections::BTreeMap;

/// The longest reason that is reported, in characters. A value in NATS has at most a megabyte.
const REASON: usize = 200;

/// The report of this gateway now.
pub(super) fn report(reader: &Reader, board: &Board, mirror: &Mirror, id: &str, since: &str) -> Node {
    let snapshot = reader.snapshot();
    let mut models: BTreeMap<String, NodeModel> = snapshot
        .models()
        .filter(|entry| entry.has_loaded() || board.is_here(entry.name()))
        .map(|entry| (entry.name().to_string(), model(entry, board)))
        .collect();
    for Unfinished { id, bytes, arrived, why } in mirror.unfinished(SOURCE) {
        let version = id.version.to_string();
        let has = models.entry(id.model.to_string()).or_default();
        if has.ready.contains(&version) {
            continue;
        }
        has.others.remove(&version);
        if let Some(why) = why {
            has.failed.insert(version, format!("it cannot be fetched: {}", shortened(&why)));
        } else {
            has.fetching.insert(version, Fetching { bytes: arrived, of: bytes });
        }
    }
    Node {
        schema: SCHEMA,
        id: id.to_owned(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        ready: snapshot.ready,
        since: since.to_owned(),
        models,
        labels: board.0.labels.clone(),
        rules: placement::fingerprint(&board.0.rules),
        lag_ms: board.lag_ms(),
        drift_told: None,
    }
}

fn model(entry: &Entry, board: &Board) -> NodeModel {
    let (revision, waits) = board.own(entry.name());
    let mut serving = Vec::new();
    let mut ready = Vec::new();
    let (mut failed, mut others) = (BTreeMap::new(), BTreeMap::new());
    for (version, status) in entry.versions() {
        match status.state {
            State::Ready | State::Serving => ready.push(version.to_string()),
            State::Failed => {
                let reason = status.reason.as_deref().unwrap_or("it failed");
                failed.insert(version.to_string(), shortened(reason));
            }
            state => {
                others.insert(version.to_string(), state.to_string());
            }
        }
        if status.state == State::Serving {
            serving.push(version.to_string());
        }
    }
    NodeModel { revision, serving, ready, failed, others, fetching: BTreeMap::new(), waits }
}

fn shortened(reason: &str) -> String {
    reason.chars().take(REASON).collect()
}
