//! Rollbacks: back to the document before the last change, once the versions that it names are loaded.

use super::approval::Approvals;
use super::handle::{Actor, RolledBack};
use super::journal;
use super::model_record::{Model, PendingRollback, check_model_loaded, conflict, not_ready};
use super::services::Services;
use super::traffic::TrafficChange;
use crate::ledger::Action;
use crate::model::{Code, Failure};
use crate::registry::State;
use crate::route::Document;
use std::time::Instant;

impl Services {
    /// Begins a rollback. It ends in [`Services::finish_rollback`].
    pub(super) fn begin_rollback(
        &mut self,
        model: &mut Model,
        reason: String,
        actor: Actor,
    ) -> Result<Box<PendingRollback>, Failure> {
        let document = self.previous_document(model)?;
        // An operator asked, so failed versions are tried again at once.
        for version in document.named() {
            model.set_aside.remove(&version);
            model.versions.entry(version).and_modify(|record| record.retry_at = Some(Instant::now()));
        }
        let to_load = document.named().into_iter().filter(|v| !model.is_callable(*v)).collect();
        let expected_revision = model.stored.revision;
        Ok(Box::new(PendingRollback { document, expected_revision, to_load, reason, actor }))
    }

    fn previous_document(&self, model: &Model) -> Result<Document, Failure> {
        check_model_loaded(model)?;
        let none = || conflict(format!("model {} has no traffic document before the current one", model.name));
        let previous = self.journal.previous_document(&model.name).map_err(|e| journal::failure(&e))?;
        Document::from_json(&previous.ok_or_else(none)?.document).map_err(|complaints| {
            Failure::new(Code::Internal, "the previous traffic document cannot be read; put a new document")
                .with_internal(complaints.join("; "))
        })
    }

    /// Makes the change of a rollback.
    ///
    /// # Errors
    /// When a version cannot be loaded, the traffic was changed meanwhile, or the ledger fails. Nothing was changed then.
    pub(super) fn finish_rollback(
        &mut self,
        model: &mut Model,
        rollback: &PendingRollback,
    ) -> Result<RolledBack, Failure> {
        rollback.result(model).unwrap_or(Ok(()))?;
        let PendingRollback { document, to_load, reason, actor, .. } = rollback;
        let from = model.document.as_ref().and_then(Document::heaviest);
        let to = document.heaviest().ok_or_else(|| conflict("the previous document sends traffic to no version"))?;
        let unapproved = self.unapproved(model, document, actor);
        self.check_approved(model, unapproved, actor, Approvals::Required)?;
        for version in document.named() {
            self.clear_operator_unloaded(model, version, actor, Some("a rollback needs it"))?;
        }
        let reason = Some(reason.clone()).filter(|r| !r.is_empty());
        let change = TrafficChange::new(document.clone(), Action::Rollback, actor.clone());
        let revision = self.change_traffic(model, change.with_reason(reason))?;
        Ok(RolledBack { model: model.name.clone(), from, to, revision, loaded: to_load.clone() })
    }
}

impl PendingRollback {
    /// Whether it need not wait any longer.
    pub(super) fn is_over(&self, model: &Model) -> bool {
        self.result(model).is_some()
    }

    /// Whether the change can be made. `None` while versions are being loaded.
    fn result(&self, model: &Model) -> Option<Result<(), Failure>> {
        if model.stored.revision != self.expected_revision || model.is_out() {
            let words = "somebody else changed the traffic while the rollback loaded its versions";
            return Some(Err(conflict(words)));
        }
        for version in self.document.named() {
            let record = model.versions.get(&version)?;
            match record.state() {
                State::Ready | State::Serving => {}
                State::Failed | State::Unloaded => return Some(Err(conflict(not_ready(model, version)))),
                State::Pending if !record.has_files() => return Some(Err(conflict(not_ready(model, version)))),
                _ => return None,
            }
        }
        Some(Ok(()))
    }
}
