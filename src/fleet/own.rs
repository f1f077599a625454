//! What this gateway reports of itself.

use super::board::Board;
use super::wire::{Node, NodeModel, SCHEMA};
use crate::registry::{Entry, Reader, State};
use std::collections::BTreeMap;

/// The longest reason that is reported, in characters. A value in NATS has at most a megabyte.
const REASON: usize = 200;

/// The report of this gateway now.
pub(super) fn report(reader: &Reader, board: &Board, id: &str, since: &str) -> Node {
    let snapshot = reader.snapshot();
    let models: BTreeMap<String, NodeModel> =
        snapshot.models().map(|entry| (entry.name().to_string(), model(entry, board))).collect();
    Node {
        schema: SCHEMA,
        id: id.to_owned(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        ready: snapshot.ready,
        since: since.to_owned(),
        models,
    }
}

fn model(entry: &Entry, board: &Board) -> NodeModel {
    let (revision, waits) = board.own(entry.name());
    let mut serving = Vec::new();
    let mut ready = Vec::new();
    let mut failed = BTreeMap::new();
    for (version, status) in entry.versions() {
        match status.state {
            State::Ready | State::Serving => ready.push(version.to_string()),
            State::Failed => {
                let reason = status.reason.as_deref().unwrap_or("it failed");
                failed.insert(version.to_string(), reason.chars().take(REASON).collect());
            }
            _ => {}
        }
        if status.state == State::Serving {
            serving.push(version.to_string());
        }
    }
    NodeModel { revision, serving, ready, failed, waits }
}
