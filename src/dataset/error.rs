//! Errors, in words for the person who ran the command.

use std::fmt::Display;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request is not valid.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// A failure at a path. `action` completes "cannot …".
    pub(super) fn at(action: &str, path: &Path, cause: impl Display) -> Error {
        Error::Failed(format!("cannot {action} {}: {cause}", path.display()))
    }
}
