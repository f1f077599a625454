//! Moving versions to where they ought to be: what the source says is there, held against what is wanted.

use super::dispatch::rank;
use super::loaders::Work;
use super::manager::{Manager, Turn};
use super::policy::Leave;
use super::table::{Life, Model, Note};
use crate::model::{ModelName, Version, VersionId};
use crate::model_settings::ModelSettings;
use crate::prepare::StageFailure;
use crate::registry::{Stage, State};
use crate::source::FoundModel;
use crate::source::Look;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Instant;
use tracing::{info, warn};

impl Manager {
    // === what the source says ===

    pub(super) fn looked(&mut self, look: Look) {
        for (name, found) in look.changed {
            let mut model = self.models.remove(&name).unwrap_or_else(|| Model::new(name.clone()));
            if let Some(found) = &found {
                read_settings(&mut model, found);
            }
            self.take_in(&mut model, found.unwrap_or_default());
            self.models.insert(name.clone(), model);
            self.touched.insert(name);
        }
        if look.first && !self.looked {
            self.looked = true;
            for model in self.models.values() {
                let wanted = model.wanted();
                let awaited = |(v, life): &(&Version, &Life)| life.has_files() && wanted.get(*v) == Some(&Ok(()));
                self.awaited.extend(model.lives.iter().filter(awaited).map(|(v, _)| model.id(*v)));
                self.touched.insert(model.name.clone());
            }
        }
    }

    fn take_in(&mut self, model: &mut Model, mut found: FoundModel) {
        for version in found.versions.keys() {
            if !model.lives.contains_key(version) {
                self.add(model, *version);
            }
        }
        for (version, life) in &mut model.lives {
            life.found = found.versions.remove(version);
        }
    }

    pub(super) fn add(&mut self, model: &mut Model, version: Version) {
        model.lives.insert(version, Life::new());
        self.counts.appeared(State::Pending);
        info!(model = %model.name, %version, state = %State::Pending, "version");
    }

    // === where versions ought to be ===

    /// Brings one model to where it ought to be, as far as that needs no waiting.
    pub(super) fn settle(&mut self, name: &ModelName) {
        let Some(mut model) = self.models.remove(name) else { return };
        if self.stopping.is_none() {
            loop {
                self.reconcile(&mut model);
                let served = self.serve_of_itself(&mut model);
                if !(self.advance(&mut model) || served) {
                    break;
                }
            }
        }
        self.forget(&mut model);
        self.dirty.insert(name.clone());
        self.models.insert(name.clone(), model);
    }

    /// A model whose directory is gone, and that has no document, is no model any more.
    fn forget(&self, model: &mut Model) {
        let is_gone = |life: &Life| life.state() == State::Unloaded && life.found.is_none();
        if model.document.is_none() && model.ops.is_empty() && model.lives.values().all(is_gone) {
            model.lives.values().for_each(|life| self.counts.went(life.state()));
            model.lives.clear();
        }
    }

    fn reconcile(&mut self, model: &mut Model) {
        let wanted = self.wanted_now(model);
        for version in wanted.keys() {
            if !model.lives.contains_key(version) {
                self.add(model, *version);
            }
        }
        let serving = if model.kept.taken_out { BTreeSet::new() } else { model.serving() };
        let mut lives = std::mem::take(&mut model.lives);
        for (version, life) in &mut lives {
            let id = VersionId { model: model.name.clone(), version: *version };
            match wanted.get(version).copied().unwrap_or(Err(Leave::Gone)) {
                Ok(()) => self.keep(model, &id, life, wanted.range(version..).count()),
                Err(leave) => self.leave(&id, life, leave),
            }
            let ought = if serving.contains(version) { State::Serving } else { State::Ready };
            if life.is_callable() && life.state() != ought {
                self.go(&id, life, ought);
            }
            life.note(Note::Settings, model.settings_complaint.clone());
            let warm = model.warm.get(version).map(|until| format!("kept warm for a rollback until {until:.0}"));
            life.note(Note::KeptWarm, warm);
        }
        model.lives = lives;
    }

    /// A version that ought to be loaded. `from_top`: its place among the model's versions, the newest being 1.
    fn keep(&mut self, model: &Model, id: &VersionId, life: &mut Life, from_top: usize) {
        let now = Instant::now();
        match life.state() {
            State::Unloaded => {
                life.tried = None;
                self.go(id, life, State::Pending);
            }
            State::Failed if is_due(life, now) => {
                life.tried = None;
                self.go(id, life, State::Pending);
            }
            State::Ready | State::Serving => self.compare(id, life),
            _ => {}
        }
        if life.state() == State::Pending {
            self.pend(model, id, life, from_top);
        }
    }

