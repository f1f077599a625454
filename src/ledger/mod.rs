//! ledger: everything that must survive a restart: traffic documents, their history, the audit trail, rollout states.
//!
//! - [`open`](fn@open) locks the data directory for this process and returns one [`LedgerWriter`] (owned by the manager, not `Clone`) and a
//!   [`LedgerReader`] (`Clone`, for any thread).
//! - [`LedgerWriter::commit`] is one transaction. After `Ok`, the change and its audit event are both on disk (SQLite,
//!   `synchronous=FULL`). After an error, neither is.
//! - A commit fails when the database file was removed or replaced while the server runs: nobody would find the change later.
//! - Each event carries the hash of the one before ([`chain`]), so that [`verify`] finds an event that was altered, removed, inserted or
//!   moved. The hash is written in the transaction of its event. [`Head`]s that are kept elsewhere also show that the end was cut off.
//! - The trails of all gateways of a fleet are one chain elsewhere ([`FleetEvent`]), which [`FleetVerifier`] verifies.
//! - A model's revisions are 1, 2, 3, … without gaps. A rollback goes to the document before the last change. All steps of one
//!   rollout count as one change. A rollback is itself a change, so two rollbacks in a row cancel each other.
//! - One unreadable row disables one model, never the start ([`ModelState::unreadable`]).
//! - Every call blocks: a commit for a few milliseconds, a query for microseconds. Never call it on a thread that answers predictions.
//!
//! Uses: model.
//!
//! Invariant: documents are opaque JSON here. Nothing here knows which version serves.
//!
//! To store something new: add a migration at the end of `MIGRATIONS` (never change a released one), a field of [`ModelState`] and a
//! variant of [`Effect`].

mod chain;
mod error;
mod identity;
mod lock;
mod open;
mod reader;
mod rows;
mod shared;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_chain;
mod together;
mod tokens;
mod verify;
mod writer;

pub use chain::Head;
pub use error::LedgerError;
pub use open::{open, open_for_reading};
pub use reader::{AuditQuery, Event, HistoryEntry, LedgerReader};
pub use shared::{Replaced, SharedModel};
pub use together::{FleetEvent, FleetLine, FleetVerified, FleetVerifier};
pub use tokens::{StoredToken, TokenChange, TokenEffect};
#[cfg(test)]
pub(crate) use verify::ProblemKind;
pub use verify::{Heads, Verified, Verifier};
pub use writer::LedgerWriter;

use crate::model::{ModelName, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A change to one model, with the actor and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub model: ModelName,
    pub actor: String,
    pub action: Action,
    pub reason: Option<String>,
    /// The state before and after, as the audit trail shows them: JSON texts. Other text is refused.
    pub before: Option<String>,
    pub after: Option<String>,
    pub effect: Effect,
}

/// An event that changes nothing else that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `None`: it is about the server, not about a model.
    pub model: Option<ModelName>,
    pub actor: String,
    pub action: Action,
    pub reason: Option<String>,
    /// JSON texts. Other text is refused.
    pub before: Option<String>,
    pub after: Option<String>,
}

