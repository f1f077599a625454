//! The file operations of the writer, so that tests can fail them.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// Makes append-only files.
pub trait Disk: Send + std::fmt::Debug {
    /// A new file; its name is durable when this returns.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appender>>;
}

/// One file that grows.
pub trait Appender: Send + std::fmt::Debug {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// What was appended survives a power cut when this returns.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts it back.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appender>> {
        let file = File::options().append(true).create_new(true).open(path)?;
        sync_dir(path)?;
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

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// Makes a file's name durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
