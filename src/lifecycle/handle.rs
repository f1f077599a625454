//! The operators' way to the manager.

use crate::ledger::Action;
use crate::model::{Code, Failure, ModelName, Version};
use crate::model_settings::{Gates, Verdict};
use crate::route::{Document, Proposal};
use serde::Serialize;
use std::path::PathBuf;
use tokio::sync::{mpsc, oneshot};

/// Who asked, for the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Actor(pub String);

/// A promotion, as an operator asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Promote {
    pub version: Version,
    pub reason: String,
    pub dry_run: bool,
    pub allow_signature_change: bool,
    /// `None`: those of `model.toml`.
    pub gates: Option<Gates>,
    pub actor: Actor,
}

/// What a promote did, or would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Promotion {
    pub model: ModelName,
    /// The heaviest version before; `None` where there was no document.
    pub from: Option<Version>,
    /// The heaviest version after.
    pub to: Version,
    /// The revision after; unchanged when nothing had to change, and for a dry run.
    pub revision: u64,
    /// False when the version already served alone, and for a dry run.
    pub changed: bool,
    /// For a dry run: the document there would be.
    pub would_be: Option<Document>,
    /// On each gate; none where none are asked for, and where nothing has to change.
    pub gates: Vec<Verdict>,
}

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    pub model: ModelName,
    /// The heaviest version before.
    pub from: Option<Version>,
    /// The heaviest version after.
    pub to: Version,
    pub revision: u64,
    /// The versions that had to be loaded for it.
    pub loaded: Vec<Version>,
}

/// A traffic document in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    pub revision: u64,
    pub document: Document,
}

/// A rollout's move: where it stands from now on, and the document that goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutCommit {
    /// The revision that must be in force; any, where only the rollout's own standing is kept.
    pub at: Option<u64>,
    pub document: Option<Document>,
    /// JSON, kept in the same transaction.
    pub state: String,
    pub allow_signature_change: bool,
    pub action: Action,
    pub reason: Option<String>,
}

/// How a load or unload stands when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadOutcome {
    /// Done: the version is in the state asked for.
    Done,
    /// Taken up, and going on; only when asked not to wait.
    Accepted,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// What operators ask of the manager.
#[derive(Debug)]
pub(super) enum Command {
    Promote {
        model: ModelName,
        ask: Promote,
        reply: Reply<Promotion>,
    },
    Rollback {
        model: ModelName,
        reason: String,
        actor: Actor,
        reply: Reply<RolledBack>,
    },
    PutTraffic {
        model: ModelName,
        proposal: Box<Proposal>,
        if_match: Option<Vec<u64>>,
        actor: Actor,
        reply: Reply<Published>,
    },
    RolloutCommit {
        model: ModelName,
        steer: Box<RolloutCommit>,
        actor: Actor,
        reply: Reply<u64>,
    },
    Load {
        model: ModelName,
        version: Version,
        wait: bool,
        actor: Actor,
        reply: Reply<LoadOutcome>,
    },
    Unload {
        model: ModelName,
        version: Version,
        wait: bool,
        actor: Actor,
        reply: Reply<LoadOutcome>,
    },
    LoadModel {
        model: ModelName,
        actor: Actor,
        reply: Reply<()>,
    },
    UnloadModel {
        model: ModelName,
        actor: Actor,
        reply: Reply<()>,
    },
    Push {
        model: ModelName,
        version: Version,
        staged: PathBuf,
        actor: Actor,
        reply: Reply<()>,
    },
}

/// Speaks to the manager; cheap to clone. Every method answers once the change is durable and published, or refused.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Bounded; an operator's call waits for room.
    pub(super) commands: mpsc::Sender<super::manager::Event>,
}

impl Handle {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Failure::new(Code::Draining, "the server is stopping");
        self.commands.send(super::manager::Event::Command(command(reply))).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Sends all un-pinned requests to a version. Promoting what already serves alone changes nothing.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `VERSION_NOT_FOUND`; `CONFLICT` when the version is not ready or serving, its signature breaks callers, or
    /// (but for a dry run) it does not pass the gates.
    pub async fn promote(&self, model: ModelName, ask: Promote) -> Result<Promotion, Failure> {
        self.ask(|reply| Command::Promote { model, ask, reply }).await
    }

    /// Puts back the document before the last change; itself a change. A version it names that is not loaded is loaded first.
    ///
    /// # Errors
    /// `CONFLICT` when there is no document before, or a version it names cannot be made ready.
    pub async fn rollback(&self, model: ModelName, reason: String, actor: Actor) -> Result<RolledBack, Failure> {
        self.ask(|reply| Command::Rollback { model, reason, actor, reply }).await
    }

    /// Replaces the traffic document. `if_match`: the revisions one of which must be in force.
    ///
    /// # Errors
    /// `PRECONDITION_FAILED` when `if_match` is stale; `CONFLICT` when a version named is not ready, or a signature breaks callers.
    pub async fn put_traffic(
        &self,
        model: ModelName,
        proposal: Proposal,
        if_match: Option<Vec<u64>>,
        actor: Actor,
    ) -> Result<Published, Failure> {
        self.ask(|reply| Command::PutTraffic { model, proposal: Box::new(proposal), if_match, actor, reply }).await
    }

    /// Moves a rollout on; answers the revision in force afterwards.
    ///
    /// # Errors
    /// `CONFLICT` when another revision is in force, a version named is not ready, or a signature breaks callers.
    pub async fn commit_rollout(&self, model: ModelName, steer: RolloutCommit, actor: Actor) -> Result<u64, Failure> {
        self.ask(|reply| Command::RolloutCommit { model, steer: Box::new(steer), actor, reply }).await
    }

    /// Loads a version that was unloaded or failed; answers when it is ready (or, without `wait`, when it is taken up).
    ///
    /// # Errors
    /// `VERSION_NOT_FOUND` when the source has no such version; `CONFLICT` with stage and reason when it fails.
    pub async fn load(
        &self,
        model: ModelName,
        version: Version,
        wait: bool,
        actor: Actor,
    ) -> Result<LoadOutcome, Failure> {
        self.ask(|reply| Command::Load { model, version, wait, actor, reply }).await
    }

    /// Unloads a version and keeps it unloaded until it is loaded again; answers when its memory is given back.
    ///
    /// # Errors
    /// `CONFLICT` when the traffic document names it.
    pub async fn unload(
        &self,
        model: ModelName,
        version: Version,
        wait: bool,
        actor: Actor,
    ) -> Result<LoadOutcome, Failure> {
        self.ask(|reply| Command::Unload { model, version, wait, actor, reply }).await
    }

    /// Brings a whole model back (Triton's repository `load`): reloads what the document names, and the rest.
    pub async fn load_model(&self, model: ModelName, actor: Actor) -> Result<(), Failure> {
        self.ask(|reply| Command::LoadModel { model, actor, reply }).await
    }

    /// Takes a whole model out (Triton's repository `unload`); its document is kept, requests get `NOT_READY`.
    pub async fn unload_model(&self, model: ModelName, actor: Actor) -> Result<(), Failure> {
        self.ask(|reply| Command::UnloadModel { model, actor, reply }).await
    }

    /// Adds a version from a file already on the models directory's file system; lands whole or not at all. `staged` is moved.
    ///
    /// # Errors
    /// `CONFLICT` when the version exists; `INVALID_REQUEST` when the file is no ONNX model.
    pub async fn push(&self, model: ModelName, version: Version, staged: PathBuf, actor: Actor) -> Result<(), Failure> {
        self.ask(|reply| Command::Push { model, version, staged, actor, reply }).await
    }
}
