//! The state of models that several gateways share: a change is agreed on before it is stored here, and a change that was made elsewhere is
//! followed.

use super::approval::artifact_of;
use super::handle::{Actor, Reply};
use super::journal;
use super::manager::Manager;
use super::model_record::Model;
use super::services::Services;
use super::traffic::{self, InForce};
use crate::ledger::{Action, Change, ModelState, Replaced, SharedModel, TokenChange, TokenEffect};
use crate::model::{Failure, ModelName, Version};
use crate::route::Document;
use std::collections::BTreeSet;
use std::time::Instant;
use tracing::info;

/// Agrees with other gateways on changes. Called by the manager's thread, and must answer within seconds.
pub(crate) trait Peers: Send {
    /// Makes the state after a change the shared one, unless another gateway was faster. A change that concerns this gateway only is none of
    /// theirs.
    ///
    /// # Errors
    /// In words for the operator; nothing is changed here then. `CONFLICT` when another change came between or another gateway cannot
    /// serve the document, `FORBIDDEN` when the actor may not approve, `NOT_READY` when the others cannot be reached.
    fn agree(&mut self, proposal: &Proposed<'_>) -> Result<(), Failure>;

    /// An agreed change could not be stored here. It has to be followed later.
    fn not_stored(&mut self, model: &ModelName);

    /// Whether this gateway knows the shared state of a model, so that it may change it by itself.
    fn is_current(&self, model: &ModelName) -> bool;

    /// Whether this gateway has what the others say of its models, or goes on with what it had while they cannot be reached. It is not ready before.
    /// The manager asks whenever it does anything.
    fn has_begun(&self) -> bool;

    /// Whether this gateway is one of those that should have a model.
    fn is_placed_here(&self, model: &ModelName) -> bool;

    /// Makes or revokes a token on all gateways. What cannot be stored here after it is followed later.
    ///
    /// # Errors
    /// As [`Peers::agree`].
    fn agree_token(&mut self, change: &TokenChange) -> Result<(), Failure>;
}

/// A change that is to be made by all gateways.
#[derive(Debug)]
pub(crate) struct Proposed<'a> {
    /// The state on this gateway before the change.
    pub local: &'a SharedModel,
    pub change: &'a Change,
    /// The share of the gateways that must be able to serve it, over 0 and up to 1. `None`: all.
    pub quorum: Option<f64>,
}

/// The state of a model that another gateway has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    pub state: SharedModel,
    /// Who made the last change, with which action.
    pub actor: String,
    pub action: String,
    pub reason: String,
}

/// What became of a state that is to be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowOutcome {
    /// It is in force here.
    InForce,
    /// Its document cannot be put in force yet. Why, in words. The rest is in force, unless the model is not here.
    Waits(String),
}

impl Manager {
    pub(super) fn follow(&mut self, name: ModelName, followed: Followed, reply: Reply<FollowOutcome>) {
        let Manager { models, services, .. } = self;
        let is_here = models.get(&name).is_some_and(Model::is_visible);
        // A model that may serve needs its versions. What is only a mark is kept, so that the model is as the fleet says when its files come.
        if !is_here && followed.state.document.is_some() && !followed.state.is_out() {
            let why = format!("no model is named {:?} here", name.as_str());
            return services.answer(reply, Ok(FollowOutcome::Waits(why)));
        }
        let model = models.entry(name.clone()).or_insert_with(|| Model::new(name.clone()));
        let result = services.follow(model, followed);
        services.answer(reply, result);
        services.schedule.look_now(name);
    }

    /// What this gateway has of all models that it knows anything about.
    pub(super) fn shared_states(&self) -> Vec<(ModelName, SharedModel)> {
        let states = self.models.iter().map(|(name, model)| (name.clone(), SharedModel::of(&model.stored)));
        states.filter(|(_, state)| !state.is_empty()).collect()
    }
}

impl Services {
    /// Agrees on a change with the other gateways, where there are any.
    ///
    /// # Errors
    /// As [`Peers::agree`].
    pub(super) fn agree(&mut self, stored: &ModelState, change: &Change, quorum: Option<f64>) -> Result<(), Failure> {
        let Some(peers) = self.peers.as_mut() else { return Ok(()) };
        peers.agree(&Proposed { local: &SharedModel::of(stored), change, quorum })
    }

    /// Makes or revokes a token; in a fleet, on all gateways. False when the name is taken, or there is no such token.
    ///
    /// # Errors
    /// As [`Peers::agree_token`], and when the ledger cannot store it.
    pub(super) fn change_token(&mut self, mut change: TokenChange) -> Result<bool, Failure> {
        if let Some(peers) = self.peers.as_mut() {
            let stored = self.journal.token_is_shared(change.effect.name()).map_err(|e| journal::failure(&e))?;
            let is_shared = match (&mut change.effect, stored) {
                (TokenEffect::Create(_) | TokenEffect::Follow(_), Some(_)) | (TokenEffect::Revoke { .. }, None) => {
                    return Ok(false);
                }
                (TokenEffect::Create(token) | TokenEffect::Follow(token), None) => {
                    token.shared = true;
                    true
                }
                // One that was made before the gateway joined, or while it was stopped, is its own.
                (TokenEffect::Revoke { .. }, Some(is_shared)) => is_shared,
            };
            if is_shared {
                peers.agree_token(&change)?;
            }
        }
        self.journal.commit_token(&change).map_err(|e| journal::failure(&e))
    }

    /// Stores what another gateway did with a token of the fleet.
    ///
    /// # Errors
    /// When the ledger cannot store it.
    pub(super) fn follow_token(&mut self, change: &TokenChange) -> Result<bool, Failure> {
        let stored = self.journal.token_is_shared(change.effect.name()).map_err(|e| journal::failure(&e))?;
        // A token of this gateway alone is none of the fleet's, until the fleet has one of its name.
        if matches!(change.effect, TokenEffect::Revoke { .. }) && stored != Some(true) {
            return Ok(false);
        }
        self.journal.commit_token(change).map_err(|e| journal::failure(&e))
    }

