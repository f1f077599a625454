//! Operator requests for single versions and whole models, and when they are answered.

use super::handle::{Actor, Command, LoadOutcome, Reply};
use super::journal;
use super::loaders::Task;
use super::manager::Manager;
use super::memory::FileBytes;
use super::model_record::{Model, WaitingRequest, check_model_loaded, conflict, no_model, no_version, not_ready};
use super::push::{self, Push, Staged, sync_directory};
use super::retire::{begin_return, check_not_retired};
use super::services::Services;
use super::shared_push::{self, PushReply};
use super::version_record::VersionRecord;
use crate::ledger::{Action, Change, Effect, ModelState};
use crate::model::{Code, Failure, ModelName, Version, VersionId};
use crate::registry::State;
use crate::source::{Found, look_at_version};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tracing::{error, info};

impl Manager {
    #[expect(clippy::too_many_lines, reason = "a table of commands, read from top to bottom")]
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Promote { model, request, reply } => {
                self.with_model(&model, reply, |services, model, reply| {
                    if model.stored.retired.is_none() || model.is_callable(request.version) {
                        let promoted = services.promote(model, request);
                        return services.answer(reply, promoted);
                    }
                    match begin_return(model, request.version) {
                        Ok(()) => {
                            model.waiting.push(WaitingRequest::Promote { request: Box::new(request), reply });
                        }
                        Err(failure) => services.answer(reply, Err(failure)),
                    }
                });
            }
            Command::Retire { model, reason, actor, reply } => {
                self.answer_now(&model, reply, |services, model| services.retire(model, reason, &actor));
            }
            Command::Approval { model, version, reply } => {
                self.answer_now(&model, reply, |services, model| services.approval(model, version));
            }
            Command::Review { model, request, reply } => {
                self.answer_now(&model, reply, |services, model| services.review(model, *request));
            }
            Command::PutTraffic { model, proposal, if_match, actor, reply } => {
                self.answer_now(&model, reply, |services, model| {
                    services.put_traffic(model, *proposal, if_match.as_deref(), actor)
                });
            }
            Command::RolloutCommit { model, commit, actor, reply } => {
                self.answer_now(&model, reply, |services, model| services.commit_rollout(model, *commit, actor));
            }
            Command::Rollback { model, request, reply } if request.dry_run => {
                self.answer_now(&model, reply, |services, model| services.try_rollback(model, &request));
            }
            Command::Rollback { model, request, reply } => {
                self.with_model(&model, reply, |services, model, reply| {
                    match services.begin_rollback(model, request) {
                        Ok(rollback) => model.waiting.push(WaitingRequest::Rollback { rollback, reply }),
                        Err(failure) => services.answer(reply, Err(failure)),
                    }
                });
            }
            Command::Load { model, version, wait, reason, actor, reply } => {
                self.with_model(&model, reply, |services, model, reply| {
                    match services.load(model, version, reason.as_deref(), &actor) {
                        Ok(()) if wait => model.waiting.push(WaitingRequest::Load { version, reply }),
                        result => services.answer(reply, result.map(|()| LoadOutcome::Accepted)),
                    }
                });
            }
            Command::Unload { model, version, wait, reason, actor, reply } => {
                self.with_model(&model, reply, |services, model, reply| {
                    match services.unload_version(model, version, reason.as_deref(), &actor) {
                        Ok(()) if wait => model.waiting.push(WaitingRequest::Unload { version, reply }),
                        result => services.answer(reply, result.map(|()| LoadOutcome::Accepted)),
                    }
                });
            }
            Command::LoadModel { model, actor, reply } => {
                self.with_model(&model, reply, |services, model, reply| match check_not_retired(model) {
                    Ok(()) => load_model(model, actor, reply),
                    Err(failure) => services.answer(reply, Err(failure)),
                });
            }
            Command::UnloadModel { model, actor, reply } => {
                self.with_model(&model, reply, |services, model, reply| match services.unload_model(model, &actor) {
                    Ok(()) => model.waiting.push(WaitingRequest::UnloadModel { reply }),
                    Err(failure) => services.answer(reply, Err(failure)),
                });
            }
            Command::Follow { model, followed, reply } => {
                self.follow(model, *followed, reply);
            }
            Command::SharedStates { reply } => {
                let states = self.shared_states();
                self.services.answer(reply, Ok(states));
            }
            Command::SetAside(aside) => self.set_aside(aside),
            Command::Token { change, reply } => {
                let changed = self.services.change_token(*change);
                self.services.answer(reply, changed);
            }
            Command::FollowToken { change, reply } => {
                let followed = self.services.follow_token(&change);
                self.services.answer(reply, followed);
            }
            Command::TokenUses(uses) => {
                if let Err(error) = self.services.journal.store_token_uses(&uses) {
                    error!(%error, "the times at which tokens were used cannot be stored");
                }
            }
            Command::Note { note, reply } => {
                let noted = self.services.journal.note(note).map_err(|e| journal::failure(&e));
                // A send fails only when the caller no longer waits. The event stays.
                let _ = reply.send(noted);
            }
            Command::Push { model, version, staged, signature, actor, reply } => {
                self.push(model, version, staged, signature, actor, reply);
            }
            Command::Pushed { id, actor, reply } => {
                let stored = self.pushed(&id, &actor);
                self.services.answer(reply, stored);
            }
        }
    }

    /// Changes a model and answers with the result.
    fn answer_now<T: Send + 'static>(
        &mut self,
        name: &ModelName,
        reply: Reply<T>,
        change: impl FnOnce(&mut Services, &mut Model) -> Result<T, Failure>,
    ) {
        self.with_model(name, reply, |services, model, reply| {
            let result = change(services, model);
            services.answer(reply, result);
        });
    }

    /// Changes a model. The change keeps the reply, and answers when it is done.
    fn with_model<T: Send + 'static>(
        &mut self,
        name: &ModelName,
        reply: Reply<T>,
        change: impl FnOnce(&mut Services, &mut Model, Reply<T>),
    ) {
        let Manager { models, services, .. } = self;
        let Some(model) = models.get_mut(name).filter(|model| model.is_visible()) else {
            return services.answer(reply, Err(no_model(name)));
        };
        change(services, model, reply);
        services.schedule.look_now(name.clone());
    }

    // === push ===

    fn push(
        &mut self,
        name: ModelName,
        version: Option<Version>,
        file: PathBuf,
        signature: Option<String>,
        actor: Actor,
        reply: PushReply,
    ) {
        let number = version.map_or_else(|| self.next_free(&name), Ok);
        let (number, next_free) = match number {
            Ok(number) => (number, version.is_none()),
            Err(failure) => {
                push::remove(&file);
                return self.services.refuse_push(reply, failure);
            }
        };
        let id = VersionId { model: name, version: number };
        let model = self.models.get(&id.model);
        // The directory itself is checked, because the last report about it may be old.
        let is_known = |model: &Model| {
            model.versions.get(&id.version).is_some_and(|record| {
                record.is_callable() || record.found.as_ref().is_some_and(|found| found.dir.exists())
            })
        };
        if model.is_some_and(is_known) || self.services.dir(&id).exists() {
            push::remove(&file);
            return self.services.refuse_push(reply, exists(&id));
        }
        let engine = model.map(|m| m.settings.engine).unwrap_or_default();
        let engine_options = model.map(|m| Arc::clone(&m.settings.engine_options)).unwrap_or_default();
        let bytes = push::bytes_of(&file);
        let (loading, sizes) = (&self.services.loading, FileBytes::of_model(bytes));
        let fits = loading.check_available(sizes, (self.services.config.available)()).is_ok();
        let try_it = fits && loading.missing(sizes) == 0;
        let root = self.services.config.models_dir.clone();
        let trusted_keys = self.services.config.trusted_keys.clone();
        let reply = Some(reply);
        let push = Push {
            id,
            next_free,
            root,
            file,
            bytes,
            engine,
            engine_options,
            signature,
            trusted_keys,
            try_it,
            actor,
            reply,
        };
        self.services.loading.push_task(Task::Stage(Box::new(push)));
    }

    fn next_free(&self, name: &ModelName) -> Result<Version, Failure> {
        let known = self.models.get(name).into_iter();
        let known = known.flat_map(|model| model.versions.keys().chain(model.stored.proposers.keys()).copied());
        push::next_free(known, &self.services.config.models_dir.join(name.as_str()))
    }

    pub(super) fn staged(&mut self, push: Push, reply: Reply<Version>, staged: Result<Staged, Failure>) {
        let Push { id, next_free, actor, .. } = push;
        let landed = staged.and_then(|staged| self.land_staged(&id, next_free, &actor, staged));
        let Manager { models, services, .. } = self;
        let result = landed.and_then(|(id, Pushed { place, not_synced })| {
            // Known at once, so that the caller can ask for it. It landed whole, so there is no settle time to wait for.
            let found = Found { still: true, ..look_at_version(&place) };
            let model = models.entry(id.model.clone()).or_insert_with(|| Model::new(id.model.clone()));
            model.stored.proposers.entry(id.version).or_default().insert(actor.0.clone());
            if !model.versions.contains_key(&id.version) {
                services.add_version(model, id.version);
            }
            if let Some(record) = model.versions.get_mut(&id.version) {
                record.found = Some(found);
            }
            services.schedule.look_now(id.model.clone());
            not_synced.map_or(Ok(id.version), Err)
        });
        self.services.source.model(id.model);
        self.services.answer(reply, result);
    }
}

