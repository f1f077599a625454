//! What the manager asks of the ledger.

use crate::ledger::{Change, Committed, LedgerError, LedgerWriter, ModelState, Revision};
use crate::model::{Code, Failure, ModelName};

/// The ledger's writer; a trait so that tests can fill the disk.
pub trait Journal: Send {
    fn load(&self) -> Result<Vec<ModelState>, LedgerError>;
    fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError>;
    fn commit(&mut self, change: Change) -> Result<Committed, LedgerError>;
}

impl Journal for LedgerWriter {
    fn load(&self) -> Result<Vec<ModelState>, LedgerError> {
        LedgerWriter::load(self)
    }

    fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError> {
        LedgerWriter::previous_document(self, model)
    }

    fn commit(&mut self, change: Change) -> Result<Committed, LedgerError> {
        LedgerWriter::commit(self, change)
    }
}

/// What an operator reads when the ledger cannot keep a change. Paths are for the log.
#[must_use]
pub fn failure(error: &LedgerError) -> Failure {
    let words = match error {
        LedgerError::Full { .. } => {
            "no space is left in the data directory; nothing was changed: free some space and try again"
        }
        LedgerError::ReadOnly { .. } => "the data directory is read-only; nothing was changed: let the server write it",
        LedgerError::Damaged { .. } => "the ledger in the data directory is damaged; nothing was changed",
        _ => "the ledger could not keep the change; nothing was changed",
    };
    Failure::new(Code::Internal, words).with_internal(error.to_string())
}
