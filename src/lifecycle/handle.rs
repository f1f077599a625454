//! How operators send requests to the manager.

use super::manager::Event;
use super::peers::{FollowOutcome, Followed};
use super::set_aside::SetAside;
use super::shared_push::{CheckedPush, PushReply};
use crate::ledger::{Action, Note, Retirement, Review, SharedModel, TokenChange};
use crate::model::{Code, Failure, ModelName, Version, VersionId};
use crate::model_settings::{Gates, Verdict};
use crate::registry::Stage;
use crate::route::{Document, Proposal};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use tokio::sync::{mpsc, oneshot};

/// Who made a change, for the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Actor(pub String);

/// A request to promote a version.
#[derive(Debug, Clone, PartialEq)]
pub struct Promote {
    pub version: Version,
    pub reason: String,
    pub dry_run: bool,
    pub allow_signature_change: bool,
    /// `None`: the gates of `model.toml`.
    pub gates: Option<Gates>,
    /// Promote although nobody approved the version. For admins.
    pub break_glass: bool,
    /// One of these revisions must be in force. `None`: any.
    pub if_match: Option<Vec<u64>>,
    /// A label that becomes the version's in the same change.
    pub label: Option<String>,
    /// The share of the gateways of a fleet that must have the version ready, over 0 and up to 1. `None`: all.
    pub quorum: Option<f64>,
    pub actor: Actor,
}

/// The result of a promotion, or of its dry run.
#[derive(Debug, Clone, PartialEq)]
pub struct Promotion {
    pub model: ModelName,
    /// The heaviest version before. `None` where none served: there was no document, or the model was retired.
    pub from: Option<Version>,
    /// The heaviest version after.
    pub to: Version,
    /// The revision after. The same as before when nothing had to change, and for a dry run.
    pub revision: u64,
    /// False when the version already served alone, and for a dry run.
    pub changed: bool,
    /// The model was retired, and is served again. For a dry run: it would be.
    pub returns: bool,
    /// The document before. `None` where there was none, or the model was retired.
    pub before: Option<Document>,
    /// The document after. For a dry run: the one that the promotion would put in force.
    pub after: Document,
    /// The verdict of each gate. Empty without gates, and where nothing has to change.
    pub gates: Vec<Verdict>,
}

/// A request to put an earlier traffic document in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// The revision whose document is put in force. `None`: the document before the last change.
    pub to_revision: Option<u64>,
    pub reason: String,
    pub dry_run: bool,
    /// Go back although nobody approved a version that would answer again. For admins.
    pub break_glass: bool,
    /// One of these revisions must be in force. `None`: any.
    pub if_match: Option<Vec<u64>>,
    pub actor: Actor,
}

/// The result of a rollback, or of its dry run.
#[derive(Debug, Clone, PartialEq)]
pub struct RolledBack {
    pub model: ModelName,
    /// The heaviest version before.
    pub from: Option<Version>,
    /// The heaviest version after.
    pub to: Version,
    /// The revision after. The same as before for a dry run.
    pub revision: u64,
    /// The revision whose document is in force again.
    pub restored: u64,
    /// The document before. `None` where none was in force, or it could not be read.
    pub before: Option<Document>,
    /// The document after.
    pub after: Document,
    /// The versions that had to be loaded first. For a dry run: that would have to be.
    pub loaded: Vec<Version>,
}

/// A review of a version's files.
#[derive(Debug, Clone, PartialEq)]
pub struct ReviewRequest {
    pub version: Version,
    /// Identifies the files that the reviewer saw. With other ones it is refused.
    pub artifact: Option<String>,
    pub approved: bool,
    pub reason: String,
    /// What the reviewer saw.
    pub evidence: serde_json::Value,
    pub actor: Actor,
}

/// The approval of a version.
#[derive(Debug, Clone, PartialEq)]
pub struct ApprovalState {
    /// Whether the version gets un-pinned traffic only with an approval.
    pub required: bool,
    /// Identifies the files that are loaded; `None` while it is not loaded.
    pub artifact: Option<String>,
    pub review: Option<Review>,
    /// Who pushed it or asked for its traffic.
    pub proposers: BTreeSet<String>,
}

/// A stored review.
#[derive(Debug, Clone, PartialEq)]
pub struct Reviewed {
    pub model: ModelName,
    pub version: Version,
    pub review: Review,
}

/// The result of a retirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    pub model: ModelName,
    pub revision: u64,
    pub retirement: Retirement,
    /// False when the model was retired already.
    pub changed: bool,
}

/// A traffic document in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    pub revision: u64,
    pub document: Document,
}

