//! Results of the loading and freeing threads: versions that become ready, fail, changed on disk, or were freed.

use super::SYSTEM;
use super::drain::Freed;
use super::handle::stopping;
use super::loaders::{Dropped, Running, TaskResult, Work};
use super::manager::Manager;
use super::memory::FileBytes;
use super::services::Services;
use super::shared_push::PushReply;
use super::version_record::{Note, VersionRecord};
use crate::ledger::{Action, Artifact, Change, Effect, ModelState};
use crate::model::VersionId;
use crate::prepare::{Digests, Outcome, ReadyVersion, StageFailure, backoff};
use crate::registry::{Stage, State};
use crate::source::Fingerprint;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

impl Manager {
    pub(super) fn task_done(&mut self, task: u64, result: TaskResult) {
        let Some(Running { what, dropped, files, .. }) = self.services.loading.loaders.done(task) else {
            error!(task, "bug in the manager: a loading thread finished a task that it did not have");
            return;
        };
        self.services.show_left_behind();
        match result {
            TaskResult::BroughtUp { id, outcome } => match dropped {
                None => self.brought_up(&id, files, outcome),
                Some(why) => self.drop_late(&id, files, outcome, why),
            },
            // The operator was told that it took too long, or that the server stops. Dropping it removes the files.
            TaskResult::Staged { .. } if dropped.is_some() => {}
            TaskResult::Compared { id, fingerprint, digests } => {
                self.with_version(&id, |services, record| services.compared(&id, record, fingerprint, digests));
            }
            TaskResult::Staged { push, staged } => {
                let Work::Push(_, Some(reply)) = what else { return };
                if self.stopping.is_some() {
                    self.services.refuse_push(reply, stopping());
                    return;
                }
                match reply {
                    PushReply::Added(reply) => self.staged(*push, reply, staged),
                    PushReply::Checked(reply) => self.services.checked_push(push.id.version, reply, staged),
                }
            }
        }
    }

    /// A version was brought up that nobody waits for any more. Its memory is freed like that of every loaded version.
    fn drop_late(&mut self, id: &VersionId, files: FileBytes, outcome: Outcome, why: Dropped) {
        if why == Dropped::GivenUp {
            info!(model = %id.model, version = %id.version, "a load that took too long has ended; its result is dropped");
        }
        match outcome {
            Outcome::Ready(ready) => {
                self.services.loading.loaded(files);
                self.services.drains.begin(id.clone(), ready.loaded, Duration::ZERO);
            }
            Outcome::FilesChanged | Outcome::Failed(_) => self.services.loading.not_loaded(files),
        }
        self.with_version(id, |_, record| {
            // Another load of the version may have begun since this one was given up.
            if why == Dropped::Cancelled {
                record.busy = false;
            }
            record.note(Note::Lingering, None);
        });
    }

    fn brought_up(&mut self, id: &VersionId, files: FileBytes, outcome: Outcome) {
        let Manager { models, services, stopping } = self;
        let Some(model) = models.get_mut(&id.model) else { return };
        let is_wanted = stopping.is_none() && model.wanted().get(&id.version) == Some(&Ok(()));
        let refused = match &outcome {
            Outcome::Ready(ready) if is_wanted => services.other_files(model, id.version, ready),
            _ => None,
        };
        let record = model.versions.entry(id.version).or_insert_with(VersionRecord::new);
        record.busy = false;
        let is_wanted = is_wanted && !model.set_aside.contains_key(&id.version);
        match outcome {
            Outcome::Ready(ready) if is_wanted && refused.is_some() => {
                services.loading.loaded(files);
                services.drains.begin(id.clone(), ready.loaded, Duration::ZERO);
                services.fail(id, record, StageFailure::permanent(Stage::Verify, refused.unwrap_or_default()));
            }
            Outcome::Ready(ready) if is_wanted => {
                services.loading.loaded(files);
                services.became_ready(id, record, &mut model.stored, *ready);
            }
            Outcome::Ready(ready) => {
                services.loading.loaded(files);
                // Drained like every loaded version, so that its memory is freed and measured.
                let timeout = services.config.drain_timeout;
                record.drain = Some(services.drains.begin(id.clone(), ready.loaded, timeout));
            }
            Outcome::FilesChanged => {
                services.loading.not_loaded(files);
                services.set_state(id, record, State::Pending);
                services.source.model(id.model.clone());
            }
            Outcome::Failed(failure) => {
                services.loading.not_loaded(files);
                services.fail(id, record, failure);
            }
        }
        services.schedule.look_now(id.model.clone());
    }

    pub(super) fn freed(&mut self, freed: Freed) {
        let Freed { serial, id, bytes, drained, resident } = freed;
        let services = &mut self.services;
        services.record_stage_time("drain", drained);
        let (before, after) = resident.unzip();
        info!(
            model = %id.model, version = %id.version, drained_ms = millis(drained), bytes,
            resident_before = before, resident_after = after, "memory freed"
        );
        services.drains.freed(bytes);
        services.loading.release(bytes);
        self.unloaded(&id, serial, None);
    }
}