    /// Whether a model's document may be changed without an operator now.
    pub(super) fn may_change_alone(&self, model: &ModelName) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.is_current(model))
    }

    /// Notes whether only other gateways should have a model. As long as its files are here it is served here too.
    pub(super) fn look_at_placement(&self, model: &mut Model) {
        let is_gone = || model.versions.values().all(|record| record.found.is_none());
        model.elsewhere = self.peers.as_ref().is_some_and(|peers| !peers.is_placed_here(&model.name)) && is_gone();
    }

    /// Puts the state in force that another gateway has: all of it, or all but its document.
    ///
    /// # Errors
    /// When it cannot be read, or the ledger cannot store it.
    fn follow(&mut self, model: &mut Model, followed: Followed) -> Result<FollowOutcome, Failure> {
        let Followed { state, actor, action, reason } = followed;
        let local = SharedModel::of(&model.stored);
        let next = state.document.as_deref().map(traffic::stored_text).transpose().map_err(|mut failure| {
            failure.message = format!("the fleet's traffic document cannot be read: {}", failure.message);
            failure
        })?;
        let mut state = state.with_missing(&local);
        // They decide what is promoted automatically here, which happens at most once for each version.
        state.highest_served = state.highest_served.max(local.highest_served);
        state.auto_promoted.extend(&local.auto_promoted);
        if let Some((_, text)) = &next {
            state.document = Some(text.clone());
        }
        let next = next.map(|(document, _)| document).filter(|next| model.document.as_ref() != Some(next));
        let comes_back = local.is_out() && !state.is_out();
        model.awaited.clear();
        let mut waits = None;
        if let Some(wanted) = next.as_ref().or(model.document.as_ref()).filter(|_| next.is_some() || comes_back)
            && !state.is_out()
        {
            waits = self.cannot_follow(model, wanted, &state);
            if waits.is_some() {
                let has_files = |v: &Version| model.versions.get(v).is_some_and(|record| record.found.is_some());
                model.awaited = wanted.named().into_iter().filter(has_files).collect();
                // Until then the model stays as it is: the document from before must not serve again.
                state.document.clone_from(&local.document);
                if local.is_out() {
                    (state.unloaded, state.retired) = (local.unloaded, local.retired.clone());
                }
            }
        }
        let next = next.filter(|_| waits.is_none());
        if !local.is_as(&state) {
            let by = Replaced {
                model: model.name.clone(),
                actor: actor.clone(),
                action: Action::Follow,
                reason: Some(reason),
                made_by: Some(action),
            };
            let committed = self.commit_here(local.replaced_by(state.clone(), by))?;
            model.stored.revision = committed.revision;
            have_shared(model, &local, state);
            if let Some(next) = next {
                let revision = committed.revision;
                self.put_in_force(model, InForce { next, action: Action::Follow, actor: Actor(actor), revision });
            }
        }
        Ok(waits.map_or(FollowOutcome::InForce, FollowOutcome::Waits))
    }

    /// Why a document of another gateway cannot be put in force here yet.
    fn cannot_follow(&self, model: &Model, next: &Document, state: &SharedModel) -> Option<String> {
        // The gateway that changed it compared the signatures, and asked for approvals.
        if let Err(refused) = traffic::check(model, next, true) {
            return Some(refused.operator_text());
        }
        if !self.needs_approval(model) {
            return None;
        }
        next.answering().into_iter().find_map(|version| {
            let approved = state.reviews.get(&version).filter(|review| review.approved)?;
            let found = artifact_of(model.versions.get(&version)?)?;
            (found != approved.artifact).then(|| {
                let approved = &approved.artifact;
                format!("version {version} has other files here than those that were approved: expected {approved}, found {found}")
            })
        })
    }
}

/// Moves what is in memory to a state that was stored.
fn have_shared(model: &mut Model, local: &SharedModel, state: SharedModel) {
    let was_out = local.is_out();
    let now = Instant::now();
    for version in state.operator_unloaded.difference(&local.operator_unloaded) {
        model.requested.remove(version);
    }
    for version in local.operator_unloaded.difference(&state.operator_unloaded) {
        model.requested.insert(*version);
        model.evicted.remove(version);
        model.set_aside.remove(version);
        model.versions.entry(*version).and_modify(|record| record.retry_at = Some(now));
    }
    if state.retired.is_some() && local.retired.is_none() {
        model.requested.clear();
        model.last_named.clear();
    }
    if was_out && !state.is_out() {
        // An operator asked, so failed versions are tried again at once.
        model.versions.values_mut().for_each(|record| record.retry_at = Some(now));
        model.evicted.clear();
        model.set_aside.clear();
    }
    let reviewed: BTreeSet<Version> = state.reviews.keys().copied().collect();
    model.auto_promote_refused.retain(|version| !reviewed.contains(version));
    let SharedModel {
        document,
        unloaded,
        retired,
        highest_served,
        operator_unloaded,
        auto_promoted,
        reviews,
        proposers,
    } = state;
    if local.unloaded != unloaded || local.retired.is_some() != retired.is_some() {
        info!(model = %model.name, unloaded, retired = retired.is_some(), "the model is as the fleet says");
    }
    let stored = &mut model.stored;
    (stored.document, stored.unloaded, stored.retired, stored.highest_served) =
        (document, unloaded, retired, highest_served);
    (stored.operator_unloaded, stored.auto_promoted) = (operator_unloaded, auto_promoted);
    (stored.reviews, stored.proposers) = (reviews, proposers);
}