/// What a change writes, besides its audit event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A new traffic document, which makes a new revision.
    SetDocument {
        /// JSON. Other text is refused.
        document: String,
        /// The highest version that the document makes serve. The stored value never decreases.
        highest_served: Option<Version>,
        /// The version that `auto_promote` promoted. It is not promoted automatically a second time.
        auto_promoted: Option<Version>,
    },
    /// A rollout's state and, where it moves traffic, the traffic document: both or neither.
    SetRollout {
        /// JSON. Other text is refused.
        state: String,
        document: Option<NewDocument>,
    },
    /// Marks the whole model as unloaded or not. Its document stays.
    SetModelUnloaded(bool),
    /// Marks the model as retired, until it gets another document. Its document, where it has one, is stored as a revision of its own.
    Retire { document: Option<NewDocument> },
    /// Marks a version that an operator unloaded. It stays unloaded until an operator loads it again.
    SetOperatorUnloaded { version: Version, unloaded: bool },
    /// A version became ready with these bytes. The first time writes no audit event. The same bytes change nothing. Other bytes
    /// replace the stored ones and write an audit event.
    RecordArtifact { version: Version, sha256: String, bytes: u64 },
    /// A version ended the process, with these files. Only the newest [`MAX_CRASHES`] of a version are kept.
    RecordCrash { version: Version, artifact: String, at: Timestamp },
    /// A version is not loaded again with these files.
    SetAside { version: Version, artifact: String, reason: String },
    /// A version may be loaded again, and its crashes no longer count. Writes no audit event.
    ForgiveCrashes { version: Version },
    /// Somebody looked at these files of a version and approved or rejected them. Replaces the version's review before.
    Review { version: Version, artifact: String, approved: bool },
    /// The actor pushed a version, or asked for its traffic, and so may not approve it.
    Propose { version: Version },
    /// Replaces what several gateways share by what another one has ([`SharedModel::replaced_by`]). `made_by`: the action there.
    Share { state: Box<SharedModel>, made_by: Option<String> },
    /// Only the audit event.
    None,
}

/// A traffic document that another change puts in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDocument {
    /// JSON. Other text is refused.
    pub document: String,
    /// The highest version that it makes serve.
    pub highest_served: Option<Version>,
}

/// The kind of a change, as the audit trail spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Promote,
    Rollback,
    PutTraffic,
    Load,
    Unload,
    LoadModel,
    UnloadModel,
    Retire,
    Push,
    /// The document that a new model gets automatically.
    FirstDocument,
    AutoPromote,
    /// A known version became ready with other bytes.
    ReplaceArtifact,
    /// A version's runs did not end, or it ended the process.
    SetAside,
    /// A version ended the process.
    Crash,
    RolloutStart,
    RolloutStep,
    RolloutPause,
    RolloutResume,
    /// An operator ended it and restored the traffic from before.
    RolloutAbort,
    /// A guardrail failed and the traffic from before was restored.
    RolloutTakeBack,
    RolloutFinish,
    /// It ended and traffic stays as it is, because another change came between.
    RolloutStop,
    TokenCreate,
    TokenRevoke,
    Approve,
    Reject,
    /// Traffic for a version was refused, because nobody else has approved it.
    Propose,
    /// The events before this one got their hashes afterwards: they are older than the hash chain.
    ChainBegin,
    /// Files of the prediction log were deleted, because of their age or to stay within the budget.
    Retention,
    /// The records of a person were removed from the prediction log.
    Forget,
    /// Logged predictions were exported over the admin API.
    Export,
    /// Somebody with credentials read what a logged request holds, over the admin API.
    ReadRequest,
    /// Alerts were silenced.
    Silence,
    /// A silence was ended before its time.
    EndSilence,
    /// Another gateway of the fleet changed the model, and this one follows.
    Follow,
    /// The state of a fleet was stored in a data directory.
    ImportState,
}