impl Services {
    fn became_ready(
        &mut self,
        id: &VersionId,
        record: &mut VersionRecord,
        stored: &mut ModelState,
        ready: ReadyVersion,
    ) {
        let ReadyVersion { loaded, digests, note } = ready;
        let facts = Arc::clone(&loaded.facts);
        for (stage, took) in [("load", facts.load), ("verify", facts.verify), ("warm", facts.warm)] {
            self.record_stage_time(stage, took);
        }
        if !self.set_state(id, record, State::Ready) {
            return;
        }
        info!(
            model = %id.model, version = %id.version, state = %State::Ready, engine = facts.engine, bytes = facts.bytes,
            load_ms = millis(facts.load), verify_ms = millis(facts.verify), warm_ms = millis(facts.warm),
            golden_cases = facts.golden_cases, "version"
        );
        if let Some(note) = &note {
            warn!(model = %id.model, version = %id.version, "{note}");
        }
        record.note(Note::WarmUp, note);
        record.note(Note::BytesChanged, None);
        record.note(Note::Lingering, None);
        record.attempts = 0;
        record.digests = Some(digests);
        record.loaded = Some(loaded);
        self.figures.came_ready(&id.model, id.version, &facts.sha256);
        self.store_artifact(id, record, stored, &facts.sha256, facts.bytes);
        self.forgive_crashes(id, stored);
        record.facts = Some(facts);
    }

    /// A version that was set aside for its crashes and is ready again, because an operator asked or its files changed, starts anew. Not
    /// earlier: if it ends the process while it is loaded, it stays set aside.
    fn forgive_crashes(&mut self, id: &VersionId, stored: &mut ModelState) {
        if stored.set_aside.remove(&id.version).is_none() {
            return;
        }
        let change = Change {
            model: id.model.clone(),
            actor: SYSTEM.to_owned(),
            action: Action::Load,
            reason: None,
            before: None,
            after: None,
            effect: Effect::ForgiveCrashes { version: id.version },
        };
        if let Err(error) = self.journal.commit(change) {
            // The version serves anyway. The next start will set it aside.
            warn!(model = %id.model, version = %id.version, %error, "cannot store that the version is no longer set aside");
        }
    }

    /// Stores which bytes became ready, so that a later start can tell whether they changed.
    fn store_artifact(
        &mut self,
        id: &VersionId,
        record: &mut VersionRecord,
        stored: &mut ModelState,
        sha256: &str,
        bytes: u64,
    ) {
        record.note(Note::OtherBytes, None);
        let known = stored.artifacts.get(&id.version).map(|a| a.sha256.clone());
        if known.as_deref() == Some(sha256) {
            return;
        }
        if let Some(known) = known {
            let words = format!("its bytes are not those that were ready under this number before: sha256 was {known}");
            warn!(model = %id.model, version = %id.version, sha256, "{words}");
            record.note(Note::OtherBytes, Some(words));
        }
        let change = Change {
            model: id.model.clone(),
            actor: SYSTEM.to_owned(),
            action: Action::ReplaceArtifact,
            reason: None,
            before: None,
            after: None,
            effect: Effect::RecordArtifact { version: id.version, sha256: sha256.to_owned(), bytes },
        };
        match self.journal.commit(change) {
            Ok(committed) => {
                let artifact = Artifact { sha256: sha256.to_owned(), bytes, first_ready_at: committed.ts };
                stored.artifacts.insert(id.version, artifact);
            }
            // The version serves anyway. The next start will take its bytes for new ones.
            Err(error) => warn!(model = %id.model, version = %id.version, %error, "cannot store the version's sha256"),
        }
    }

    /// A version fails. Failures of the disk, the network or for lack of memory are retried.
    pub(super) fn fail(&mut self, id: &VersionId, record: &mut VersionRecord, failure: StageFailure) {
        let StageFailure { stage, reason, retryable } = failure;
        if !self.set_state(id, record, State::Failed) {
            return;
        }
        self.count_failure(stage.as_str());
        record.attempts = record.attempts.saturating_add(1);
        record.retry_at = retryable.then(|| Instant::now() + backoff(record.attempts));
        if let Some(at) = record.retry_at {
            self.schedule.look_at(at, &id.model);
        }
        let retry = record.retry_at.map_or("until its bytes change".to_owned(), |_| {
            format!("tried again in {} s", backoff(record.attempts).as_secs())
        });
        warn!(model = %id.model, version = %id.version, state = %State::Failed, stage = stage.as_str(), retry, "version: {reason}");
        record.stage = Some(stage);
        record.reason = Some(reason);
    }

    /// `now`: the digests of the files on disk, or `None` when they cannot be read.
    fn compared(&mut self, id: &VersionId, record: &mut VersionRecord, at: Fingerprint, now: Option<Digests>) {
        // Files that become readable later have new times, which start another comparison.
        let Some(now) = now else { return };
        if record.compared != Some(at) || !record.is_callable() {
            return;
        }
        let loaded: BTreeMap<_, _> = record.digests.iter().flatten().cloned().collect();
        let on_disk: BTreeMap<_, _> = now.into_iter().collect();
        let differs = |name: &&String| loaded.get(*name) != on_disk.get(*name);
        let Some(name) = loaded.keys().chain(on_disk.keys()).find(differs) else {
            record.note(Note::BytesChanged, None);
            return;
        };
        let words = format!(
            "{name} changed on disk after it was loaded; the version continues with the bytes that were loaded. Versions are \
             immutable: give the new bytes a new number"
        );
        self.count_failure("changed");
        error!(model = %id.model, version = %id.version, "{words}");
        record.note(Note::BytesChanged, Some(words));
    }
}

fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}
