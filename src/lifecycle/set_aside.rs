//! Versions that were set aside: their runs did not end, or they ended the process.
//!
//! A version that is set aside is `failed` with the stage `stuck` or `crashed`. It is unpublished first; its memory is freed when no
//! run holds it any more, which nothing waits for. It stays set aside until an operator loads it again, its files change, or the
//! process ends.

use super::SYSTEM;
use super::journal;
use super::manager::Manager;
use super::model_record::Model;
use super::services::Services;
use super::version_record::VersionRecord;
use crate::ledger::{Action, Change, Effect};
use crate::model::VersionId;
use crate::prepare::StageFailure;
use crate::registry::{Stage, State};
use crate::source::Fingerprint;
use std::collections::BTreeMap;
use tracing::error;

/// A version that must not serve any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    pub id: VersionId,
    /// [`Stage::Stuck`] or [`Stage::Crashed`].
    pub stage: Stage,
    /// For operators and callers: no file names.
    pub reason: String,
    /// Whether the audit trail has it already.
    pub recorded: bool,
}

/// What the manager keeps about a version that is set aside.
#[derive(Debug)]
pub(super) struct Aside {
    stage: Stage,
    reason: String,
    /// The files that it applies to: those on disk when the version was set aside or, where they were not known yet, found later.
    files: Option<Fingerprint>,
}

impl Manager {
    /// Sets a version aside, publishes that, and then writes the audit event. A ledger that cannot store the event changes nothing: the
    /// version must not run.
    pub(super) fn set_aside(&mut self, SetAside { id, stage, reason, recorded }: SetAside) {
        let model = self.models.entry(id.model.clone()).or_insert_with(|| Model::new(id.model.clone()));
        let record = model.versions.get(&id.version);
        let before = record.map_or("unknown", |record| record.state().as_str());
        let files = record.and_then(|record| record.found.as_ref()).map(|found| found.fingerprint);
        model.requested.remove(&id.version);
        model.set_aside.insert(id.version, Aside { stage, reason: reason.clone(), files });
        self.services.schedule.look_now(id.model.clone());
        self.work();
        if recorded {
            return;
        }
        let change = Change {
            model: id.model.clone(),
            actor: SYSTEM.to_owned(),
            action: Action::SetAside,
            reason: Some(reason),
            before: Some(format!("{{\"version\":\"{}\",\"state\":\"{before}\"}}", id.version)),
            after: Some(format!(
                "{{\"version\":\"{}\",\"state\":\"failed\",\"stage\":\"{}\"}}",
                id.version,
                stage.as_str()
            )),
            effect: Effect::None,
        };
        if let Err(refused) = self.services.journal.commit(change) {
            let words = journal::failure(&refused);
            error!(model = %id.model, version = %id.version, "the version was set aside, but not in the audit trail: {}", words.operator_text());
        }
    }
}

impl Services {
    /// Keeps a version that is set aside from serving. Returns false where it is not set aside, or its files changed since.
    pub(super) fn keep_aside(
        &mut self,
        set_aside: &mut BTreeMap<crate::model::Version, Aside>,
        id: &VersionId,
        record: &mut VersionRecord,
    ) -> bool {
        let Some(aside) = set_aside.get_mut(&id.version) else { return false };
        if let Some(found) = record.found.as_ref().filter(|found| found.still)
            && *aside.files.get_or_insert(found.fingerprint) != found.fingerprint
        {
            set_aside.remove(&id.version);
            return false;
        }
        match record.state() {
            State::Pending | State::Unloaded | State::Ready | State::Serving => {
                if record.state() == State::Unloaded {
                    self.set_state(id, record, State::Pending);
                }
                let loaded = record.loaded.take();
                let failure = StageFailure::permanent(aside.stage, aside.reason.clone());
                self.fail(id, record, failure);
                record.tried = record.found.as_ref().map(|found| found.fingerprint);
                if let Some(loaded) = loaded {
                    // Not part of the version's state: a run that does not end holds it for as long as it likes.
                    self.drains.begin(id.clone(), loaded, self.config.drain_timeout);
                }
                record.digests = None;
                record.compared = None;
            }
            State::Failed => {
                record.stage = Some(aside.stage);
                record.reason = Some(aside.reason.clone());
                record.retry_at = None;
            }
            // A load in progress is dropped when it is done. A drain ends by itself.
            State::Loading | State::Verifying | State::Warming | State::Draining => {}
        }
        true
    }
}
