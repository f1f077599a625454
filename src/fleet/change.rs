//! What the manager asks before it changes a model or a token: one compare-and-set in the fleet's buckets.

use super::board::{Board, Known};
use super::rollouts::{self, Rollouts};
use super::state::{self, By, SharedState};
use super::tokens::{SharedToken, TokenTable};
use super::wire::{self, Fetching, NodeModel};
use crate::ledger::{Action, Effect, SharedModel, TokenChange, TokenEffect};
use crate::lifecycle::{Peers, Proposed};
use crate::model::{Code, Failure, ModelName, Version};
use crate::route::Document;
use jiff::Timestamp;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A compare-and-set for the session.
#[derive(Debug)]
pub(super) struct Put {
    pub key: String,
    pub value: Vec<u8>,
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
    pub board: Board,
    pub rollouts: Rollouts,
    pub tokens: TokenTable,
    pub puts: mpsc::Sender<Put>,
    pub token_puts: mpsc::Sender<Put>,
    pub node: String,
}

/// How long the manager waits for NATS. Other changes wait meanwhile; requests do not.
const WAIT: Duration = Duration::from_secs(4);

impl Changes {
    /// Whether the other gateways that should have a model can serve a document: all of them, or with this one the share that is asked for.
    fn check_others(&self, model: &ModelName, document: &Document, quorum: Option<f64>) -> Result<(), Failure> {
        // A share such as 0.9 is a little more or less as a number.
        const ROUNDING: f64 = 1e-9;
        if !self.board.wait_for_all(WAIT) {
            let words = "what the other gateways of the fleet have is being read: try again in a moment";
            return Err(Failure::new(Code::NotReady, words));
        }
        let others = self.board.others(model);
        let named = document.named();
        let missing_on = |(node, has): &(String, Option<NodeModel>)| -> Vec<String> {
            named.iter().filter_map(|version| missing_on(node, has.as_ref(), *version)).collect()
        };
        let missing: Vec<Vec<String>> = others.iter().map(missing_on).filter(|missing| !missing.is_empty()).collect();
        // The manager has checked this gateway.
        let (all, able) = (others.len() + 1, others.len() + 1 - missing.len());
        if missing.is_empty() || quorum.is_some_and(|share| able as f64 + ROUNDING >= share * all as f64) {
            return Ok(());
        }
        let mut failure = Failure::several(Code::Conflict, missing.into_iter().flatten().collect());
        let what = match quorum {
            None => "not every gateway of the fleet can serve it".to_owned(),
            Some(share) => format!("{able} of {all} gateways of the fleet can serve it, and the quorum is {share}"),
        };
        failure.message = format!("{what}: {}", failure.message);
        Err(failure)
    }

    /// The state of a model in the bucket, from which a change is computed, and whether it is in force here. `alone`: the change does not need
    /// that.
    fn known(&self, model: &ModelName, alone: bool) -> Result<Option<(u64, SharedState, bool)>, Failure> {
        let Some(known) = self.board.known(model).map_err(|why| cut_off(&why))? else { return Ok(None) };
        let Known { revision, in_force, shared, waits, .. } = known;
        let in_words = |why: &str| {
            let words = format!("revision {revision} of the fleet's document is not in force here yet ({why})");
            Failure::new(Code::Conflict, words)
        };
        let shared = shared.map_err(|why| in_words(&why))?;
        if in_force != revision && !alone {
            return Err(in_words(waits.as_deref().unwrap_or("it is being put in force")));
        }
        Ok(Some((revision, shared, in_force == revision)))
    }

    fn by(&self, actor: &str, action: Action, reason: Option<&str>) -> By {
        let (actor, node) = (actor.to_owned(), self.node.clone());
        By { actor, node, action: action.to_string(), reason: reason.map(str::to_owned) }
    }
}