/// One step of a rollout: its new state, and the document that goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutCommit {
    /// The revision that must be in force. `None` where only the rollout's state is stored.
    pub at: Option<u64>,
    pub document: Option<Document>,
    /// The version that the rollout moves traffic to.
    pub candidate: Version,
    /// JSON, stored in the same transaction.
    pub state: String,
    pub allow_signature_change: bool,
    /// Give the candidate traffic although nobody approved it. An admin asked for that when the rollout began.
    pub break_glass: bool,
    pub action: Action,
    pub reason: Option<String>,
}

/// How far a load or unload is when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadOutcome {
    /// The version is in the requested state.
    Done,
    /// The request is accepted and in progress. Only when the caller does not wait.
    Accepted,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// An operator's request.
#[derive(Debug)]
pub(super) enum Command {
    Promote {
        model: ModelName,
        request: Promote,
        reply: Reply<Promotion>,
    },
    Rollback {
        model: ModelName,
        request: Rollback,
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
        commit: Box<RolloutCommit>,
        actor: Actor,
        reply: Reply<u64>,
    },
    Load {
        model: ModelName,
        version: Version,
        wait: bool,
        reason: Option<String>,
        actor: Actor,
        reply: Reply<LoadOutcome>,
    },
    Unload {
        model: ModelName,
        version: Version,
        wait: bool,
        reason: Option<String>,
        actor: Actor,
        reply: Reply<LoadOutcome>,
    },
    Retire {
        model: ModelName,
        reason: String,
        actor: Actor,
        reply: Reply<Retired>,
    },
    Approval {
        model: ModelName,
        version: Version,
        reply: Reply<ApprovalState>,
    },
    Review {
        model: ModelName,
        request: Box<ReviewRequest>,
        reply: Reply<Reviewed>,
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
        /// `None`: the next free number.
        version: Option<Version>,
        staged: PathBuf,
        /// The content of `model.sig`.
        signature: Option<String>,
        actor: Actor,
        /// Says whether the version is added, or its files are only checked.
        reply: PushReply,
    },
    /// The event of a push whose version is kept somewhere else.
    Pushed {
        id: VersionId,
        actor: Actor,
        reply: Reply<()>,
    },
    Token {
        change: Box<TokenChange>,
        reply: Reply<bool>,
    },
    /// Not an operator's: another gateway of the fleet made or revoked a token.
    FollowToken {
        change: Box<TokenChange>,
        reply: Reply<bool>,
    },
    /// Not an operator's: another gateway of the fleet changed the model.
    Follow {
        model: ModelName,
        followed: Box<Followed>,
        reply: Reply<FollowOutcome>,
    },
    /// Not an operator's: what a fleet shares, of all models.
    SharedStates {
        reply: Reply<Vec<(ModelName, SharedModel)>>,
    },
    /// Not an operator's: the times at which tokens were used.
    TokenUses(Vec<(String, Timestamp)>),
    /// Not an operator's: a thread that watches runs asks for it, and waits for nothing.
    SetAside(SetAside),
    Note {
        note: Note,
        reply: Reply<u64>,
    },
}

impl Command {
    /// Answers it with a failure, without carrying it out.
    pub(super) fn refuse(self, failure: Failure) {
        // A send fails only when the caller no longer waits.
        match self {
            Command::Promote { reply, .. } => drop(reply.send(Err(failure))),
            Command::Rollback { reply, .. } => drop(reply.send(Err(failure))),
            Command::PutTraffic { reply, .. } => drop(reply.send(Err(failure))),
            Command::RolloutCommit { reply, .. } | Command::Note { reply, .. } => drop(reply.send(Err(failure))),
            Command::Retire { reply, .. } => drop(reply.send(Err(failure))),
            Command::Approval { reply, .. } => drop(reply.send(Err(failure))),
            Command::Review { reply, .. } => drop(reply.send(Err(failure))),
            Command::Load { reply, .. } | Command::Unload { reply, .. } => drop(reply.send(Err(failure))),
            Command::LoadModel { reply, .. } | Command::UnloadModel { reply, .. } | Command::Pushed { reply, .. } => {
                drop(reply.send(Err(failure)));
            }
            Command::Push { reply: PushReply::Added(reply), .. } => drop(reply.send(Err(failure))),
            Command::Push { reply: PushReply::Checked(reply), .. } => drop(reply.send(Err(failure))),
            Command::Token { reply, .. } | Command::FollowToken { reply, .. } => drop(reply.send(Err(failure))),
            Command::Follow { reply, .. } => drop(reply.send(Err(failure))),
            Command::SharedStates { reply } => drop(reply.send(Err(failure))),
            Command::SetAside(_) | Command::TokenUses(_) => {}
        }
    }
}

/// The answer to requests while the server stops.
pub(super) fn stopping() -> Failure {
    Failure::new(Code::Draining, "the server is stopping")
}

/// The answer when the manager ended without answering, which only a panic causes.
fn ended() -> Failure {
    let words =
        "the manager ended before it answered; the change may have been made or not: restart the server and look";
    Failure::new(Code::Internal, words)
}

