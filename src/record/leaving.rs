//! What leaves this disk for object storage: which sealed files wait, and that they are there now.

use super::log::Log;
use super::segment::Number;
use crossbeam_channel::Receiver;
use jiff::Timestamp;
use std::io;
use std::path::{Path, PathBuf};

/// A sealed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedFile {
    /// The number of its segment.
    pub number: Number,
    /// Below the data directory.
    pub file: PathBuf,
    pub bytes: u64,
}

/// Sealed files that are not in object storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Waiting {
    pub files: u64,
    pub bytes: u64,
    /// When the one that waits longest was sealed.
    pub oldest: Option<Timestamp>,
    /// Files that were deleted before they were uploaded, since the start.
    pub lost_files: u64,
}

impl Log {
    /// What waits to be uploaded.
    #[must_use]
    pub(crate) fn waiting(&self) -> Waiting {
        self.0.space.waiting()
    }

    /// The file to upload next: one with the fewest `tries`, of these the oldest. A file that sealing may still replace is none.
    #[must_use]
    pub(crate) fn next_waiting(&self, tries: &dyn Fn(&Path) -> u32) -> Option<SealedFile> {
        let data = &self.0.config.data;
        self.0.space.next_waiting(tries, |number| super::segment::path(data, number).exists())
    }

    /// A file is in object storage, as it is here. It may be deleted here from now on.
    ///
    /// # Errors
    /// When that cannot be stored: the file is compared with its object again later.
    pub(crate) fn uploaded(&self, file: &SealedFile) -> io::Result<()> {
        self.0.space.uploaded(file)?;
        self.0.space.delete_old(&self.0.metrics);
        self.0.space.show(&self.0.metrics);
        Ok(())
    }

    /// A file was not found here. It does not wait any more, if nobody has put it back.
    pub(crate) fn gone(&self, file: &SealedFile) {
        self.0.space.gone(file);
    }

    /// Has an item after files were sealed.
    #[must_use]
    pub(crate) fn sealed(&self) -> Receiver<()> {
        self.0.sealed.1.clone()
    }
}
