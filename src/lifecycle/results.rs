//! What comes of the work: versions that come up, fail, changed on disk, or were freed.

use super::drain::Freed;
use super::loaders::Done;
use super::manager::Manager;
use super::table::{Life, Model, Note};
use crate::ledger::{Action, Artifact, Change, Effect};
use crate::model::{ModelName, VersionId};
use crate::prepare::{Outcome, ReadyVersion, StageFailure, backoff};
use crate::registry::State;
use crate::source::Fingerprint;
use crate::telemetry::names;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

impl Manager {
    pub(super) fn came(&mut self, id: &VersionId, state: State) {
        self.with_life(id, |this, life| {
            this.go(id, life, state);
        });
    }

    pub(super) fn done(&mut self, done: Done) {
        self.loaders.done();
        match done {
            Done::BroughtUp { id, bytes, outcome } => self.brought_up(&id, bytes, outcome),
            Done::Compared { id, fingerprint, digests } => {
                self.with_life(&id, |this, life| this.compared(&id, life, fingerprint, digests));
            }
            Done::Staged { push, staged } => self.staged(*push, staged),
        }
    }

    fn brought_up(&mut self, id: &VersionId, bytes: u64, outcome: Outcome) {
        let Some(mut model) = self.models.remove(&id.model) else { return };
        let wanted = self.stopping.is_none() && model.wanted().get(&id.version) == Some(&Ok(()));
        let mut life = model.lives.remove(&id.version).unwrap_or_else(Life::new);
        life.busy = false;
        match outcome {
            Outcome::Ready(up) if wanted => self.up(&mut model, id, &mut life, *up),
            Outcome::Ready(up) => {
                // It goes the way of all loaded versions, so that its memory is given back and measured.
                let timeout = self.config.drain_timeout;
                life.draining = Some(self.drains.begin(id.clone(), up.loaded, timeout));
            }
            Outcome::FilesChanged => {
                self.give_back(bytes);
                self.go(id, &mut life, State::Pending);
                self.source.model(id.model.clone());
            }
            Outcome::Failed(trouble) => {
                self.give_back(bytes);
                self.fail(id, &mut life, trouble);
            }
        }
        model.lives.insert(id.version, life);
        self.models.insert(id.model.clone(), model);
        self.touched.insert(id.model.clone());
    }

