//! The part of the ledger that the manager uses.

use crate::ledger::{Change, Committed, LedgerError, LedgerWriter, ModelState, Note, Revision, TokenChange};
use crate::model::{Code, Failure, ModelName};
use jiff::Timestamp;

/// The ledger's writer. A trait, so that tests can simulate a full disk.
pub(crate) trait Journal: Send {
    fn load(&self) -> Result<Vec<ModelState>, LedgerError>;
    fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError>;
    fn document_at(&self, model: &ModelName, revision: u64) -> Result<Option<Revision>, LedgerError>;
    fn last_change(&self, model: &ModelName) -> Result<Option<String>, LedgerError>;
    fn commit(&mut self, change: Change) -> Result<Committed, LedgerError>;
    fn commit_token(&mut self, change: &TokenChange) -> Result<bool, LedgerError>;
    fn token_is_shared(&self, name: &str) -> Result<Option<bool>, LedgerError>;
    fn store_token_uses(&mut self, uses: &[(String, Timestamp)]) -> Result<(), LedgerError>;
    fn note(&mut self, note: Note) -> Result<u64, LedgerError>;
}

impl Journal for LedgerWriter {
    fn load(&self) -> Result<Vec<ModelState>, LedgerError> {
        LedgerWriter::load(self)
    }

    fn previous_document(&self, model: &ModelName) -> Result<Option<Revision>, LedgerError> {
        LedgerWriter::previous_document(self, model)
    }

    fn document_at(&self, model: &ModelName, revision: u64) -> Result<Option<Revision>, LedgerError> {
        LedgerWriter::document_at(self, model, revision)
    }

    fn last_change(&self, model: &ModelName) -> Result<Option<String>, LedgerError> {
        LedgerWriter::last_change(self, model)
    }

    fn commit(&mut self, change: Change) -> Result<Committed, LedgerError> {
        LedgerWriter::commit(self, change)
    }

    fn commit_token(&mut self, change: &TokenChange) -> Result<bool, LedgerError> {
        LedgerWriter::commit_token(self, change)
    }

    fn token_is_shared(&self, name: &str) -> Result<Option<bool>, LedgerError> {
        LedgerWriter::token_is_shared(self, name)
    }

    fn store_token_uses(&mut self, uses: &[(String, Timestamp)]) -> Result<(), LedgerError> {
        LedgerWriter::store_token_uses(self, uses)
    }

    fn note(&mut self, note: Note) -> Result<u64, LedgerError> {
        LedgerWriter::note(self, note)
    }
}

/// A ledger error in words for the operator. Paths go to the log only.
#[must_use]
pub(super) fn failure(error: &LedgerError) -> Failure {
    let words = match error {
        LedgerError::Full { .. } => {
            "no space is left in the data directory; nothing was changed: free some space and try again"
        }
        LedgerError::ReadOnly { .. } => {
            "the data directory is read-only; nothing was changed: make it writable for the server"
        }
        LedgerError::Replaced { .. } => {
            "the data directory was removed or replaced while the server was running; nothing was changed: put it back, or restart \
             the server"
        }
        LedgerError::Damaged { .. } => "the ledger in the data directory is damaged; nothing was changed",
        _ => "the ledger could not store the change; nothing was changed",
    };
    Failure::new(Code::Internal, words).with_internal(error.to_string())
}
