//! Gives tasks to the loading threads, within the memory budget.

use super::Policy;
use super::loaders::Task;
use super::manager::Manager;
use super::memory::{FileBytes, TooLarge};
use super::model_record::Model;
use super::reconcile::WAITING_FOR_MEMORY;
use super::services::Services;
use super::version_record::VersionRecord;
use crate::backend::VersionFiles;
use crate::model::{Version, VersionId};
use crate::prepare::{Job, StageFailure};
use crate::registry::{Limits, Stage, State};
use crate::source::Fingerprint;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tracing::info;

impl Services {
    fn fail_for_memory(&mut self, id: &VersionId, record: &mut VersionRecord, at: Fingerprint, reason: String) {
        record.tried = Some(at);
        self.set_state(id, record, State::Loading);
        self.fail(id, record, StageFailure { stage: Stage::Load, reason, retryable: true });
    }
}

impl Manager {
    /// Gives the next task to a loading thread. Returns whether there may be more to do.
    pub(super) fn dispatch(&mut self) -> bool {
        let loading = &mut self.services.loading;
        if self.stopping.is_some() || !loading.has_work() || !loading.loaders.has_idle(Instant::now()) {
            return false;
        }
        if let Some(task) = loading.next_task() {
            loading.loaders.give(task);
            return true;
        }
        let Some(id) = loading.next_version() else { return false };
        let Some(model) = self.models.get(&id.model) else { return true };
        // It may have been queued twice, or no longer be wanted.
        let is_wanted = model.wanted().get(&id.version) == Some(&Ok(()));
        let can_load = |r: &&VersionRecord| is_wanted && r.state() == State::Pending && !r.busy && r.has_files();
        let found = model.versions.get(&id.version).filter(can_load).and_then(|record| record.found.as_ref());
        if let Some((dir, fingerprint)) = found.filter(|f| f.still).map(|f| (f.dir.clone(), f.fingerprint)) {
            self.begin_load(&id, dir, fingerprint);
        }
        true
    }

    fn begin_load(&mut self, id: &VersionId, dir: PathBuf, fingerprint: Fingerprint) {
        let model = std::fs::metadata(VersionFiles::of(dir.clone()).model()).map_or(0, |meta| meta.len());
        let sizes = FileBytes { all: fingerprint.bytes, model: model.min(fingerprint.bytes) };
        let loading = &mut self.services.loading;
        if let Err(too_little) = loading.check_available(sizes, (self.services.config.available)()) {
            return self.refuse_load(id, fingerprint, too_little.to_string());
        }
        if let Err(too_large) = loading.reserve_load(sizes) {
            return self.wait_for_memory(id, fingerprint, sizes, too_large);
        }
        let Manager { models, services, .. } = self;
        services.schedule.look_now(id.model.clone());
        let Some(Model { versions, settings, .. }) = models.get_mut(&id.model) else { return };
        let Some(record) = versions.get_mut(&id.version) else { return };
        services.set_state(id, record, State::Loading);
        record.tried = Some(fingerprint);
        record.busy = true;
        let files = VersionFiles { dir, options: Arc::clone(&settings.engine_options) };
        services.loading.loaders.give(Task::BringUp(
            Box::new(Job {
                id: id.clone(),
                files,
                fingerprint,
                engine: settings.engine,
                limits: Limits {
                    max_answer: settings.limits.max_answer.or(Some(services.config.max_answer)),
                    ..settings.limits
                },
                time_limits: services.config.time_limits,
                execution: settings.execution,
                trusted_keys: services.config.trusted_keys.clone(),
                model_metadata: settings.metadata.clone(),
            }),
            sizes,
        ));
    }

    /// The budget has no room for a version. It waits where memory is being freed, or can be. Otherwise it fails until memory is
    /// freed.
    fn wait_for_memory(&mut self, id: &VersionId, at: Fingerprint, sizes: FileBytes, too_large: TooLarge) {
        let will_fit = self.free_memory_for(id, sizes);
        self.services.loading.wait_for_memory(id.clone());
        self.with_version(id, |services, record| {
            if will_fit {
                record.reason = Some(WAITING_FOR_MEMORY.to_owned());
            } else {
                services.fail_for_memory(id, record, at, too_large.to_string());
            }
            record.waiting_for_memory = true;
        });
    }

    /// The system has too little memory for a load. It is not begun, and tried again when memory is freed, and after a while.
    fn refuse_load(&mut self, id: &VersionId, at: Fingerprint, reason: String) {
        self.services.loading.wait_for_memory(id.clone());
        self.with_version(id, |services, record| {
            services.fail_for_memory(id, record, at, reason);
            record.waiting_for_memory = true;
        });
    }

    /// Frees memory where the policy allows it. Returns whether the version will fit. Where it will not, nothing is unloaded.
    fn free_memory_for(&mut self, id: &VersionId, sizes: FileBytes) -> bool {
        let missing = self.services.loading.missing(sizes).saturating_sub(self.services.drains.bytes());
        missing == 0
            || self.release_kept_warm(id, missing)
            || self.services.config.policy == Policy::MakeRoom && self.make_room(id, missing)
    }

    /// Unloads versions that no document names: lower ones of the same model first, then, for a version that is required or
    /// requested, those of any other model. Returns whether that frees `missing` bytes. Where it does not, nothing is unloaded.
    fn make_room(&mut self, id: &VersionId, missing: u64) -> bool {
        let Some(model) = self.models.get(&id.model) else { return false };
        let mut room = 0;
        let mut evicted: Vec<VersionId> = Vec::new();
        let mut consider = |of: &Model, only_below: Option<Version>| {
            let required = of.required();
            for (version, record) in &of.versions {
                let below = only_below.is_none_or(|v| *version < v);
                if room < missing && record.is_callable() && below && !required.contains(version) {
                    room += record.facts.as_ref().map_or(0, |f| f.bytes);
                    evicted.push(of.id(*version));
                }
            }
        };
        let important = model.required().contains(&id.version) || model.requested.contains(&id.version);
        consider(model, (!important).then_some(id.version));
        if important {
            self.models.values().filter(|other| other.name != id.model).for_each(|other| consider(other, None));
        }
        if room < missing {
            return false;
        }
        for version in &evicted {
            info!(model = %version.model, version = %version.version, "unloaded to make room for {id}");
        }
        self.services.evictions.evicted.extend(evicted);
        true
    }

    /// Applies the evictions that were decided. Where memory was freed, tries the versions again that wait for it.
    pub(super) fn make_evictions(&mut self) {
        let Manager { models, services, .. } = self;
        for VersionId { model, version } in std::mem::take(&mut services.evictions.no_longer_warm) {
            if let Some(model) = models.get_mut(&model) {
                model.last_named.remove(&version);
                services.schedule.look_now(model.name.clone());
            }
        }
        for VersionId { model, version } in std::mem::take(&mut services.evictions.evicted) {
            if let Some(model) = models.get_mut(&model) {
                model.requested.remove(&version);
                model.evicted.insert(version);
                services.schedule.look_now(model.name.clone());
            }
        }
        for id in services.loading.take_retries() {
            self.with_version(&id, |_, record| {
                if std::mem::take(&mut record.waiting_for_memory) && record.state() == State::Failed {
                    record.retry_at = Some(Instant::now());
                }
            });
        }
    }
}
