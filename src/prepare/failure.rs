//! Why a version is not ready.

use crate::registry::Stage;
use std::io;
use std::time::Duration;

/// A failed stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageFailure {
    pub stage: Stage,
    pub reason: String,
    /// Whether the same files may succeed at another try. True for failures of the disk or the network.
    pub retryable: bool,
}

impl StageFailure {
    /// A failure that the same files would give again.
    pub fn permanent(stage: Stage, reason: impl Into<String>) -> StageFailure {
        StageFailure { stage, reason: reason.into(), retryable: false }
    }

    /// A failure to read a file. `action` completes "cannot …". It can be retried unless the file itself is wrong (`InvalidData`).
    pub fn io(stage: Stage, action: &str, error: &io::Error) -> StageFailure {
        let retryable = error.kind() != io::ErrorKind::InvalidData;
        StageFailure { stage, reason: format!("cannot {action}: {error}"), retryable }
    }
}

/// How long to wait after `attempts` failures in a row: 1 s, 2 s, 4 s, … 60 s.
#[must_use]
pub fn backoff(attempts: u32) -> Duration {
    Duration::from_secs(60.min(1 << attempts.saturating_sub(1).min(6)))
}
