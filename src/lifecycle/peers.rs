//! Traffic documents that several gateways share: a change is agreed on before it is stored here, and a change that was made elsewhere is
//! followed.

use super::handle::Actor;
use super::model_record::Model;
use super::services::Services;
use super::traffic::{self, TrafficChange};
use crate::ledger::{Action, Change, Effect};
use crate::model::{Code, Failure, ModelName};
use crate::route::Document;

/// Agrees with other gateways on the traffic documents of models. Called by the manager's thread, and must answer within seconds.
pub(crate) trait Peers: Send {
    /// Makes a document the shared one, unless another gateway was faster.
    ///
    /// # Errors
    /// In words for the operator; nothing is changed here then. `CONFLICT` when another change came between or another gateway cannot
    /// serve the document, `NOT_READY` when the others cannot be reached.
    fn agree(&mut self, proposal: &Proposed<'_>) -> Result<(), Failure>;

    /// An agreed document could not be stored here. It has to be followed later.
    fn not_stored(&mut self, model: &ModelName);

    /// Whether this gateway knows the shared document of a model, so that it may change it by itself.
    fn is_current(&self, model: &ModelName) -> bool;
}

/// A document that is to become the shared one.
#[derive(Debug)]
pub(crate) struct Proposed<'a> {
    pub model: &'a ModelName,
    /// JSON.
    pub document: &'a str,
    pub actor: &'a str,
    pub action: Action,
    pub reason: Option<&'a str>,
}

/// A document that another gateway put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// JSON.
    pub document: String,
    pub actor: String,
    pub reason: String,
}

/// What became of a document that is to be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowOutcome {
    /// It is in force here.
    InForce,
    /// It cannot be put in force yet. Why, in words.
    Waits(String),
}

/// The shared document in a change, where it has one.
pub(super) fn document_of(change: &Change) -> Option<&str> {
    match &change.effect {
        Effect::SetDocument { document, .. } => Some(document),
        Effect::SetRollout { document: Some(new), .. } | Effect::Retire { document: Some(new) } => Some(&new.document),
        _ => None,
    }
}

impl Services {
    /// Agrees on a change with the other gateways, where there are any.
    ///
    /// # Errors
    /// As [`Peers::agree`].
    pub(super) fn agree(&mut self, change: &Change) -> Result<(), Failure> {
        let Some(peers) = self.peers.as_mut() else { return Ok(()) };
        if matches!(change.effect, Effect::Retire { .. }) {
            let words = "a member of a fleet cannot retire a model: take its traffic away on all members, or remove its directories";
            return Err(Failure::new(Code::Conflict, words));
        }
        let Some(document) = document_of(change) else { return Ok(()) };
        let Change { model, actor, action, reason, .. } = change;
        peers.agree(&Proposed { model, document, actor, action: *action, reason: reason.as_deref() })
    }

    /// Whether a model's document may be changed without an operator now.
    pub(super) fn may_change_alone(&self, model: &ModelName) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.is_current(model))
    }

    /// Puts a document in force that another gateway agreed on.
    ///
    /// # Errors
    /// When it cannot be read, or the ledger cannot store it.
    pub(super) fn follow(&mut self, model: &mut Model, followed: Followed) -> Result<FollowOutcome, Failure> {
        let next = Document::from_json(&followed.document).map_err(|complaints| {
            let mut failure = Failure::several(Code::InvalidRequest, complaints);
            failure.message = format!("the fleet's traffic document cannot be read: {}", failure.message);
            failure
        })?;
        if model.document.as_ref() == Some(&next) && model.stored.retired.is_none() {
            return Ok(FollowOutcome::InForce);
        }
        if model.is_out() {
            return Ok(FollowOutcome::Waits("the model is unloaded here".to_owned()));
        }
        // The gateway that changed it compared the signatures.
        if let Err(refused) = traffic::check(model, &next, true) {
            return Ok(FollowOutcome::Waits(refused.operator_text()));
        }
        let Followed { actor, reason, .. } = followed;
        let change =
            TrafficChange::new(next, Action::Follow, Actor(actor)).with_reason(Some(reason)).without_agreement();
        self.change_traffic(model, change)?;
        Ok(FollowOutcome::InForce)
    }
}