impl Manager {
    /// Gives a staged version its number, which may be chosen only now, and its name.
    fn land_staged(
        &mut self,
        id: &VersionId,
        next_free: bool,
        actor: &Actor,
        mut staged: Staged,
    ) -> Result<(VersionId, Pushed), Failure> {
        let mut id = id.clone();
        if next_free {
            // Other versions may have landed while this one was tried. Only the manager gives numbers, one after the other; a version that somebody
            // copies into the directory at this moment is found by the rename.
            id.version = self.next_free(&id.model)?;
            staged.place.set_file_name(id.version.to_string());
        }
        let stored = self.models.get(&id.model).map_or_else(|| ModelState::new(id.model.clone()), |m| m.stored.clone());
        let pushed = self.services.land(&id, &stored, actor, staged)?;
        Ok((id, pushed))
    }
}

/// A version that landed and is in the audit trail.
struct Pushed {
    place: PathBuf,
    /// What the operator reads when the directory could not be synced.
    not_synced: Option<Failure>,
}

impl Services {
    // === one version ===

    fn load(
        &mut self,
        model: &mut Model,
        version: Version,
        reason: Option<&str>,
        actor: &Actor,
    ) -> Result<(), Failure> {
        check_model_loaded(model)?;
        let Some(record) = model.versions.get(&version).filter(|r| r.found.is_some() || r.is_callable()) else {
            return Err(no_version(model, version));
        };
        let is_out = matches!(record.state(), State::Unloaded | State::Failed | State::Draining);
        if is_out || model.stored.operator_unloaded.contains(&version) {
            if !self.clear_operator_unloaded(model, version, actor, reason)? {
                self.commit_version_change(model, Action::Load, actor, reason, version, Effect::None)?;
            }
            model.requested.insert(version);
            model.evicted.remove(&version);
            model.set_aside.remove(&version);
            let now = Instant::now();
            model.versions.entry(version).and_modify(|record| record.retry_at = Some(now));
        }
        Ok(())
    }

