//! What operators read about the sources.

use crate::model::{ModelName, Version, VersionId};
use jiff::Timestamp;
use std::time::Duration;

/// All sources, and the cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub sources: Vec<SourceReport>,
    /// The bytes of all files, and the most.
    pub cache: (u64, u64),
}

#[derive(Debug, Clone)]
pub(crate) struct SourceReport {
    pub source: String,
    /// Rounds in a row in which it could not be listed.
    pub failures: u32,
    /// Why it could not be listed.
    pub message: Option<String>,
    pub last_read: Option<Timestamp>,
    /// The time until it is listed again.
    pub next_read: Option<Duration>,
    /// What is there and is not read.
    pub remarks: Vec<String>,
    pub versions: Vec<VersionReport>,
}

#[derive(Debug, Clone)]
pub(crate) struct VersionReport {
    pub model: ModelName,
    pub version: Version,
    pub state: VersionState,
    /// As far as the source tells.
    pub bytes: u64,
    pub message: Option<String>,
}

/// A version that is to be read and is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unfinished {
    pub id: VersionId,
    /// As far as the source tells.
    pub bytes: u64,
    /// How many of them are here.
    pub arrived: u64,
    /// Why it could not be read. It is tried again.
    pub why: Option<String>,
}

/// What becomes of a version of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VersionState {
    /// It waits until its files have stopped changing, or for its turn.
    Waiting,
    Downloading,
    Stored,
    /// It could not be read, and is tried again.
    Failed,
    /// Another place gives it, or there is no room.
    NotKept,
}

impl VersionState {
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            VersionState::Waiting => "waiting",
            VersionState::Downloading => "downloading",
            VersionState::Stored => "stored",
            VersionState::Failed => "failed",
            VersionState::NotKept => "not_kept",
        }
    }
}

impl SourceReport {
    #[must_use]
    pub(crate) fn state(&self) -> &'static str {
        match (self.failures, self.last_read) {
            (1.., _) => "failing",
            (0, Some(_)) => "ok",
            (0, None) => "starting",
        }
    }
}
