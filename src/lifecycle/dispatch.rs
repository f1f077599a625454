//! Giving the loading threads work, within the memory budget.

use super::Policy;
use super::loaders::Work;
use super::manager::Manager;
use super::memory::TooLarge;
use super::table::{Life, Model};
use crate::backend::VersionFiles;
use crate::model::{Version, VersionId};
use crate::prepare::{Job, StageFailure};
use crate::registry::{Stage, State};
use crate::source::Fingerprint;
use std::path::PathBuf;
use std::time::Instant;
use tracing::info;

impl Manager {
    /// Gives the next work to a loading thread; answers whether anything was done.
    pub(super) fn dispatch(&mut self) -> bool {
        if self.stopping.is_some() || !self.loaders.has_idle() {
            return false;
        }
        if let Some(errand) = self.errands.pop_front() {
            self.loaders.give(errand);
            return true;
        }
        let Some(turn) = self.queue.pop_first() else { return false };
        let Some(mut model) = self.models.remove(&turn.model) else { return true };
        let version = turn.version.0;
        // It may have been queued twice, or be wanted no more.
        if model.wanted().get(&version) == Some(&Ok(())) {
            let mut life = model.lives.remove(&version);
            if let Some(life) = life.as_mut().filter(|l| l.state() == State::Pending && !l.busy && l.has_files()) {
                self.begin(&model, version, life);
            }
            model.lives.extend(life.map(|life| (version, life)));
        }
        self.models.insert(turn.model.clone(), model);
        true
    }

    fn begin(&mut self, model: &Model, version: Version, life: &mut Life) {
        let id = model.id(version);
        let Some(fingerprint) = life.found.as_ref().filter(|f| f.still).map(|f| f.fingerprint) else { return };
        self.touched.insert(id.model.clone());
        if let Err(too_large) = self.budget.take(fingerprint.bytes) {
            return self.lacks_memory(model, &id, life, fingerprint, too_large);
        }
        self.go(&id, life, State::Loading);
        life.tried = Some(fingerprint);
        life.busy = true;
        let files = VersionFiles { dir: self.dir(&id) };
        let (engine, limits, execution) = (model.settings.engine, model.settings.limits, model.settings.execution);
        let model_metadata = model.settings.metadata.clone();
        self.loaders.give(Work::BringUp(Box::new(Job {
            id,
            files,
            fingerprint,
            engine,
            limits,
            execution,
            model_metadata,
        })));
    }

    /// There is no room: it is made, where the policy says so and it can be; else the version fails until bytes are given back.
    fn lacks_memory(&mut self, model: &Model, id: &VersionId, life: &mut Life, at: Fingerprint, too_large: TooLarge) {
        life.starved = true;
        self.hungry.insert(id.clone());
        let make_room = self.config.policy == Policy::MakeRoom;
        if self.cool(model, id, at.bytes) || make_room && self.make_room(model, id, at.bytes) {
            life.reason = Some("waiting for memory that other versions give back".to_owned());
            return;
        }
        life.tried = Some(at);
        self.go(id, life, State::Loading);
        let reason = too_large.to_string();
        self.fail(id, life, StageFailure { stage: Stage::Load, reason, retryable: true });
        life.starved = true;
    }

    /// Unloads versions that no document names, lower ones of the same model first, then (for a version that is named or asked
    /// for) any other model's; answers whether that will do. Nothing is unloaded when it will not.
    fn make_room(&mut self, model: &Model, id: &VersionId, wanted: u64) -> bool {
        let missing = self.budget.missing(wanted);
        let mut room = self.drains_bytes();
        let mut evict: Vec<VersionId> = Vec::new();
        let mut consider = |of: &Model, only_below: Option<Version>, room: &mut u64| {
            let named = of.named();
            for (version, life) in &of.lives {
                let below = only_below.is_none_or(|v| *version < v);
                if *room < missing && life.is_callable() && below && !named.contains(version) {
                    *room += life.facts.as_ref().map_or(0, |f| f.bytes);
                    evict.push(of.id(*version));
                }
            }
        };
        let must = model.named().contains(&id.version) || model.asked.contains(&id.version);
        consider(model, (!must).then_some(id.version), &mut room);
        if must {
            self.models.values().for_each(|other| consider(other, None, &mut room));
        }
        if room < missing {
            return false;
        }
        for evicted in &evict {
            info!(model = %evicted.model, version = %evicted.version, "unloaded to make room for {id}");
        }
        self.evictions.extend(evict);
        true
    }

    pub(super) fn drains_bytes(&self) -> u64 {
        let leaving = self.models.values().flat_map(|m| m.lives.values()).filter(|l| l.state() == State::Draining);
        leaving.filter_map(|l| l.facts.as_ref()).map(|f| f.bytes).sum()
    }

    /// Unloads what is to make room; and where bytes were given back, tries whoever waits for them.
    pub(super) fn feed(&mut self) {
        for VersionId { model, version } in std::mem::take(&mut self.cooled) {
            if let Some(model) = self.models.get_mut(&model) {
                model.left.remove(&version);
                self.touched.insert(model.name.clone());
            }
        }
        for VersionId { model, version } in std::mem::take(&mut self.evictions) {
            if let Some(model) = self.models.get_mut(&model) {
                model.asked.remove(&version);
                model.evicted.insert(version);
                self.touched.insert(model.name.clone());
            }
        }
        if !std::mem::take(&mut self.fed) {
            return;
        }
        for id in std::mem::take(&mut self.hungry) {
            self.with_life(&id, |_, life| {
                if std::mem::take(&mut life.starved) && life.state() == State::Failed {
                    life.retry_at = Some(Instant::now());
                }
            });
        }
    }

    /// Where a version's files lie.
    pub(super) fn dir(&self, id: &VersionId) -> PathBuf {
        self.config.models_dir.join(id.model.as_str()).join(id.version.to_string())
    }
}

/// What documents name comes first, then what operators ask for, then the newest version of each model, the second newest, and
/// so on: where memory does not suffice for all, old versions are those that go without.
pub(super) fn rank(model: &Model, version: Version, from_top: usize) -> usize {
    if model.named().contains(&version) {
        0
    } else if model.asked.contains(&version) {
        1
    } else {
        1 + from_top
    }
}
