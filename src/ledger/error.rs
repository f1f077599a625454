//! Ledger errors, in words for the operator.

use rusqlite::ErrorCode;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot use the data directory {}: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    /// `holder`: the process id that the other server wrote into the lock file.
    #[error(
        "the data directory {} is in use by another server (process {holder}): stop that server, or give this one another \
         directory with data.dir or --data-dir",
        dir.display()
    )]
    InUse { dir: PathBuf, holder: String },
    #[error(
        "{} was written by a newer sluicegate: its schema version is {found}, this program supports up to {known}; run the newer \
         program, or use another data directory",
        file.display()
    )]
    Newer { file: PathBuf, found: i64, known: i64 },
    #[error(
        "{} was written by an older sluicegate (schema version {found}, this program writes {known}), so its events have no hashes yet: \
         start the server once, which adds them",
        file.display()
    )]
    Older { file: PathBuf, found: i64, known: i64 },
    /// The change was rolled back.
    #[error("no space is left to write {}; nothing was changed: free some space and try again", file.display())]
    Full { file: PathBuf },
    /// The change was rolled back.
    #[error("{} is read-only; nothing was changed: let this process write the file and its directory", file.display())]
    ReadOnly { file: PathBuf },
    /// The change was rolled back. The open file is no longer in the data directory, so the next start would not find the change.
    #[error(
        "{} was removed or replaced while the server was running; nothing was changed: put the data directory back, or restart the \
         server",
        file.display()
    )]
    Replaced { file: PathBuf },
    #[error(
        "{} is damaged ({detail}): restore a copy, or move the file away to start without documents and history",
        file.display()
    )]
    Damaged { file: PathBuf, detail: String },
    #[error("{what} is not JSON: {source}")]
    NotJson { what: &'static str, source: serde_json::Error },
    #[error("cannot {doing} in {}: {source}", file.display())]
    Database { doing: &'static str, file: PathBuf, source: rusqlite::Error },
}

impl LedgerError {
    /// Sorts an SQLite error by what the operator can do about it.
    pub(super) fn sqlite(file: &Path, doing: &'static str, source: rusqlite::Error) -> LedgerError {
        let file = file.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => LedgerError::Full { file },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => LedgerError::ReadOnly { file },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                LedgerError::Damaged { file, detail: source.to_string() }
            }
            _ => match source {
                source if is_unreadable_value(&source) => LedgerError::Damaged { file, detail: source.to_string() },
                source => LedgerError::Database { doing, file, source },
            },
        }
    }
}

/// Whether one stored value has another type or text than this program writes. The rest of the database may be fine.
pub(super) fn is_unreadable_value(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    matches!(error, FromSqlConversionFailure(..) | InvalidColumnType(..) | IntegralValueOutOfRange(..) | Utf8Error(..))
}
