//! Compares what is in the models directory with what is wanted, and moves versions to where they should be.

use super::loaders::Task;
use super::manager::Manager;
use super::model_record::Model;
use super::policy::{UnloadReason, load_rank};
use super::services::Services;
use super::version_record::{Note, VersionRecord};
use crate::model::{ModelName, Version, VersionId};
use crate::model_settings::ModelSettings;
use crate::prepare::StageFailure;
use crate::registry::{Stage, State};
use crate::source::{FoundModel, Ignored, Look};
use std::collections::BTreeSet;
use std::time::Instant;
use tracing::{info, warn};

impl Manager {
    /// The models directory changed.
    pub(super) fn looked(&mut self, look: Look) {
        let Manager { models, services, .. } = self;
        for (name, found) in look.changed {
            let model = models.entry(name.clone()).or_insert_with(|| Model::new(name.clone()));
            if let Some(found) = &found {
                read_settings(model, found);
            }
            let found = found.unwrap_or_default();
            let show = |i: &Ignored| {
                let name = i.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                format!("{name} in the model's directory is ignored: {}", i.why)
            };
            model.ignored = found.ignored.iter().map(show).collect();
            services.update_found(model, found);
            services.schedule.look_now(name);
        }
        let readiness = &mut services.publisher.readiness;
        if look.first && !readiness.scanned {
            readiness.scanned = true;
            for model in models.values() {
                let wanted = model.wanted();
                let awaited =
                    |(v, record): &(&Version, &VersionRecord)| record.has_files() && wanted.get(*v) == Some(&Ok(()));
                readiness.awaited.extend(model.versions.iter().filter(awaited).map(|(v, _)| model.id(*v)));
                services.schedule.look_now(model.name.clone());
            }
        }
    }

    /// Moves one model to where it should be, as far as that needs no waiting.
    pub(super) fn settle(&mut self, name: &ModelName) {
        let Manager { models, services, stopping } = self;
        let Some(model) = models.get_mut(name) else { return };
        if stopping.is_none() {
            loop {
                services.reconcile(model);
                let served = services.serve_automatically(model);
                if !(services.finish_waiting(model) || served) {
                    break;
                }
            }
        }
        services.forget(model);
        services.publisher.changed.insert(name.clone());
    }
}

/// What every version of a model has in common while the model is reconciled.
struct Pass<'a> {
    settings_complaint: Option<&'a String>,
    settings_missing: bool,
    stored_complaint: Option<String>,
    scanned: bool,
    now: Instant,
}

impl Services {
    fn update_found(&mut self, model: &mut Model, mut found: FoundModel) {
        for version in found.versions.keys() {
            if !model.versions.contains_key(version) {
                self.add_version(model, *version);
            }
        }
        for (version, record) in &mut model.versions {
            record.found = found.versions.remove(version);
        }
    }

    pub(super) fn add_version(&mut self, model: &mut Model, version: Version) {
        model.versions.insert(version, VersionRecord::new());
        self.state_counts.add(State::Pending);
        info!(model = %model.name, %version, state = %State::Pending, "version");
    }

    /// Forgets the versions of a model that has neither a directory nor a document.
    fn forget(&self, model: &mut Model) {
        let is_gone = |record: &VersionRecord| record.state() == State::Unloaded && record.found.is_none();
        let has_document = model.document.is_some() || model.document_error.is_some();
        if !has_document && model.waiting.is_empty() && model.versions.values().all(is_gone) {
            model.versions.values().for_each(|record| self.state_counts.remove(record.state()));
            model.versions.clear();
        }
    }

    fn reconcile(&mut self, model: &mut Model) {
        self.look_at_placement(model);
        let wanted = self.wanted_now(model);
        for version in wanted.keys() {
            if !model.versions.contains_key(version) {
                self.add_version(model, *version);
            }
        }
        let required = model.required();
        let serving = if model.is_out() { BTreeSet::new() } else { model.serving() };
        let mut set_aside = std::mem::take(&mut model.set_aside);
        let pass = Pass {
            settings_complaint: model.settings_complaint.as_ref(),
            settings_missing: model.settings_missing,
            stored_complaint: stored_complaint(model),
            scanned: self.publisher.readiness.scanned,
            now: Instant::now(),
        };
        for (version, record) in &mut model.versions {
            let id = VersionId { model: model.name.clone(), version: *version };
            match wanted.get(version).copied().unwrap_or(Err(UnloadReason::DirectoryGone)) {
                Ok(()) if self.keep_aside(&mut set_aside, &id, record) => {}
                Ok(()) => {
                    let from_top = wanted.range(version..).count();
                    let rank = load_rank(required.contains(version), model.requested.contains(version), from_top);
                    self.load_or_keep(&pass, &id, record, rank);
                }
                Err(reason) => self.unload(&id, record, reason),
            }
            let expected = if serving.contains(version) { State::Serving } else { State::Ready };
            if record.is_callable() && record.state() != expected {
                self.set_state(&id, record, expected);
            }
            record.note(Note::Mirror, record.found.as_ref().and_then(|found| found.note.clone()));
            record.note(Note::Settings, pass.settings_complaint.cloned());
            record.note(Note::StoredState, pass.stored_complaint.clone());
            let warm = model.kept_warm.get(version).map(|until| format!("kept warm for a rollback until {until:.0}"));
            record.note(Note::KeptWarm, warm);
        }
        model.set_aside = set_aside;
    }

