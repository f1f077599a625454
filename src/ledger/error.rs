//! Why something could not be kept or read, in words for the operator.

use rusqlite::ErrorCode;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot use the data directory {}: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    /// `holder`: what the other server wrote into the lock file, its process id as it sees it.
    #[error(
        "the data directory {} is in use by another server (process {holder}), and one server owns it at a time: stop that one, or \
         give this one another directory with data.dir or --data-dir",
        dir.display()
    )]
    InUse { dir: PathBuf, holder: String },
    #[error(
        "{} was written by a newer sluicegate: its schema is {found}, this one knows up to {known}; run the newer one, or give this \
         one another data directory",
        file.display()
    )]
    Newer { file: PathBuf, found: i64, known: i64 },
    /// Nothing of the change was kept.
    #[error("no space is left to write {}; nothing was changed: free some space and try again", file.display())]
    Full { file: PathBuf },
    /// Nothing of the change was kept.
    #[error("{} is read-only; nothing was changed: let this process write the file and its directory", file.display())]
    ReadOnly { file: PathBuf },
    #[error("{} is damaged ({detail}): put back a copy, or move it away to begin without documents and history", file.display())]
    Damaged { file: PathBuf, detail: String },
    #[error("{what} is not JSON: {source}")]
    NotJson { what: &'static str, source: serde_json::Error },
    #[error("cannot {doing} in {}: {source}", file.display())]
    Database { doing: &'static str, file: PathBuf, source: rusqlite::Error },
}

impl LedgerError {
    /// Sorts what SQLite said into what an operator can do about it.
    pub(super) fn sqlite(file: &Path, doing: &'static str, source: rusqlite::Error) -> LedgerError {
        let file = file.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => LedgerError::Full { file },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => LedgerError::ReadOnly { file },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                LedgerError::Damaged { file, detail: source.to_string() }
            }
            _ => match source {
                // Only reading a row makes these: what stands there is nothing this program wrote.
                source @ (rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)) => {
                    LedgerError::Damaged { file, detail: source.to_string() }
                }
                source => LedgerError::Database { doing, file, source },
            },
        }
    }
}