    /// Clears the mark that an operator unloaded a version. Returns whether there was one.
    pub(super) fn clear_operator_unloaded(
        &mut self,
        model: &mut Model,
        version: Version,
        actor: &Actor,
        reason: Option<&str>,
    ) -> Result<bool, Failure> {
        if !model.stored.operator_unloaded.contains(&version) {
            return Ok(false);
        }
        let effect = Effect::SetOperatorUnloaded { version, unloaded: false };
        self.commit_version_change(model, Action::Load, actor, reason, version, effect)?;
        model.stored.operator_unloaded.remove(&version);
        Ok(true)
    }

    fn unload_version(
        &mut self,
        model: &mut Model,
        version: Version,
        reason: Option<&str>,
        actor: &Actor,
    ) -> Result<(), Failure> {
        if !model.versions.contains_key(&version) {
            return Err(no_version(model, version));
        }
        if model.required().contains(&version) {
            let words = format!(
                "the traffic document of model {} names version {version}; promote another version first, or retire the model",
                model.name
            );
            return Err(conflict(words));
        }
        if !model.stored.operator_unloaded.contains(&version) {
            let effect = Effect::SetOperatorUnloaded { version, unloaded: true };
            self.commit_version_change(model, Action::Unload, actor, reason, version, effect)?;
            model.stored.operator_unloaded.insert(version);
        }
        model.requested.remove(&version);
        Ok(())
    }

    fn commit_version_change(
        &mut self,
        model: &Model,
        action: Action,
        actor: &Actor,
        reason: Option<&str>,
        version: Version,
        effect: Effect,
    ) -> Result<(), Failure> {
        let state = model.versions.get(&version).map_or("unknown", |record| record.state().as_str());
        self.commit(
            &model.stored,
            Change {
                model: model.name.clone(),
                actor: actor.0.clone(),
                action,
                reason: reason.map(str::to_owned),
                before: Some(format!("{{\"version\":\"{version}\",\"state\":\"{state}\"}}")),
                after: None,
                effect,
            },
        )?;
        info!(model = %model.name, %version, actor = actor.0, action = %action, "version");
        Ok(())
    }