    fn up(&mut self, model: &mut Model, id: &VersionId, life: &mut Life, up: ReadyVersion) {
        let ReadyVersion { loaded, digests, note } = up;
        let facts = Arc::clone(&loaded.facts);
        let stages = [("load", facts.load), ("verify", facts.verify), ("warm", facts.warm)];
        for (stage, took) in stages {
            self.took(stage, took);
        }
        if !self.go(id, life, State::Ready) {
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
        life.note(Note::WarmUp, note);
        life.note(Note::BytesChanged, None);
        life.note(Note::Lingering, None);
        life.attempts = 0;
        life.digests = Some(digests);
        life.loaded = Some(loaded);
        self.figures.came_ready(&id.model, id.version, &facts.sha256);
        self.record(model, id, life, &facts.sha256, facts.bytes);
        life.facts = Some(facts);
    }

    /// Keeps what bytes came ready under a version, so that a later start can tell when they are others.
    fn record(&mut self, model: &mut Model, id: &VersionId, life: &mut Life, sha256: &str, bytes: u64) {
        life.note(Note::OtherBytes, None);
        let known = model.kept.artifacts.get(&id.version).map(|a| a.sha256.clone());
        if known.as_deref() == Some(sha256) {
            return;
        }
        if let Some(known) = known {
            let words = format!("its bytes are not those that came ready under this number before: sha256 was {known}");
            error!(model = %id.model, version = %id.version, sha256, "{words}");
            life.note(Note::OtherBytes, Some(words));
        }
        let sha256 = sha256.to_owned();
        let effect = Effect::RecordArtifact { version: id.version, sha256: sha256.clone(), bytes };
        let change = system(&id.model, Action::ReplaceArtifact, effect);
        match self.journal.commit(change) {
            Ok(committed) => {
                let artifact = Artifact { sha256, bytes, first_ready_at: committed.ts };
                model.kept.artifacts.insert(id.version, artifact);
            }
            // It serves all the same: the next start will take its bytes for new.
            Err(error) => warn!(model = %id.model, version = %id.version, %error, "cannot keep the version's sha256"),
        }
    }

    /// A version fails; what the disk or the network did, and what lacks memory, is tried again.
    pub(super) fn fail(&mut self, id: &VersionId, life: &mut Life, trouble: StageFailure) {
        let StageFailure { stage, reason, retryable: again } = trouble;
        if !self.go(id, life, State::Failed) {
            return;
        }
        self.telemetry.process().counter(&names::STAGE_FAILURES, &[("stage", stage.as_str())]).increment(1);
        life.attempts = life.attempts.saturating_add(1);
        life.retry_at = again.then(|| Instant::now() + backoff(life.attempts));
        if let Some(at) = life.retry_at {
            self.wake_at(at, &id.model);
        }
        let retry = life.retry_at.map_or("until its bytes change".to_owned(), |_| {
            format!("tried again in {} s", backoff(life.attempts).as_secs())
        });
        warn!(model = %id.model, version = %id.version, state = %State::Failed, stage = stage.as_str(), retry, "version: {reason}");
        life.stage = Some(stage);
        life.reason = Some(reason);
    }

    fn compared(&mut self, id: &VersionId, life: &mut Life, at: Fingerprint, now: Option<Vec<(String, String)>>) {
        // It cannot be read now: when that changes, so do its files' times.
        let Some(now) = now else { return };
        if life.compared != Some(at) || !life.is_callable() {
            return;
        }
        let was: BTreeMap<_, _> = life.digests.iter().flatten().cloned().collect();
        let is: BTreeMap<_, _> = now.into_iter().collect();
        if was == is {
            life.note(Note::BytesChanged, None);
            return;
        }
        let differs = |name: &&String| was.get(*name) != is.get(*name);
        let names: Vec<&str> = was.keys().chain(is.keys()).filter(differs).map(String::as_str).collect();
        let name = names.first().copied().unwrap_or_default();
        let words = format!(
            "{name} changed on disk after it was loaded; the bytes that were loaded go on serving. A version is immutable: give \
             the new bytes a number of their own"
        );
        self.telemetry.process().counter(&names::STAGE_FAILURES, &[("stage", "changed")]).increment(1);
        error!(model = %id.model, version = %id.version, "{words}");
        life.note(Note::BytesChanged, Some(words));
    }

    pub(super) fn freed(&mut self, freed: Freed) {
        let Freed { serial, id, bytes, drained, resident } = freed;
        self.took("drain", drained);
        let (before, after) = resident.unzip();
        info!(
            model = %id.model, version = %id.version, drained_ms = millis(drained), bytes,
            resident_before = before, resident_after = after, "memory given back"
        );
        self.give_back(bytes);
        self.unloaded(&id, serial, None);
    }

    /// The end of one draining, unless its version has gone on since.
    pub(super) fn unloaded(&mut self, id: &VersionId, serial: u64, lingering: Option<String>) {
        self.with_life(id, |this, life| {
            if life.draining == Some(serial) {
                life.draining = None;
                this.go(id, life, State::Unloaded);
                life.note(Note::Lingering, lingering);
            } else if lingering.is_none() {
                life.note(Note::Lingering, None);
            }
        });
    }

    fn give_back(&mut self, bytes: u64) {
        self.budget.give_back(bytes);
        self.fed = true;
    }

    // === helpers ===

    /// Does something to a version, and looks at its model afterwards.
    pub(super) fn with_life(&mut self, id: &VersionId, what: impl FnOnce(&mut Manager, &mut Life)) {
        let Some(mut life) = self.models.get_mut(&id.model).and_then(|m| m.lives.remove(&id.version)) else { return };
        what(self, &mut life);
        if let Some(model) = self.models.get_mut(&id.model) {
            model.lives.insert(id.version, life);
        }
        self.touched.insert(id.model.clone());
    }

    fn took(&self, stage: &'static str, took: Duration) {
        let histogram = self.telemetry.process().histogram(&names::STAGE_SECONDS, &[("stage", stage)]);
        histogram.record(took.as_secs_f64());
    }
}

fn system(model: &ModelName, action: Action, effect: Effect) -> Change {
    let actor = super::SYSTEM.to_owned();
    Change { model: model.clone(), actor, action, reason: None, before: None, after: None, effect }
}

fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}
