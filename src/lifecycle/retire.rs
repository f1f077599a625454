//! Retiring a model: it serves no more, also after a restart, until a version is promoted.

use super::handle::{Actor, Promote, Retired};
use super::model_record::{Model, conflict, no_version};
use super::operators::load_result;
use super::services::Services;
use crate::ledger::{Action, Change, Effect, NewDocument, Retirement};
use crate::model::{Failure, Version};
use crate::route::Document;
use std::time::Instant;
use tracing::info;

impl Model {
    /// An operator unloaded the whole model, or retired it, or only other gateways have it: no version is loaded, and no request is answered.
    #[must_use]
    pub(super) fn is_out(&self) -> bool {
        self.stored.unloaded || self.stored.retired.is_some() || self.elsewhere
    }
}

impl Services {
    /// Retires a model. Its document is stored once more, as a revision of its own, so that the history has it.
    ///
    /// # Errors
    /// When the ledger fails. Nothing was changed then.
    pub(super) fn retire(&mut self, model: &mut Model, reason: String, actor: &Actor) -> Result<Retired, Failure> {
        let name = model.name.clone();
        if let Some(retirement) = model.stored.retired.clone() {
            return Ok(Retired { model: name, revision: model.stored.revision, retirement, changed: false });
        }
        let document = model.document.as_ref().map(|document| NewDocument {
            document: document.to_json(),
            highest_served: document.serving().last().copied(),
        });
        let before = model.document.as_ref().map(Document::to_json);
        let committed = self.commit(
            &model.stored,
            Change {
                model: name.clone(),
                actor: actor.0.clone(),
                action: Action::Retire,
                reason: Some(reason.clone()).filter(|r| !r.is_empty()),
                before,
                after: Some("{\"retired\":true}".to_owned()),
                effect: Effect::Retire { document },
            },
        )?;
        let retirement = Retirement { ts: committed.ts, actor: actor.0.clone(), reason };
        info!(model = %name, actor = actor.0, reason = retirement.reason, "model retired: its versions are unloaded");
        model.stored.retired = Some(retirement.clone());
        model.stored.unloaded = false;
        model.stored.revision = committed.revision;
        model.requested.clear();
        model.last_named.clear();
        Ok(Retired { model: name, revision: committed.revision, retirement, changed: true })
    }

    /// Promotes the version that was loaded for it.
    pub(super) fn finish_return(&mut self, model: &mut Model, request: Promote) -> Result<super::Promotion, Failure> {
        load_result(model, request.version).unwrap_or(Ok(()))?;
        let (version, actor) = (request.version, request.actor.clone());
        if !request.dry_run {
            self.clear_operator_unloaded(model, version, &actor, Some("it is promoted"))?;
        }
        self.promote(model, request)
    }
}

/// Begins the promotion of a version of a retired model, which loads it first.
///
/// # Errors
/// When the model has no such version.
pub(super) fn begin_return(model: &mut Model, version: Version) -> Result<(), Failure> {
    let Some(record) = model.versions.get_mut(&version).filter(|r| r.found.is_some() || r.is_callable()) else {
        return Err(no_version(model, version));
    };
    // An operator asked, so a failed version is tried again at once.
    record.retry_at = Some(Instant::now());
    model.set_aside.remove(&version);
    Ok(())
}

/// # Errors
/// When the model is retired.
pub(super) fn check_not_retired(model: &Model) -> Result<(), Failure> {
    match &model.stored.retired {
        None => Ok(()),
        Some(Retirement { ts, reason, .. }) => {
            let name = &model.name;
            let words = format!("model {name} was retired at {ts:.0}: {reason}; promote a version to bring it back");
            Err(conflict(words))
        }
    }
}
