//! A push whose version is kept somewhere else: it is checked here like any push, and not added to the models directory.

use super::handle::{Actor, Reply};
use super::manager::Manager;
use super::model_record::Model;
use super::push::Staged;
use super::services::Services;
use crate::ledger::{Action, Change, Effect};
use crate::model::{Failure, Version, VersionId};
use std::path::Path;

/// The files of a pushed version that were checked. They are removed when this is dropped.
#[derive(Debug)]
pub struct CheckedPush {
    /// The number that was asked for, or the next free one in this gateway.
    pub version: Version,
    staged: Staged,
}

/// Who waits for a push.
#[derive(Debug)]
pub(super) enum PushReply {
    /// The version is to be added.
    Added(Reply<Version>),
    /// The files are only to be checked.
    Checked(Reply<CheckedPush>),
}

impl CheckedPush {
    /// The directory with the files, complete and synced.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.staged.dir()
    }
}

impl Services {
    /// Answers a push that was refused.
    pub(super) fn refuse_push(&mut self, reply: PushReply, failure: Failure) {
        match reply {
            PushReply::Added(reply) => self.answer(reply, Err(failure)),
            PushReply::Checked(reply) => self.answer(reply, Err(failure)),
        }
    }

    /// Answers a push that was to be checked.
    pub(super) fn checked_push(
        &mut self,
        version: Version,
        reply: Reply<CheckedPush>,
        staged: Result<Staged, Failure>,
    ) {
        self.answer(reply, staged.map(|staged| CheckedPush { version, staged }));
    }
}

impl Manager {
    /// Stores the event of a push whose version is kept somewhere else.
    ///
    /// # Errors
    /// When the ledger cannot store it.
    pub(super) fn pushed(&mut self, id: &VersionId, actor: &Actor) -> Result<(), Failure> {
        let Manager { models, services, .. } = self;
        let model = models.entry(id.model.clone()).or_insert_with(|| Model::new(id.model.clone()));
        services.commit(&model.stored, event(id, actor))?;
        model.stored.proposers.entry(id.version).or_default().insert(actor.0.clone());
        Ok(())
    }
}

/// The event of a push.
pub(super) fn event(id: &VersionId, actor: &Actor) -> Change {
    Change {
        model: id.model.clone(),
        actor: actor.0.clone(),
        action: Action::Push,
        reason: None,
        before: None,
        after: Some(format!("{{\"version\":\"{}\"}}", id.version)),
        // Who pushed a version may not approve it.
        effect: Effect::Propose { version: id.version },
    }
}