/// Sends a compare-and-set to a session, and waits for the revision. `what` was changed.
fn put(puts: &mpsc::Sender<Put>, what: &str, key: String, value: Vec<u8>, expected: u64) -> Result<u64, Failure> {
    let (reply, answer) = sync_channel(1);
    let put = Put { key, value, expected, until: Instant::now() + WAIT, reply };
    if puts.try_send(put).is_err() {
        return Err(Failure::new(Code::NotReady, "this gateway is leaving its fleet, or has not joined it yet"));
    }
    match answer.recv_timeout(WAIT) {
        Ok(Outcome::Stored(revision)) => Ok(revision),
        Ok(Outcome::Stale) => {
            let words =
                format!("another gateway of the fleet changed {what} at the same time; read it again and decide again");
            Err(Failure::new(Code::Conflict, words))
        }
        Ok(Outcome::Failed(why)) => {
            let words = format!("the fleet did not confirm the change ({why}): it was made or not; read {what} again");
            Err(Failure::new(Code::NotReady, words))
        }
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let words = format!("the fleet did not confirm the change in time: it was made or not; read {what} again");
            Err(Failure::new(Code::NotReady, words))
        }
    }
}

fn cut_off(why: &str) -> Failure {
    let words = format!("changes are refused, as this gateway is cut off from its fleet: {why}");
    Failure::new(Code::NotReady, words)
}

fn missing_on(node: &str, has: Option<&NodeModel>, version: Version) -> Option<String> {
    let text = version.to_string();
    let Some(model) = has else { return Some(format!("{node} does not have the model")) };
    if model.ready.contains(&text) {
        return None;
    }
    Some(match (model.failed.get(&text), model.fetching.get(&text), model.others.get(&text)) {
        (Some(why), ..) => format!("version {version} failed on {node}: {why}"),
        (None, Some(Fetching { bytes, of }), _) => {
            format!("version {version} is being fetched on {node} ({})", share_of(*bytes, *of))
        }
        (None, None, Some(state)) => format!("version {version} is not ready on {node}: it is {state}"),
        (None, None, None) => format!("{node} does not have version {version}"),
    })
}

/// `40 of 200 MB`.
fn share_of(bytes: u64, of: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match UNITS.iter().find(|(size, _)| of >= 10 * size) {
        Some((size, name)) => format!("{} of {} {name}", bytes / size, of / size),
        None => format!("{bytes} of {of} bytes"),
    }
}

/// An approver may have pushed or proposed the version on no gateway.
fn check_reviewer(before: &SharedModel, model: &ModelName, effect: &Effect, actor: &str) -> Result<(), Failure> {
    match effect {
        Effect::Review { version, approved: true, .. }
            if before.proposers.get(version).is_some_and(|actors| actors.contains(actor)) =>
        {
            let words = format!(
                "{actor} pushed version {version} of model {model} or asked for its traffic; somebody else has to approve it"
            );
            Err(Failure::new(Code::Forbidden, words))
        }
        _ => Ok(()),
    }
}

