//! ledger: what must survive a restart: traffic documents, their history, the audit trail.
//!
//! - [`open`] takes the data directory for this process alone and gives one [`LedgerWriter`] (the manager's, not `Clone`) and a
//!   [`LedgerReader`] (everybody's, `Clone`).
//! - [`LedgerWriter::commit`] is one transaction: when it answers `Ok`, the change and its audit event are on the disk together
//!   (SQLite, `synchronous=FULL`); when it answers an error, nothing of it is.
//! - A model's revisions are 1, 2, 3, … with no gap and never twice. The document to roll back to is the one before the
//!   last change, a rollout with all its steps being one; a rollback is a change like any other, so that two of them are back where
//!   they began.
//! - Every call blocks: a commit for a few milliseconds, a query for microseconds. Not for a thread that answers predictions.
//!
//! Uses: model.
//!
//! Invariant: documents are opaque JSON here, and nothing here knows what serves.
//!
//! To add something kept: a migration at the end of `MIGRATIONS` (never a change to one that was released), a field of
//! [`ModelState`], a variant of [`Effect`].

mod error;
mod open;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use error::LedgerError;
pub use open::open;
pub use reader::{AuditQuery, Event, HistoryEntry, LedgerReader};
pub use writer::LedgerWriter;

use crate::model::{ModelName, Version};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// A change to one model, with who wanted it and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub model: ModelName,
    pub actor: String,
    pub action: Action,
    pub reason: Option<String>,
    /// What the audit trail shows as it was and as it is after: JSON texts. Refused when they are not.
    pub before: Option<String>,
    pub after: Option<String>,
    pub effect: Effect,
}

/// What a change does to what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A new traffic document, and with it a new revision.
    SetDocument {
        /// JSON. Refused when it is not.
        document: String,
        /// The highest version it makes serve; what is kept never goes down.
        highest_served: Option<Version>,
        /// The version that was promoted of itself, if that is what this is: it will not be a second time.
        auto_promoted: Option<Version>,
    },
    /// Where a rollout stands, and the traffic document that goes with it where it moves traffic: both or neither.
    SetRollout {
        /// JSON. Refused when it is not.
        state: String,
        document: Option<NewDocument>,
    },
    /// The whole model taken out, or back, with its document kept.
    SetTakenOut(bool),
    /// A version an operator unloaded stays so until it is loaded again.
    SetOperatorUnloaded { version: Version, unloaded: bool },
    /// A version came ready with these bytes. The first time leaves no audit event, the same bytes again change nothing, and other
    /// bytes replace what was kept.
    RecordArtifact { version: Version, sha256: String, bytes: u64 },
    /// Nothing but the audit event.
    None,
}

/// A traffic document a rollout puts in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDocument {
    /// JSON. Refused when it is not.
    pub document: String,
    /// The highest version it makes serve.
    pub highest_served: Option<Version>,
}

/// Who did what, as the audit trail spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Promote,
    Rollback,
    PutTraffic,
    Load,
    Unload,
    LoadModel,
    UnloadModel,
    Push,
    /// The document a model gets when it is seen for the first time.
    FirstDocument,
    AutoPromote,
    /// Other bytes came ready under a known version.
    ReplaceArtifact,
    RolloutStart,
    /// To its next step.
    RolloutStep,
    RolloutPause,
    RolloutResume,
    /// An operator took the traffic back.
    RolloutAbort,
    /// A broken guardrail took the traffic back.
    RolloutTakeBack,
    RolloutFinish,
    /// It goes no further, and traffic stays as it is: somebody else changed it.
    RolloutStop,
}

impl Action {
    /// Stable: tools read it.
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
            Action::Push => "push",
            Action::FirstDocument => "first_document",
            Action::AutoPromote => "auto_promote",
            Action::ReplaceArtifact => "replace_artifact",
            Action::RolloutStart => "rollout_start",
            Action::RolloutStep => "rollout_step",
            Action::RolloutPause => "rollout_pause",
            Action::RolloutResume => "rollout_resume",
            Action::RolloutAbort => "rollout_abort",
            Action::RolloutTakeBack => "rollout_take_back",
            Action::RolloutFinish => "rollout_finish",
            Action::RolloutStop => "rollout_stop",
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A change that is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The model's revision now; it grows with documents alone.
    pub revision: u64,
    /// `None` where there was nothing to tell: a first or unchanged artifact.
    pub event_id: Option<u64>,
    pub ts: Timestamp,
}

/// A traffic document, and the revision that put it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    pub revision: u64,
    /// JSON.
    pub document: String,
}

/// All that is kept about one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelState {
    pub model: ModelName,
    /// 0 as long as there has been no document.
    pub revision: u64,
    /// The current traffic document, as JSON.
    pub document: Option<String>,
    pub taken_out: bool,
    /// The highest version that ever served.
    pub highest_served: Option<Version>,
    pub operator_unloaded: BTreeSet<Version>,
    pub auto_promoted: BTreeSet<Version>,
    pub artifacts: BTreeMap<Version, Artifact>,
}

/// The bytes a version came ready with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// As it was given: hexadecimal.
    pub sha256: String,
    pub bytes: u64,
    pub first_ready_at: Timestamp,
}

/// RFC 3339 in UTC with microseconds, as the ledger keeps times and the admin API spells them: `2026-11-21T02:20:00.123456Z`.
///
/// Of one length for the years 0 to 9999, so that texts sort as times do.
#[must_use]
pub fn rfc3339(ts: Timestamp) -> String {
    format!("{ts:.6}")
}