    // === a whole model ===

    fn unload_model(&mut self, model: &mut Model, actor: &Actor) -> Result<(), Failure> {
        if model.is_out() { Ok(()) } else { self.set_model_unloaded(model, true, actor) }
    }

    fn set_model_unloaded(&mut self, model: &mut Model, unloaded: bool, actor: &Actor) -> Result<(), Failure> {
        let action = if unloaded { Action::UnloadModel } else { Action::LoadModel };
        // The audit trail keeps this name, because tools read it.
        let json = |unloaded: bool| Some(format!("{{\"taken_out\":{unloaded}}}"));
        self.commit(
            &model.stored,
            Change {
                model: model.name.clone(),
                actor: actor.0.clone(),
                action,
                reason: None,
                before: json(!unloaded),
                after: json(unloaded),
                effect: Effect::SetModelUnloaded(unloaded),
            },
        )?;
        info!(model = %model.name, actor = actor.0, action = %action, "model");
        model.stored.unloaded = unloaded;
        Ok(())
    }

    // === answering what waits ===

    /// Answers the requests whose versions have reached their state. Returns whether there were any.
    pub(super) fn finish_waiting(&mut self, model: &mut Model) -> bool {
        let mut finished = false;
        let mut next = 0;
        while let Some(request) = model.waiting.get(next) {
            if request.is_over(model) {
                let request = model.waiting.remove(next);
                self.finish(model, request);
                finished = true;
            } else {
                next += 1;
            }
        }
        finished
    }

    fn finish(&mut self, model: &mut Model, request: WaitingRequest) {
        match request {
            WaitingRequest::Load { version, reply } => {
                let result = load_result(model, version).unwrap_or(Ok(()));
                self.answer(reply, result.map(|()| LoadOutcome::Done));
            }
            WaitingRequest::Unload { version, reply } => {
                let is_loaded = model.versions.get(&version).is_some_and(|r| r.state() != State::Unloaded);
                let result = if is_loaded {
                    Err(conflict(format!("version {version} was loaded again before it was unloaded")))
                } else {
                    Ok(LoadOutcome::Done)
                };
                self.answer(reply, result);
            }
            WaitingRequest::Rollback { rollback, reply } => {
                let result = self.finish_rollback(model, &rollback);
                self.answer(reply, result);
            }
            WaitingRequest::LoadModel { actor, reply } => {
                let result = match model_load_result(model).unwrap_or(Ok(())) {
                    Ok(()) if model.stored.unloaded => self.set_model_unloaded(model, false, &actor),
                    result => result,
                };
                self.answer(reply, result);
            }
            WaitingRequest::UnloadModel { reply } => self.answer(reply, Ok(())),
            WaitingRequest::Promote { request, reply } => {
                let result = self.finish_return(model, *request);
                self.answer(reply, result);
            }
        }
    }

    // === push ===

    /// Gives a staged version of a model, of which this is stored, its name, and then writes the audit event.
    ///
    /// # Errors
    /// When the version exists, or the disk or the ledger fails. The version is not there then.
    fn land(&mut self, id: &VersionId, stored: &ModelState, actor: &Actor, staged: Staged) -> Result<Pushed, Failure> {
        if staged.place.exists() {
            return Err(exists(id));
        }
        let landed = staged.land(sync_directory).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => exists(id),
            _ => Failure::new(Code::Internal, "the version could not be put into the models directory")
                .with_internal(format!("push of {id}: {e}")),
        })?;
        if let Err(refused) = self.commit(stored, shared_push::event(id, actor)) {
            // A version without an audit event must not stay.
            return Err(match landed.take_back() {
                Ok(()) => refused,
                Err(error) => {
                    error!(model = %id.model, version = %id.version, %error, "a pushed version without an audit event cannot be removed");
                    let words = format!(
                        "version {} of model {} landed, but the ledger could not store the event, and the version could not be removed \
                         again",
                        id.version, id.model
                    );
                    Failure::new(Code::Internal, words).with_internal(format!("{}; {error}", refused.operator_text()))
                }
            });
        }
        info!(model = %id.model, version = %id.version, actor = actor.0, action = %Action::Push, "version");
        let not_synced = landed.not_synced.as_ref().map(|error| not_synced(id, error));
        Ok(Pushed { place: landed.place, not_synced })
    }
}

// === impl WaitingRequest ===

