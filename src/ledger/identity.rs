//! Detects that a file was removed or replaced while this process has it open.
//!
//! SQLite goes on writing into a file that no path leads to any more, and reports success. The next start would find none of those
//! changes.

use super::error::LedgerError;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Files that are open, with the device and inode each had when they were opened.
#[derive(Debug)]
pub(super) struct OpenFiles(Vec<(PathBuf, FileId)>);

#[derive(Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl OpenFiles {
    /// # Errors
    /// When the system cannot describe one of the files.
    pub(super) fn remember(paths: impl IntoIterator<Item = PathBuf>) -> io::Result<OpenFiles> {
        let id = |path: PathBuf| FileId::of(&path).map(|id| (path, id));
        paths.into_iter().map(id).collect::<io::Result<_>>().map(OpenFiles)
    }

    /// # Errors
    /// [`LedgerError::Replaced`] when a path no longer leads to the file that was opened.
    pub(super) fn check(&self) -> Result<(), LedgerError> {
        match self.0.iter().find(|(path, id)| FileId::of(path).ok().as_ref() != Some(id)) {
            Some((file, _)) => Err(LedgerError::Replaced { file: file.clone() }),
            None => Ok(()),
        }
    }
}

impl FileId {
    fn of(path: &Path) -> io::Result<FileId> {
        std::fs::metadata(path).map(|meta| FileId { device: meta.dev(), inode: meta.ino() })
    }
}
