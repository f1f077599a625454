//! What operators ask of single versions and whole models, and how it is answered when it is done.

use super::drain::Late;
use super::handle::{Actor, Command, LoadOutcome, Reply};
use super::journal;
use super::loaders::Work;
use super::manager::{Manager, conflict};
use super::push::{Push, Staged};
use super::table::{Life, Model, Op};
use super::traffic::{no_model, no_version, not_ready, refuse_taken_out};
use crate::ledger::{Action, Change, Effect};
use crate::model::{Code, Failure, ModelName, Version, VersionId};
use crate::registry::State;
use crate::source::{Found, look_at_version};
use crate::telemetry::names;
use std::io;
use std::path::PathBuf;
use std::time::Instant;
use tracing::info;

impl Manager {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Promote { model, ask, reply } => {
                self.at_once(&model, reply, |this, model| this.promote(model, ask));
            }
            Command::PutTraffic { model, proposal, if_match, actor, reply } => {
                self.at_once(&model, reply, |this, model| {
                    this.put_traffic(model, *proposal, if_match.as_deref(), actor)
                });
            }
            Command::RolloutCommit { model, steer, actor, reply } => {
                self.at_once(&model, reply, |this, model| this.commit_rollout(model, *steer, actor));
            }
            Command::Rollback { model, reason, actor, reply } => {
                self.in_time(&model, reply, |this, model, reply| this.rollback(model, reason, actor, reply));
            }
            Command::Load { model, version, wait, actor, reply } => {
                self.in_time(&model, reply, |this, model, reply| {
                    let taken_up = this.load(model, version, &actor);
                    let op = |reply| Op::Load { version, reply };
                    this.promise(model, taken_up, wait, reply, op);
                });
            }
            Command::Unload { model, version, wait, actor, reply } => {
                self.in_time(&model, reply, |this, model, reply| {
                    let taken_up = this.unload(model, version, &actor);
                    let op = |reply| Op::Unload { version, reply };
                    this.promise(model, taken_up, wait, reply, op);
                });
            }
            Command::LoadModel { model, actor, reply } => {
                self.in_time(&model, reply, |_, model, reply| load_model(model, actor, reply));
            }
            Command::UnloadModel { model, actor, reply } => {
                self.in_time(&model, reply, |this, model, reply| match this.unload_model(model, &actor) {
                    Ok(()) => model.ops.push(Op::UnloadModel { reply }),
                    Err(failure) => this.answer(reply, Err(failure)),
                });
            }
            Command::Push { model, version, staged, actor, reply } => {
                self.push(VersionId { model, version }, staged, actor, reply);
            }
        }
    }

    /// Does something to a model, and answers what it says.
    fn at_once<T: Send + 'static>(
        &mut self,
        name: &ModelName,
        reply: Reply<T>,
        what: impl FnOnce(&mut Manager, &mut Model) -> Result<T, Failure>,
    ) {
        self.in_time(name, reply, |this, model, reply| {
            let result = what(this, model);
            this.answer(reply, result);
        });
    }

    /// Does something to a model, which answers when it is done.
    fn in_time<T: Send + 'static>(
        &mut self,
        name: &ModelName,
        reply: Reply<T>,
        what: impl FnOnce(&mut Manager, &mut Model, Reply<T>),
    ) {
        // A name that nothing is known of but what the ledger kept is no model.
        let known = |m: &Model| !m.lives.is_empty() || m.document.is_some();
        let Some(mut model) = self.models.get(name).is_some_and(known).then(|| self.models.remove(name)).flatten()
        else {
            return self.answer(reply, Err(no_model(name)));
        };
        what(self, &mut model, reply);
        self.models.insert(name.clone(), model);
        self.touched.insert(name.clone());
    }

    fn promise(
        &mut self,
        model: &mut Model,
        taken_up: Result<(), Failure>,
        wait: bool,
        reply: Reply<LoadOutcome>,
        op: impl FnOnce(Reply<LoadOutcome>) -> Op,
    ) {
        match taken_up {
            Ok(()) if wait => model.ops.push(op(reply)),
            Ok(()) => self.answer(reply, Ok(LoadOutcome::Accepted)),
            Err(failure) => self.answer(reply, Err(failure)),
        }
    }

    // === one version ===

    fn load(&mut self, model: &mut Model, version: Version, actor: &Actor) -> Result<(), Failure> {
        refuse_taken_out(model)?;
        let Some(life) = model.lives.get(&version).filter(|l| l.found.is_some() || l.is_callable()) else {
            return Err(no_version(model, version));
        };
        let state = life.state();
        if matches!(state, State::Unloaded | State::Failed | State::Draining)
            || model.kept.operator_unloaded.contains(&version)
        {
            if !self.keep_loaded(model, version, actor, None)? {
                self.keep_event(model, Action::Load, actor, version)?;
            }
            model.asked.insert(version);
            model.evicted.remove(&version);
            let now = Instant::now();
            model.lives.entry(version).and_modify(|life| life.retry_at = Some(now));
        }
        Ok(())
    }

    /// Forgets that an operator unloaded a version; answers whether there was anything to forget.
    pub(super) fn keep_loaded(
        &mut self,
        model: &mut Model,
        version: Version,
        actor: &Actor,
        reason: Option<&str>,
    ) -> Result<bool, Failure> {
        if !model.kept.operator_unloaded.contains(&version) {
            return Ok(false);
        }
        let effect = Effect::SetOperatorUnloaded { version, unloaded: false };
        self.keep_change(model, Action::Load, actor, reason, version, effect)?;
        model.kept.operator_unloaded.remove(&version);
        Ok(true)
    }

    fn unload(&mut self, model: &mut Model, version: Version, actor: &Actor) -> Result<(), Failure> {
        if !model.lives.contains_key(&version) {
            return Err(no_version(model, version));
        }
        if model.named().contains(&version) {
            let words =
                format!("the traffic document of model {} names version {version}; take it out first", model.name);
            return Err(conflict(words));
        }
        if !model.kept.operator_unloaded.contains(&version) {
            let effect = Effect::SetOperatorUnloaded { version, unloaded: true };
            self.keep_change(model, Action::Unload, actor, None, version, effect)?;
            model.kept.operator_unloaded.insert(version);
        }
        model.asked.remove(&version);
        Ok(())
    }

    // === a whole model ===

    fn unload_model(&mut self, model: &mut Model, actor: &Actor) -> Result<(), Failure> {
        if !model.kept.taken_out {
            self.set_taken_out(model, true, actor)?;
        }
        Ok(())
    }

    fn set_taken_out(&mut self, model: &mut Model, taken_out: bool, actor: &Actor) -> Result<(), Failure> {
        let action = if taken_out { Action::UnloadModel } else { Action::LoadModel };
        let json = |taken_out: bool| Some(format!("{{\"taken_out\":{taken_out}}}"));
        let change = Change {
            model: model.name.clone(),
            actor: actor.0.clone(),
            action,
            reason: None,
            before: json(!taken_out),
            after: json(taken_out),
            effect: Effect::SetTakenOut(taken_out),
        };
        self.journal.commit(change).map_err(|e| journal::failure(&e))?;
        info!(model = %model.name, actor = actor.0, action = %action, "model");
        model.kept.taken_out = taken_out;
        Ok(())
    }

    // === the end of waiting ===

    /// Ends what operators wait for, where it can be ended; answers whether anything was.
    pub(super) fn advance(&mut self, model: &mut Model) -> bool {
        let mut ended = false;
        for op in std::mem::take(&mut model.ops) {
            match self.advance_one(model, op) {
                Some(op) => model.ops.push(op),
                None => ended = true,
            }
        }
        ended
    }

    fn advance_one(&mut self, model: &mut Model, op: Op) -> Option<Op> {
        match op {
            Op::Load { version, reply } => match loaded(model, version) {
                None => return Some(Op::Load { version, reply }),
                Some(result) => self.answer(reply, result.map(|()| LoadOutcome::Done)),
            },
            Op::Unload { version, reply } => match model.lives.get(&version).map(Life::state) {
                None | Some(State::Unloaded) => self.answer(reply, Ok(LoadOutcome::Done)),
                Some(_) if !model.kept.operator_unloaded.contains(&version) => {
                    let words = format!("version {version} was loaded again before it was unloaded");
                    self.answer(reply, Err(conflict(words)));
                }
                Some(_) => return Some(Op::Unload { version, reply }),
            },
            Op::Rollback { wish, reply } => match self.finish_rollback(model, &wish) {
                None => return Some(Op::Rollback { wish, reply }),
                Some(result) => self.answer(reply, result),
            },
            Op::LoadModel { actor, reply } => match self.model_is_back(model, &actor) {
                None => return Some(Op::LoadModel { actor, reply }),
                Some(result) => self.answer(reply, result),
            },
            Op::UnloadModel { reply } => {
                let out = model.lives.values().all(|life| matches!(life.state(), State::Unloaded));
                if model.kept.taken_out && !out {
                    return Some(Op::UnloadModel { reply });
                }
                self.answer(reply, Ok(()));
            }
        }
        None
    }

    /// Whether a model that is coming back can answer again: everything its document names is loaded. `None` while it is not.
    fn model_is_back(&mut self, model: &mut Model, actor: &Actor) -> Option<Result<(), Failure>> {
        let named = model.named();
        // Without a document there is nothing to wait for before it serves, but there is before this is answered.
        let needed: Vec<Version> =
            if named.is_empty() { model.lives.keys().copied().collect() } else { named.into_iter().collect() };
        let mut refused = None;
        for version in needed {
            match loaded(model, version)? {
                Ok(()) => {}
                Err(_) if model.document.is_none() => {}
                Err(failure) => refused = Some(failure),
            }
        }
        match refused {
            Some(failure) => Some(Err(failure)),
            None if model.kept.taken_out => Some(self.set_taken_out(model, false, actor)),
            None => Some(Ok(())),
        }
    }

    // === push ===

    fn push(&mut self, id: VersionId, file: PathBuf, actor: Actor, reply: Reply<()>) {
        let model = self.models.get(&id.model);
        let known = model.and_then(|m| m.lives.get(&id.version)).is_some_and(|l| l.found.is_some() || l.is_callable());
        if known {
            let _ = std::fs::remove_file(&file);
            return self.answer(reply, Err(exists(&id)));
        }
        let engine = model.map(|m| m.settings.engine).unwrap_or_default();
        let bytes = std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let try_it = self.budget.missing(bytes) == 0;
        let root = self.config.models_dir.clone();
        self.errands.push_back(Work::Stage(Box::new(Push { id, root, file, engine, try_it, actor, reply })));
    }

    pub(super) fn staged(&mut self, push: Push, staged: Result<Staged, Failure>) {
        let Push { id, actor, reply, .. } = push;
        let result = staged.and_then(|staged| self.land(&id, &actor, staged));
        if let Ok(place) = &result {
            // Known at once, so that whoever pushed it can ask for it; it landed whole, so there is nothing to wait for.
            let found = Found { still: true, ..look_at_version(place) };
            let mut model = self.models.remove(&id.model).unwrap_or_else(|| Model::new(id.model.clone()));
            if !model.lives.contains_key(&id.version) {
                self.add(&mut model, id.version);
            }
            if let Some(life) = model.lives.get_mut(&id.version) {
                life.found = Some(found);
            }
            self.models.insert(id.model.clone(), model);
            self.touched.insert(id.model.clone());
        }
        self.source.model(id.model);
        self.answer(reply, result.map(drop));
    }

    /// Answers where the version is now.
    fn land(&mut self, id: &VersionId, actor: &Actor, staged: Staged) -> Result<PathBuf, Failure> {
        if staged.place.exists() {
            return Err(exists(id));
        }
        let after = format!("{{\"version\":\"{}\"}}", id.version);
        let change = Change {
            model: id.model.clone(),
            actor: actor.0.clone(),
            action: Action::Push,
            reason: None,
            before: None,
            after: Some(after),
            effect: Effect::None,
        };
        self.journal.commit(change).map_err(|e| journal::failure(&e))?;
        let place = staged.place.clone();
        staged.land().map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => exists(id),
            _ => Failure::new(Code::Internal, "the version could not be put into the models directory")
                .with_internal(format!("push of {id}: {e}")),
        })?;
        info!(model = %id.model, version = %id.version, actor = actor.0, action = %Action::Push, "version");
        Ok(place)
    }

    // === helpers ===

    fn keep_event(&mut self, model: &Model, action: Action, actor: &Actor, version: Version) -> Result<(), Failure> {
        self.keep_change(model, action, actor, None, version, Effect::None)
    }

    fn keep_change(
        &mut self,
        model: &Model,
        action: Action,
        actor: &Actor,
        reason: Option<&str>,
        version: Version,
        effect: Effect,
    ) -> Result<(), Failure> {
        let state = model.lives.get(&version).map_or("unknown", |life| life.state().as_str());
        let change = Change {
            model: model.name.clone(),
            actor: actor.0.clone(),
            action,
            reason: reason.map(str::to_owned),
            before: Some(format!("{{\"version\":\"{version}\",\"state\":\"{state}\"}}")),
            after: None,
            effect,
        };
        self.journal.commit(change).map_err(|e| journal::failure(&e))?;
        info!(model = %model.name, %version, actor = actor.0, action = %action, "version");
        Ok(())
    }

    /// Says that requests still hold a version past its deadline.
    pub(super) fn late(&mut self, late: Late) {
        let Late { serial, id, in_flight } = late;
        tracing::warn!(model = %id.model, version = %id.version, in_flight, "requests still hold the version after drain_timeout");
        let words = format!("{in_flight} requests held it past drain_timeout; its memory goes when they end");
        self.telemetry.process().counter(&names::STAGE_FAILURES, &[("stage", "drain")]).increment(1);
        self.unloaded(&id, serial, Some(words));
    }
}

/// Begins to bring a whole model back; it ends in [`Manager::model_is_back`].
fn load_model(model: &mut Model, actor: Actor, reply: Reply<()>) {
    let now = Instant::now();
    // An operator's wish: what failed is tried once more, at once.
    model.lives.values_mut().for_each(|life| life.retry_at = Some(now));
    model.evicted.clear();
    model.ops.push(Op::LoadModel { actor, reply });
}

/// How a version that somebody wants loaded stands; `None` while it is on its way.
fn loaded(model: &Model, version: Version) -> Option<Result<(), Failure>> {
    let refused = || Some(Err(conflict(not_ready(model, version))));
    let Some(life) = model.lives.get(&version) else { return Some(Err(no_version(model, version))) };
    match life.state() {
        State::Ready | State::Serving => Some(Ok(())),
        State::Failed | State::Unloaded => refused(),
        State::Pending if !life.has_files() => refused(),
        _ => None,
    }
}

fn exists(id: &VersionId) -> Failure {
    conflict(format!(
        "model {} has a version {} already; versions are immutable: take the next number",
        id.model, id.version
    ))
}