impl Peers for Changes {
    fn agree(&mut self, proposal: &Proposed<'_>) -> Result<(), Failure> {
        let Proposed { local, change, quorum } = *proposal;
        let (model, action, ts) = (&change.model, change.action, Timestamp::now());
        let steered = match &change.effect {
            Effect::SetRollout { state, .. } => Some(state.as_str()),
            _ => None,
        };
        if steered.is_none() && local.after(change, ts).is_none() {
            return Ok(());
        }
        // A push and a review need no traffic document: they may bring the version that it waits for.
        let alone = matches!(change.effect, Effect::Propose { .. } | Effect::Review { .. });
        let known = self.known(model, alone)?;
        let (expected, before, of_rollout, in_force) = match known {
            None => (0, local.clone(), None, true),
            Some((revision, shared, in_force)) => {
                (revision, shared.model.with_missing(local), shared.rollout, in_force)
            }
        };
        check_reviewer(&before, model, &change.effect, &change.actor)?;
        // The state of a rollout may change alone.
        let next = before.after(change, ts).unwrap_or_else(|| before.clone());
        if steered.is_some() && next.document.is_none() {
            let words = format!("the fleet has no traffic document of model {model}, so it has no rollout");
            return Err(Failure::new(Code::Conflict, words));
        }
        // The way back is never held up by a gateway that lacks a version: it follows when it has it. All gateways unloaded a retired model, and
        // load it then.
        let back =
            matches!(action, Action::Rollback | Action::RolloutAbort | Action::RolloutTakeBack | Action::FirstDocument);
        if let Some(document) = next.document.as_ref().filter(|next| before.document.as_ref() != Some(next))
            && !back
            && before.retired.is_none()
        {
            let parsed = Document::from_json(document).map_err(|complaints| {
                Failure::new(Code::Internal, "the change cannot be written").with_internal(complaints.join("; "))
            })?;
            self.check_others(model, &parsed, quorum)?;
        }
        let moves = matches!(
            change.effect,
            Effect::SetDocument { .. } | Effect::SetRollout { document: Some(_), .. } | Effect::Retire { .. }
        );
        // A review, a push or an unloaded version does not disturb a rollout.
        let of_rollout = if steered.is_some() || moves {
            let (actor, node) = (change.actor.as_str(), self.node.as_str());
            let change = rollouts::Change { state: steered, moves, actor, action, node };
            rollouts::after(&change, of_rollout.as_ref(), expected, self.rollouts.take_base(model))?
        } else {
            of_rollout
        };
        let by = self.by(&change.actor, action, change.reason.as_deref());
        let shared = SharedState::new(next, by).with_rollout(of_rollout);
        let value = shared.write().map_err(|why| {
            Failure::new(Code::Conflict, format!("the fleet cannot keep the state of model {model}: {why}"))
        })?;
        let began = Instant::now();
        let revision = put(&self.puts, &format!("model {model}"), wire::key(model), value, expected)?;
        self.board.took(began.elapsed());
        self.board.changed(model, revision, shared, in_force);
        Ok(())
    }

    fn not_stored(&mut self, model: &ModelName) {
        self.board.not_in_force(model);
    }

    fn has_begun(&self) -> bool {
        self.board.has_begun()
    }

    fn is_placed_here(&self, model: &ModelName) -> bool {
        self.board.is_here(model)
    }

    fn is_current(&self, model: &ModelName) -> bool {
        self.board.known(model).is_ok_and(|known| known.is_none_or(|known| known.in_force == known.revision))
    }

    fn agree_token(&mut self, change: &TokenChange) -> Result<(), Failure> {
        let TokenChange { actor, reason, effect } = change;
        let name = effect.name();
        let known = self.tokens.known(name).map_err(|why| cut_off(&why))?;
        let (token, action) = match effect {
            TokenEffect::Create(token) | TokenEffect::Follow(token) => {
                (Some(token.as_ref().clone()), Action::TokenCreate)
            }
            TokenEffect::Revoke { .. } => (None, Action::TokenRevoke),
        };
        if token.is_some() && known.is_some_and(|known| known.is_valid) {
            let words =
                format!("the fleet has a token named {name:?} already; revoke it first, or choose another name");
            return Err(Failure::new(Code::Conflict, words));
        }
        if known.is_none() {
            self.tokens.check_room().map_err(|words| Failure::new(Code::Conflict, words))?;
        }
        let expected = known.map_or(0, |known| known.revision);
        let shared = SharedToken::new(name, token, self.by(actor, action, reason.as_deref()));
        let value = state::write(&shared).map_err(|why| Failure::new(Code::Conflict, why))?;
        let revision = put(&self.token_puts, &format!("token {name:?}"), SharedToken::key(name), value, expected)?;
        self.tokens.saw(revision, shared);
        Ok(())
    }
}
