//! What the manager asks before it changes a traffic document: one compare-and-set in the fleet's bucket.

use super::board::{Board, now};
use super::wire::{NodeModel, SCHEMA, SharedDocument};
use crate::ledger::Action;
use crate::lifecycle::{Peers, Proposed};
use crate::model::{Code, Failure, ModelName, Version};
use crate::route::Document;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A compare-and-set for the session.
#[derive(Debug)]
pub(super) struct Put {
    pub model: ModelName,
    pub shared: SharedDocument,
    /// The revision that must be the newest. 0: there must be none.
    pub expected: u64,
    /// Nobody waits for it after this time.
    pub until: Instant,
    pub reply: SyncSender<Outcome>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Stored(u64),
    /// Another gateway was faster.
    Stale,
    /// Why it may not be stored, in words.
    Failed(String),
}

/// The manager's side.
#[derive(Debug)]
pub(super) struct Changes {
    board: Board,
    puts: mpsc::Sender<Put>,
    node: String,
}

/// How long the manager waits for NATS. Other changes wait meanwhile; requests do not.
const WAIT: Duration = Duration::from_secs(4);

impl Changes {
    pub fn new(board: Board, puts: mpsc::Sender<Put>, node: String) -> Changes {
        Changes { board, puts, node }
    }

    /// Whether every other gateway can serve a document.
    fn check_others(&self, model: &ModelName, document: &Document) -> Result<(), Failure> {
        let others = self.board.others(model);
        let named = document.named();
        let missing: Vec<String> = others
            .iter()
            .flat_map(|(node, has)| named.iter().filter_map(move |version| missing_on(node, has.as_ref(), *version)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut failure = Failure::several(Code::Conflict, missing);
        failure.message = format!("not every gateway of the fleet can serve it: {}", failure.message);
        Err(failure)
    }
}

fn missing_on(node: &str, has: Option<&NodeModel>, version: Version) -> Option<String> {
    let text = version.to_string();
    match has {
        Some(model) if model.ready.contains(&text) => None,
        Some(model) => Some(match model.failed.get(&text) {
            Some(why) => format!("version {version} failed on {node}: {why}"),
            None => format!("version {version} is not ready on {node}"),
        }),
        None => Some(format!("{node} does not have the model")),
    }
}

impl Peers for Changes {
    fn agree(&mut self, proposal: &Proposed<'_>) -> Result<(), Failure> {
        let Proposed { model, document, actor, action, reason } = *proposal;
        let known = self.board.known(model).map_err(|why| {
            let words = format!("changes of traffic are refused, as this gateway is cut off from its fleet: {why}");
            Failure::new(Code::NotReady, words)
        })?;
        if let Some(known) = known.as_ref().filter(|known| known.in_force != known.revision) {
            let why = known.waits.as_deref().unwrap_or("it is being put in force");
            let words = format!("revision {} of the fleet's document is not in force here yet ({why})", known.revision);
            return Err(Failure::new(Code::Conflict, words));
        }
        let invalid = |what: String| Failure::new(Code::Internal, "the change cannot be written").with_internal(what);
        // The way back is never held up by a gateway that lacks a version: it follows when it has it.
        if !matches!(action, Action::Rollback | Action::RolloutAbort | Action::RolloutTakeBack | Action::FirstDocument)
        {
            let parsed = Document::from_json(document).map_err(|complaints| invalid(complaints.join("; ")))?;
            self.check_others(model, &parsed)?;
        }
        let shared = SharedDocument {
            schema: SCHEMA,
            document: serde_json::from_str(document).map_err(|error| invalid(error.to_string()))?,
            actor: actor.to_owned(),
            node: self.node.clone(),
            action: action.to_string(),
            reason: reason.map(str::to_owned),
            ts: now(),
        };
        let (reply, answer) = sync_channel(1);
        let expected = known.map_or(0, |known| known.revision);
        let put = Put { model: model.clone(), shared: shared.clone(), expected, until: Instant::now() + WAIT, reply };
        if self.puts.try_send(put).is_err() {
            return Err(Failure::new(Code::NotReady, "this gateway is leaving its fleet, or has not joined it yet"));
        }
        match answer.recv_timeout(WAIT) {
            Ok(Outcome::Stored(revision)) => {
                self.board.changed(model, revision, shared);
                Ok(())
            }
            Ok(Outcome::Stale) => {
                let words = format!(
                    "another gateway of the fleet changed the traffic of model {model} at the same time; read it again and decide again"
                );
                Err(Failure::new(Code::Conflict, words))
            }
            Ok(Outcome::Failed(why)) => {
                let words =
                    format!("the fleet did not confirm the change ({why}): it was made or not; read the traffic again");
                Err(Failure::new(Code::NotReady, words))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let words = "the fleet did not confirm the change in time: it was made or not; read the traffic again";
                Err(Failure::new(Code::NotReady, words))
            }
        }
    }

    fn not_stored(&mut self, model: &ModelName) {
        self.board.not_in_force(model);
    }

    fn is_current(&self, model: &ModelName) -> bool {
        self.board.known(model).is_ok_and(|known| known.is_none_or(|known| known.in_force == known.revision))
    }
}