    /// A version that ought not to be loaded.
    fn leave(&mut self, id: &VersionId, life: &mut Life, leave: Leave) {
        match life.state() {
            State::Ready | State::Serving => {
                let timeout = self.config.drain_timeout;
                self.drain(id, life, timeout);
            }
            State::Pending | State::Failed => {
                self.go(id, life, State::Unloaded);
            }
            // A load under way is let go when it is done.
            State::Loading | State::Verifying | State::Warming | State::Draining | State::Unloaded => {}
        }
        if life.state() == State::Unloaded {
            life.attempts = 0;
            life.reason = Some(leave.words().to_owned());
        }
    }

    /// Says what a pending version waits for, and queues it when that is only its turn.
    fn pend(&mut self, model: &Model, id: &VersionId, life: &mut Life, from_top: usize) {
        match waits_for(model, life, self.looked) {
            Wait::For(reason) => life.reason = Some(reason),
            Wait::InVain(reason) => self.fail(id, life, StageFailure::permanent(Stage::Load, reason)),
            Wait::Turn => {
                life.reason = Some("waiting for its turn to be loaded".to_owned());
                let rank = rank(model, id.version, from_top);
                self.queue.insert(Turn { rank, model: id.model.clone(), version: Reverse(id.version) });
            }
        }
    }

    /// Looks whether the files under a loaded version are still those that were loaded.
    fn compare(&mut self, id: &VersionId, life: &mut Life) {
        let Some(found) = &life.found else {
            let words = "its files are gone from the models directory; it serves from memory".to_owned();
            life.note(Note::FilesGone, Some(words));
            return;
        };
        let (fingerprint, settled) = (found.fingerprint, found.still && found.has_model && found.trouble.is_none());
        life.note(Note::FilesGone, None);
        if settled && life.tried != Some(fingerprint) && life.compared != Some(fingerprint) {
            life.compared = Some(fingerprint);
            let dir = self.dir(id);
            self.errands.push_back(Work::Compare { id: id.clone(), dir, fingerprint });
        }
    }
}

/// What a pending version waits for.
enum Wait {
    For(String),
    /// It never comes.
    InVain(String),
    /// A thread to load it.
    Turn,
}

fn waits_for(model: &Model, life: &Life, looked: bool) -> Wait {
    let wait = |words: &str| Wait::For(words.to_owned());
    let Some(found) = &life.found else {
        return if looked {
            Wait::InVain("its files are not in the models directory".to_owned())
        } else {
            wait("the models directory has not been read yet")
        };
    };
    if let Some(trouble) = &found.trouble {
        wait(trouble)
    } else if !found.has_model {
        wait("there is no model.onnx in its directory yet")
    } else if !found.still {
        wait("its files are still being written")
    } else if life.tried == Some(found.fingerprint) {
        wait("its files changed while they were read")
    } else if life.starved {
        wait("waiting for memory that other versions give back")
    } else if let Some(complaint) = model.settings_complaint.as_ref().filter(|_| model.settings_missing) {
        Wait::InVain(complaint.clone())
    } else {
        Wait::Turn
    }
}

/// Whether a failed version is to be tried now: its bytes are others than those that failed, or its time has come.
fn is_due(life: &Life, now: Instant) -> bool {
    let changed = life.found.as_ref().is_some_and(|f| f.still && f.has_model && life.tried != Some(f.fingerprint));
    changed || life.retry_at.is_some_and(|at| at <= now)
}

fn read_settings(model: &mut Model, found: &FoundModel) {
    if model.settings_from == found.settings {
        return;
    }
    model.settings_from.clone_from(&found.settings);
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
            // What was not promoted of itself may be under the new settings.
            model.refused.clear();
            model.lives.values_mut().for_each(|life| life.note(Note::AutoPromote, None));
            if retry {
                // What failed may have failed for the settings.
                model.lives.values_mut().for_each(|life| life.tried = life.loaded.as_ref().and(life.tried));
            }
        }
        Err(complaint) => {
            warn!(model = %model.name, "model.toml is not taken: {complaint}");
            // A model that has been here goes on with what was right last.
            model.settings_missing = model.lives.is_empty() || model.settings_missing;
            model.settings_complaint = Some(complaint);
        }
    }
}