impl Action {
    /// Stable: tools depend on it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Promote => "promote",
            Action::Rollback => "rollback",
            Action::PutTraffic => "put_traffic",
            Action::Load => "load",
            Action::Unload => "unload",
            Action::LoadModel => "load_model",
            Action::UnloadModel => "unload_model",
            Action::Retire => "retire",
            Action::Push => "push",
            Action::FirstDocument => "first_document",
            Action::AutoPromote => "auto_promote",
            Action::ReplaceArtifact => "replace_artifact",
            Action::SetAside => "set_aside",
            Action::Crash => "crash",
            Action::RolloutStart => "rollout_start",
            Action::RolloutStep => "rollout_step",
            Action::RolloutPause => "rollout_pause",
            Action::RolloutResume => "rollout_resume",
            Action::RolloutAbort => "rollout_abort",
            Action::RolloutTakeBack => "rollout_take_back",
            Action::RolloutFinish => "rollout_finish",
            Action::RolloutStop => "rollout_stop",
            Action::TokenCreate => "token_create",
            Action::TokenRevoke => "token_revoke",
            Action::Approve => "approve",
            Action::Reject => "reject",
            Action::Propose => "propose",
            Action::ChainBegin => "chain_begin",
            Action::Retention => "retention",
            Action::Forget => "forget",
            Action::Export => "export",
            Action::ReadRequest => "read_request",
            Action::Silence => "silence",
            Action::EndSilence => "end_silence",
            Action::Follow => "follow",
            Action::ImportState => "import_state",
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A committed change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The model's current revision. Only new documents increase it.
    pub revision: u64,
    /// `None` for a first or unchanged artifact, which writes no event.
    pub event_id: Option<u64>,
    pub ts: Timestamp,
}

/// A traffic document with its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    pub revision: u64,
    /// JSON.
    pub document: String,
}

/// A crash of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    pub at: Timestamp,
    /// Identifies the files that the version had.
    pub artifact: String,
}

/// A version that is not loaded again while it has these files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAside {
    pub artifact: String,
    pub reason: String,
}

/// The crashes of a version that are kept.
pub(crate) const MAX_CRASHES: u32 = 100;

/// Everything stored about one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelState {
    pub model: ModelName,
    /// 0 until the model gets its first document.
    pub revision: u64,
    /// The current traffic document, as JSON.
    pub document: Option<String>,
    /// An operator unloaded the whole model.
    pub unloaded: bool,
    /// An operator retired the model.
    pub retired: Option<Retirement>,
    /// The highest version that ever served.
    pub highest_served: Option<Version>,
    pub operator_unloaded: BTreeSet<Version>,
    pub auto_promoted: BTreeSet<Version>,
    pub artifacts: BTreeMap<Version, Artifact>,
    /// Oldest first.
    pub crashes: BTreeMap<Version, Vec<Crash>>,
    pub set_aside: BTreeMap<Version, StoredAside>,
    pub reviews: BTreeMap<Version, Review>,
    /// Everybody who pushed a version or asked for its traffic.
    pub proposers: BTreeMap<Version, BTreeSet<String>>,
    /// Why some of the stored values cannot be read. The fields that they belong to are then empty.
    pub unreadable: Option<String>,
}

impl ModelState {
    /// The state of a model that nothing is stored about.
    #[must_use]
    pub(crate) fn new(model: ModelName) -> ModelState {
        ModelState {
            model,
            revision: 0,
            document: None,
            unloaded: false,
            retired: None,
            highest_served: None,
            operator_unloaded: BTreeSet::new(),
            auto_promoted: BTreeSet::new(),
            artifacts: BTreeMap::new(),
            crashes: BTreeMap::new(),
            set_aside: BTreeMap::new(),
            reviews: BTreeMap::new(),
            proposers: BTreeMap::new(),
            unreadable: None,
        }
    }
}

/// The newest review of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Review {
    /// Identifies the files that were looked at.
    pub artifact: String,
    pub approved: bool,
    pub actor: String,
    pub ts: Timestamp,
    pub reason: String,
}

/// When a model was retired, by whom and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retirement {
    pub ts: Timestamp,
    pub actor: String,
    pub reason: String,
}

/// The bytes that a version became ready with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Hexadecimal.
    pub sha256: String,
    pub bytes: u64,
    pub first_ready_at: Timestamp,
}

/// RFC 3339 in UTC with microseconds: `2026-11-21T02:20:00.123456Z`. The ledger and the admin API use this form.
///
/// The length is the same for the years 0 to 9999, so that sorting the texts sorts the times.
#[must_use]
pub fn rfc3339(ts: Timestamp) -> String {
    format!("{ts:.6}")
}
