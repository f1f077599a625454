//! Rollbacks: back to an earlier document, once the versions that it names are loaded. Without a revision it is the document before the last
//! change. After a rollout that was taken back or aborted, that change is undone already, so a revision must be named: the document before
//! the rollout's predecessor may send everything to a version that is known to be bad.

use super::approval::Approvals;
use super::handle::{Rollback, RolledBack};
use super::journal;
use super::model_record::{Model, PendingRollback, check_model_loaded, conflict, not_ready};
use super::services::Services;
use super::traffic::{TrafficChange, check_revision};
use crate::ledger::{Action, Revision};
use crate::model::{Code, Failure, Version};
use crate::registry::State;
use crate::route::Document;
use std::time::Instant;

impl Services {
    /// Begins a rollback. It ends in [`Services::finish_rollback`].
    pub(super) fn begin_rollback(
        &mut self,
        model: &mut Model,
        request: Rollback,
    ) -> Result<Box<PendingRollback>, Failure> {
        check_revision(model, request.if_match.as_deref())?;
        let (restored, document) = self.document_to_restore(model, request.to_revision)?;
        // An operator asked, so failed versions are tried again at once.
        for version in document.named() {
            model.set_aside.remove(&version);
            model.versions.entry(version).and_modify(|record| record.retry_at = Some(Instant::now()));
        }
        let to_load = missing(model, &document);
        let expected_revision = model.stored.revision;
        let Rollback { reason, break_glass, actor, .. } = request;
        Ok(Box::new(PendingRollback { document, restored, expected_revision, to_load, reason, break_glass, actor }))
    }

    /// What a rollback would do. Changes nothing.
    pub(super) fn try_rollback(&self, model: &Model, request: &Rollback) -> Result<RolledBack, Failure> {
        check_revision(model, request.if_match.as_deref())?;
        let (restored, after) = self.document_to_restore(model, request.to_revision)?;
        let unapproved = self.unapproved(model, &after, &request.actor);
        if !unapproved.is_empty() && !request.break_glass {
            let why = |(version, why)| format!("version {version} needs an approval: {why}");
            return Err(Failure::several(Code::Conflict, unapproved.into_iter().map(why).collect()));
        }
        let gone: Vec<Version> = after.named().into_iter().filter(|v| !model.versions.contains_key(v)).collect();
        if !gone.is_empty() {
            return Err(Failure::several(Code::Conflict, gone.into_iter().map(|v| not_ready(model, v)).collect()));
        }
        let (from, to) = (model.document.as_ref().and_then(Document::heaviest), heaviest(&after)?);
        let (before, loaded) = (model.document.clone(), missing(model, &after));
        let (model, revision) = (model.name.clone(), model.stored.revision);
        Ok(RolledBack { model, from, to, revision, restored, before, after, loaded })
    }

    /// The document that a rollback puts in force, with its revision.
    fn document_to_restore(&self, model: &Model, to_revision: Option<u64>) -> Result<(u64, Document), Failure> {
        check_model_loaded(model)?;
        let (name, now) = (&model.name, model.stored.revision);
        let failed = |e| journal::failure(&e);
        let found = match to_revision {
            None => {
                let previous = self.journal.previous_document(name).map_err(failed)?;
                let last_change = self.journal.last_change(name).map_err(failed)?.unwrap_or_default();
                let undone = [(Action::RolloutTakeBack, "taken back"), (Action::RolloutAbort, "aborted")];
                if let Some((_, how)) = undone.into_iter().find(|(action, _)| action.as_str() == last_change) {
                    let further = match self.last_without(model, previous)? {
                        None => format!("to go back further, name a revision; `sluicegate history {name}` lists them"),
                        Some(revision) => {
                            format!("to go back further, name the revision, such as --to-revision {revision}")
                        }
                    };
                    return Err(conflict(format!(
                        "already undone: the rollout of model {name} was {how}, and revision {now} is the traffic document from before \
                         it; {further}"
                    )));
                }
                previous
                    .ok_or_else(|| conflict(format!("model {name} has no traffic document before the current one")))?
            }
            Some(revision) => self.journal.document_at(name, revision).map_err(failed)?.ok_or_else(|| {
                let message =
                    format!("model {name} has no traffic document with revision {revision}; it has 1 to {now}");
                Failure::new(Code::NotFound, message)
            })?,
        };
        let document = Document::from_json(&found.document).map_err(|complaints| {
            let message =
                format!("the traffic document of revision {} cannot be read; put a new document", found.revision);
            Failure::new(Code::Internal, message).with_internal(complaints.join("; "))
        })?;
        if to_revision.is_some() && model.document.as_ref().is_some_and(|now| now.differences(&document).is_empty()) {
            let message = format!(
                "the traffic document of revision {} is in force already, as revision {now}; nothing was changed",
                found.revision
            );
            return Err(conflict(message));
        }
        Ok((found.revision, document))
    }

    /// After a rollout that was moved back: the newest revision, from this one on, that does not send most requests to a version which only the
    /// rollout named. Such a version was the candidate, and is known to be bad.
    fn last_without(&self, model: &Model, from: Option<Revision>) -> Result<Option<u64>, Failure> {
        /// Where that many documents send most requests to it, nobody wants to go back to one of them.
        const MOST: u64 = 100;
        let at = |revision| self.journal.document_at(&model.name, revision).map_err(|e| journal::failure(&e));
        let read = |revision: &Revision| Document::from_json(&revision.document).ok();
        let in_force = model.document.as_ref().map(Document::named).unwrap_or_default();
        let of_rollout = at(model.stored.revision.saturating_sub(1))?.as_ref().and_then(read);
        let of_rollout = of_rollout.map(|document| document.named()).unwrap_or_default();
        let is_good = |document: &Document| {
            document.heaviest().is_some_and(|version| !of_rollout.contains(&version) || in_force.contains(&version))
        };
        let Some(from) = from.map(|revision| revision.revision) else { return Ok(None) };
        for revision in (from.saturating_sub(MOST).max(1)..=from).rev() {
            if at(revision)?.as_ref().and_then(read).is_some_and(|document| is_good(&document)) {
                return Ok(Some(revision));
            }
        }
        Ok(None)
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
        let PendingRollback { document, restored, to_load, reason, break_glass, actor, .. } = rollback;
        let (from, before) = (model.document.as_ref().and_then(Document::heaviest), model.document.clone());
        let to = heaviest(document)?;
        let unapproved = self.unapproved(model, document, actor);
        let approvals = if *break_glass { Approvals::BreakGlass } else { Approvals::Required };
        let break_glass = self.check_approved(model, unapproved, actor, approvals)?;
        for version in document.named() {
            self.clear_operator_unloaded(model, version, actor, Some("a rollback needs it"))?;
        }
        let reason = Some(reason.clone()).filter(|r| !r.is_empty());
        let change =
            TrafficChange::new(document.clone(), Action::Rollback, actor.clone()).with_break_glass(break_glass);
        let revision = self.change_traffic(model, change.with_reason(reason))?;
        let (model, after, loaded) = (model.name.clone(), document.clone(), to_load.clone());
        Ok(RolledBack { model, from, to, revision, restored: *restored, before, after, loaded })
    }
}

fn heaviest(document: &Document) -> Result<Version, Failure> {
    document.heaviest().ok_or_else(|| conflict("the earlier document sends traffic to no version"))
}

/// The versions that a document names and that cannot answer now.
fn missing(model: &Model, document: &Document) -> Vec<Version> {
    document.named().into_iter().filter(|version| !model.is_callable(*version)).collect()
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
