//! Why something could not be done, in words for the person who asked.

use std::fmt::Display;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// `doing` completes "cannot …".
    pub(super) fn at(doing: &str, path: &Path, why: impl Display) -> Error {
        Error::Failed(format!("cannot {doing} {}: {why}", path.display()))
    }
}