impl WaitingRequest {
    /// Whether it can be answered now.
    fn is_over(&self, model: &Model) -> bool {
        match self {
            WaitingRequest::Load { version, .. } => load_result(model, *version).is_some(),
            WaitingRequest::Promote { request, .. } => promote_is_over(model, request.version),
            WaitingRequest::Unload { version, .. } => {
                let is_unloaded = model.versions.get(version).is_none_or(|r| r.state() == State::Unloaded);
                is_unloaded || !model.stored.operator_unloaded.contains(version)
            }
            WaitingRequest::Rollback { rollback, .. } => rollback.is_over(model),
            WaitingRequest::LoadModel { .. } => model_load_result(model).is_some(),
            WaitingRequest::UnloadModel { .. } => {
                let is_unloaded = |r: &VersionRecord| r.state() == State::Unloaded;
                !model.is_out() || model.versions.values().all(is_unloaded)
            }
        }
    }
}

/// Whether a version of a retired model is loaded, or cannot be.
fn promote_is_over(model: &Model, version: Version) -> bool {
    match model.versions.get(&version).map(VersionRecord::state) {
        // It was unloaded with its model, and is about to be loaded.
        Some(State::Unloaded | State::Draining) => false,
        _ => load_result(model, version).is_some(),
    }
}

/// Begins to load a whole model again.
fn load_model(model: &mut Model, actor: Actor, reply: Reply<()>) {
    let now = Instant::now();
    // An operator asked, so failed versions are tried again at once.
    model.versions.values_mut().for_each(|record| record.retry_at = Some(now));
    model.evicted.clear();
    model.set_aside.clear();
    model.waiting.push(WaitingRequest::LoadModel { actor, reply });
}

/// The result of a load that an operator waits for. `None` while it is in progress.
pub(super) fn load_result(model: &Model, version: Version) -> Option<Result<(), Failure>> {
    let refused = || Some(Err(conflict(not_ready(model, version))));
    let Some(record) = model.versions.get(&version) else { return Some(Err(no_version(model, version))) };
    match record.state() {
        State::Ready | State::Serving => Some(Ok(())),
        State::Failed | State::Unloaded => refused(),
        State::Pending if !record.has_files() => refused(),
        _ => None,
    }
}

/// The result of loading a whole model: everything that its document names must be loaded. `None` while that is in progress.
fn model_load_result(model: &Model) -> Option<Result<(), Failure>> {
    let required = model.required();
    // Without a document the model can serve any version, so failures do not matter. But all versions are waited for.
    let versions: Vec<Version> =
        if required.is_empty() { model.versions.keys().copied().collect() } else { required.into_iter().collect() };
    let mut refused = None;
    for version in versions {
        match load_result(model, version)? {
            Ok(()) => {}
            Err(_) if model.document.is_none() => {}
            Err(failure) => refused = Some(failure),
        }
    }
    Some(refused.map_or(Ok(()), Err))
}

fn exists(id: &VersionId) -> Failure {
    conflict(format!(
        "model {} already has a version {}; versions are immutable: use the next number",
        id.model, id.version
    ))
}

fn not_synced(id: &VersionId, error: &io::Error) -> Failure {
    let words = format!(
        "version {} of model {} is in place and is being loaded, but the disk did not confirm it: a power loss may remove it. Push \
         it again only if it is gone",
        id.version, id.model
    );
    Failure::new(Code::Internal, words)
        .with_internal(format!("push of {id}: cannot sync the model's directory: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_sync_reports_a_version_that_is_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let failing = |_: &std::path::Path| Err(io::Error::other("the disk does not answer"));
        let landed = Staged::fixture(dir.path(), "m", "3").land(failing).unwrap();
        assert!(dir.path().join("m/3/model.onnx").exists(), "the rename was made");
        let id = VersionId { model: "m".parse().unwrap(), version: "3".parse().unwrap() };
        let failure = not_synced(&id, landed.not_synced.as_ref().unwrap());
        assert!(failure.message.contains("version 3 of model m is in place"), "{failure:?}");
        assert_eq!(failure.code, Code::Internal);
        landed.take_back().unwrap();
        assert!(!dir.path().join("m").exists(), "the directory that was made for it goes too");
    }

    #[test]
    fn a_version_that_cannot_land_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let staged = Staged::fixture(dir.path(), "m", "3");
        std::fs::create_dir_all(dir.path().join("m/3")).unwrap();
        std::fs::write(dir.path().join("m/3/model.onnx"), "another").unwrap();
        staged.land(sync_directory).unwrap_err();
        assert_eq!(std::fs::read_to_string(dir.path().join("m/3/model.onnx")).unwrap(), "another");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the staging directory is gone");
    }
}