/// Sends requests to the manager. Cheap to clone. Every method returns once the change is durable and published, or refused.
///
/// A request that was sent is carried out even if its future is dropped: the manager does not need the caller.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Bounded. A call waits while it is full.
    pub(super) commands: mpsc::Sender<Event>,
}

impl Handle {
    async fn send<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Event::Command(command(reply))).await.map_err(|_| stopping())?;
        // A manager that stops refuses its callers. One that panicked drops the reply.
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Sends all requests without a version to one version. A version of a retired model is loaded first. Promoting a version that already serves alone changes nothing.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `VERSION_NOT_FOUND`; `CONFLICT` when the version is not ready or serving, its signature breaks callers, or
    /// it fails a gate (except in a dry run).
    pub async fn promote(&self, model: ModelName, request: Promote) -> Result<Promotion, Failure> {
        self.send(|reply| Command::Promote { model, request, reply }).await
    }

    /// Restores the document before the last change, which is itself a change. Versions that it names are loaded first.
    ///
    /// # Errors
    /// `CONFLICT` when there is no earlier document, or a version that it names cannot be loaded.
    pub async fn rollback(&self, model: ModelName, request: Rollback) -> Result<RolledBack, Failure> {
        self.send(|reply| Command::Rollback { model, request, reply }).await
    }

    /// Replaces the traffic document. `if_match`: one of these revisions must be in force.
    ///
    /// # Errors
    /// `PRECONDITION_FAILED` when `if_match` is stale; `CONFLICT` when a named version is not ready, or a signature breaks callers.
    pub async fn put_traffic(
        &self,
        model: ModelName,
        proposal: Proposal,
        if_match: Option<Vec<u64>>,
        actor: Actor,
    ) -> Result<Published, Failure> {
        self.send(|reply| Command::PutTraffic { model, proposal: Box::new(proposal), if_match, actor, reply }).await
    }

    /// Stores a step of a rollout. Returns the revision in force afterwards.
    ///
    /// # Errors
    /// `CONFLICT` when another revision is in force, a named version is not ready, or a signature breaks callers.
    pub async fn commit_rollout(&self, model: ModelName, commit: RolloutCommit, actor: Actor) -> Result<u64, Failure> {
        self.send(|reply| Command::RolloutCommit { model, commit: Box::new(commit), actor, reply }).await
    }

    /// Puts the state of a model in force that another gateway of the fleet has.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when its document cannot be read, `INTERNAL` when the ledger cannot store it.
    pub async fn follow(&self, model: ModelName, followed: Followed) -> Result<FollowOutcome, Failure> {
        self.send(|reply| Command::Follow { model, followed: Box::new(followed), reply }).await
    }

    /// What a fleet shares of all models that anything is stored about.
    ///
    /// # Errors
    /// When the manager is ending.
    pub async fn shared_states(&self) -> Result<Vec<(ModelName, SharedModel)>, Failure> {
        self.send(|reply| Command::SharedStates { reply }).await
    }

    /// Loads a version that was unloaded or failed. Returns when it is ready, or, without `wait`, when the request is accepted.
    ///
    /// # Errors
    /// `VERSION_NOT_FOUND` when the models directory has no such version; `CONFLICT` with stage and reason when it fails.
    pub async fn load(
        &self,
        model: ModelName,
        version: Version,
        wait: bool,
        reason: Option<String>,
        actor: Actor,
    ) -> Result<LoadOutcome, Failure> {
        self.send(|reply| Command::Load { model, version, wait, reason, actor, reply }).await
    }

    /// Unloads a version and keeps it unloaded until it is loaded again. Returns when its memory is freed.
    ///
    /// # Errors
    /// `CONFLICT` when the traffic document names it.
    pub async fn unload(
        &self,
        model: ModelName,
        version: Version,
        wait: bool,
        reason: Option<String>,
        actor: Actor,
    ) -> Result<LoadOutcome, Failure> {
        self.send(|reply| Command::Unload { model, version, wait, reason, actor, reply }).await
    }

    /// Retires a model: its versions are unloaded and stay unloaded, also after a restart, and its requests are answered
    /// `MODEL_NOT_FOUND` with the reason. Its document, history and files stay. A promotion undoes it.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub async fn retire(&self, model: ModelName, reason: String, actor: Actor) -> Result<Retired, Failure> {
        self.send(|reply| Command::Retire { model, reason, actor, reply }).await
    }

    /// The approval of a version. Changes nothing.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `VERSION_NOT_FOUND`.
    pub async fn approval(&self, model: ModelName, version: Version) -> Result<ApprovalState, Failure> {
        self.send(|reply| Command::Approval { model, version, reply }).await
    }

    /// Approves or rejects the files of a loaded version.
    ///
    /// # Errors
    /// `CONFLICT` when it is not loaded or has other files than the reviewer saw; `FORBIDDEN` when the actor pushed it or asked for its
    /// traffic.
    pub async fn review(&self, model: ModelName, request: ReviewRequest) -> Result<Reviewed, Failure> {
        self.send(|reply| Command::Review { model, request: Box::new(request), reply }).await
    }

    /// Loads a whole model again (Triton's repository `load`): the versions that the document names, and the others.
    pub async fn load_model(&self, model: ModelName, actor: Actor) -> Result<(), Failure> {
        self.send(|reply| Command::LoadModel { model, actor, reply }).await
    }

    /// Unloads a whole model (Triton's repository `unload`). Its document stays, and requests get `NOT_READY`.
    pub async fn unload_model(&self, model: ModelName, actor: Actor) -> Result<(), Failure> {
        self.send(|reply| Command::UnloadModel { model, actor, reply }).await
    }

    /// Takes a loaded version out of service because its runs do not end (`stuck`) or it ended the process (`crashed`): `failed` with
    /// this stage and reason. Requests for it are answered 503 with the reason. Its memory is freed when no run holds it any more,
    /// and nothing waits for that. It stays so until an operator loads it, its files change, or the process ends. A version that is
    /// not loaded yet is not loaded.
    ///
    /// Never waits. Returns false when the manager's queue is full or the manager has ended: the caller may try again later.
    /// `reason` is shown to callers, so it names no files.
    #[must_use]
    pub fn set_aside(&self, model: ModelName, version: Version, stage: Stage, reason: String) -> bool {
        let aside = SetAside { id: VersionId { model, version }, stage, reason, recorded: false };
        self.commands.try_send(Event::Command(Command::SetAside(aside))).is_ok()
    }

    /// Makes or revokes a token; in a fleet, on all gateways. False when the name is taken, or there is no such token.
    ///
    /// # Errors
    /// `INTERNAL` when it cannot be stored; in a fleet, `CONFLICT` when another gateway was faster, and `NOT_READY` when it cannot be reached.
    pub async fn change_token(&self, change: TokenChange) -> Result<bool, Failure> {
        self.send(|reply| Command::Token { change: Box::new(change), reply }).await
    }

    /// Stores what another gateway of the fleet did with a token. False when nothing had to be changed.
    ///
    /// # Errors
    /// `INTERNAL` when it cannot be stored.
    pub async fn follow_token(&self, change: TokenChange) -> Result<bool, Failure> {
        self.send(|reply| Command::FollowToken { change: Box::new(change), reply }).await
    }

    /// Stores when tokens were used. Never waits: where the manager's queue is full, this is left out.
    pub fn store_token_uses(&self, uses: Vec<(String, Timestamp)>) {
        if !uses.is_empty() {
            let _ = self.commands.try_send(Event::Command(Command::TokenUses(uses)));
        }
    }

    /// Stores an event of the audit trail that changes nothing else. Returns its number.
    ///
    /// # Errors
    /// When the ledger cannot store it.
    pub async fn note(&self, note: Note) -> Result<u64, Failure> {
        self.send(|reply| Command::Note { note, reply }).await
    }

    /// Adds a version from a file or a directory on the file system of the models directory, whole or not at all. Returns its number. `staged` is
    /// moved: a model file, or a directory with all files of the version. `version`: `None` for the next free number, which is chosen when the
    /// version gets its name, so that no two pushes get the same one. `signature` is the content of its `model.sig`.
    ///
    /// # Errors
    /// `CONFLICT` when the version exists; `INVALID_REQUEST` when the file is not an ONNX model, or is not signed where that is asked for.
    pub async fn push(
        &self,
        model: ModelName,
        version: Option<Version>,
        staged: PathBuf,
        signature: Option<String>,
        actor: Actor,
    ) -> Result<Version, Failure> {
        let command =
            |reply| Command::Push { model, version, staged, signature, actor, reply: PushReply::Added(reply) };
        self.send(command).await
    }

    /// Checks the files of a push as [`Handle::push`] does, and adds nothing: the version is kept somewhere else.
    ///
    /// # Errors
    /// As [`Handle::push`].
    pub async fn check_push(
        &self,
        model: ModelName,
        version: Option<Version>,
        staged: PathBuf,
        signature: Option<String>,
        actor: Actor,
    ) -> Result<CheckedPush, Failure> {
        let command =
            |reply| Command::Push { model, version, staged, signature, actor, reply: PushReply::Checked(reply) };
        self.send(command).await
    }

    /// Stores the event of a push whose version is kept somewhere else.
    ///
    /// # Errors
    /// When the ledger cannot store it.
    pub async fn pushed(&self, id: VersionId, actor: Actor) -> Result<(), Failure> {
        self.send(|reply| Command::Pushed { id, actor, reply }).await
    }
}