    /// A version that should be loaded.
    fn load_or_keep(&mut self, pass: &Pass, id: &VersionId, record: &mut VersionRecord, rank: usize) {
        match record.state() {
            State::Unloaded => {
                record.tried = None;
                self.set_state(id, record, State::Pending);
            }
            State::Failed if record.is_retry_due(pass.now) => {
                record.tried = None;
                self.set_state(id, record, State::Pending);
            }
            State::Ready | State::Serving => self.compare_files(id, record),
            _ => {}
        }
        if record.state() != State::Pending {
            return;
        }
        match next_step(pass, record) {
            Next::Wait(reason) => record.reason = Some(reason),
            Next::Fail(reason) => self.fail(id, record, StageFailure::permanent(Stage::Load, reason)),
            Next::Load => {
                record.reason = Some("waiting for its turn to be loaded".to_owned());
                self.loading.push_version(rank, id);
            }
        }
    }

    /// A version that should not be loaded.
    fn unload(&mut self, id: &VersionId, record: &mut VersionRecord, reason: UnloadReason) {
        match record.state() {
            State::Ready | State::Serving => {
                let timeout = self.config.drain_timeout;
                self.drain(id, record, timeout);
            }
            State::Pending | State::Failed => {
                self.set_state(id, record, State::Unloaded);
            }
            // What is loaded is dropped when the load ends, which nothing waits for.
            State::Loading | State::Verifying | State::Warming => {
                self.loading.loaders.cancel(id);
                self.set_state(id, record, State::Unloaded);
                let words = "its load has not ended; what is loaded is dropped then".to_owned();
                record.note(Note::Lingering, Some(words));
            }
            State::Draining | State::Unloaded => {}
        }
        if record.state() == State::Unloaded {
            record.attempts = 0;
            record.reason = Some(reason.words().to_owned());
        }
    }

    /// Checks whether the files of a loaded version are still those that were loaded.
    fn compare_files(&mut self, id: &VersionId, record: &mut VersionRecord) {
        let Some(found) = &record.found else {
            let words = "its files are gone from the models directory; it serves from memory".to_owned();
            record.note(Note::Files, Some(words));
            return;
        };
        let dir = found.dir.clone();
        let (fingerprint, readable) = (found.fingerprint, found.still && found.has_model && found.trouble.is_none());
        let trouble = found.trouble.as_ref().map(|trouble| format!("{trouble}; it serves from memory"));
        record.note(Note::Files, trouble);
        if readable && record.tried != Some(fingerprint) && record.compared != Some(fingerprint) {
            record.compared = Some(fingerprint);
            self.loading.push_task(Task::Compare { id: id.clone(), dir, fingerprint });
        }
    }
}

/// What a pending version does next.
enum Next {
    /// Wait, for this reason.
    Wait(String),
    /// Fail: what it needs will not come.
    Fail(String),
    /// Wait for a loading thread.
    Load,
}

fn next_step(pass: &Pass, record: &VersionRecord) -> Next {
    let wait = |words: &str| Next::Wait(words.to_owned());
    let Some(found) = &record.found else {
        return if pass.scanned {
            Next::Fail("its files are not in the models directory".to_owned())
        } else {
            wait("the models directory has not been read yet")
        };
    };
    if let Some(trouble) = &found.trouble {
        wait(trouble)
    } else if let Some(misnamed) = &found.misnamed {
        Next::Wait(format!("there is no model.onnx in its directory; it has {misnamed}: rename it to model.onnx"))
    } else if !found.has_model {
        wait("there is no model.onnx in its directory yet")
    } else if !found.still {
        wait("its files are still being written")
    } else if record.tried == Some(found.fingerprint) {
        wait("its files changed while they were read")
    } else if record.busy {
        wait("an earlier load of it has not ended")
    } else if record.waiting_for_memory {
        wait(WAITING_FOR_MEMORY)
    } else if let Some(complaint) = pass.settings_complaint.filter(|_| pass.settings_missing) {
        Next::Fail(complaint.clone())
    } else {
        Next::Load
    }
}

pub(super) const WAITING_FOR_MEMORY: &str = "waiting for memory that other versions release";

/// What operators should know about the stored state of a model.
fn stored_complaint(model: &Model) -> Option<String> {
    let document = model
        .document_error
        .as_ref()
        .map(|reason| format!("the stored traffic document cannot be read; put a new document or roll back: {reason}"));
    let values = model.stored.unreadable.as_ref().map(|reason| format!("the ledger is partly unreadable: {reason}"));
    let complaints: Vec<String> = document.into_iter().chain(values).collect();
    (!complaints.is_empty()).then(|| complaints.join("; "))
}

fn read_settings(model: &mut Model, found: &FoundModel) {
    if model.settings_source == found.settings {
        return;
    }
    model.settings_source.clone_from(&found.settings);
    let read = match &found.settings {
        None => Ok(ModelSettings::default()),
        Some(Ok(text)) => ModelSettings::parse("model.toml", text),
        Some(Err(trouble)) => Err(trouble.clone()),
    };
    match read {
        Ok(settings) => {
            let retry = model.settings_missing || settings.engine != model.settings.engine;
            model.settings = settings;
            model.settings_complaint = None;
            model.settings_missing = false;
            // A version that was not promoted automatically may be under the new settings.
            model.auto_promote_refused.clear();
            model.versions.values_mut().for_each(|record| record.note(Note::AutoPromote, None));
            if retry {
                // A failed version may have failed because of the old settings.
                model.versions.values_mut().for_each(|record| record.tried = record.loaded.as_ref().and(record.tried));
            }
        }
        Err(complaint) => {
            warn!(model = %model.name, "model.toml is ignored: {complaint}");
            // A model that has versions keeps its last valid settings.
            model.settings_missing = model.versions.is_empty() || model.settings_missing;
            model.settings_complaint = Some(complaint);
        }
    }
}
