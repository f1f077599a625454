//! The file operations of the writer, behind a trait so that tests can make them fail.

use crate::machine::durable;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// Creates append-only files.
pub(super) trait Disk: Send + std::fmt::Debug {
    /// Creates a file. Its name is durable when this returns.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appender>>;
}

/// An append-only file.
pub(super) trait Appender: Send + std::fmt::Debug {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Everything appended before survives a power cut when this returns.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file to this length.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// The file system.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appender>> {
        let file = File::options().append(true).create_new(true).open(path)?;
        durable::sync_parent(path)?;
        Ok(Box::new(file))
    }
}

impl Appender for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}
