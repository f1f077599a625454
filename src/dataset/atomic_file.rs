//! Writes a file atomically: it appears complete or not at all. Or writes to standard output.

use super::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file with a temporary name in the target directory. It is removed if it is dropped before [`AtomicFile::finish`].
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<Out>,
    finished: bool,
}

#[derive(Debug)]
enum Out {
    File(File),
    /// With the bytes that were written.
    Stdout(u64),
}

/// The name that means standard output.
pub const STDOUT: &str = "-";

impl AtomicFile {
    /// # Errors
    /// When the directory does not exist, or the file cannot be created.
    pub fn create(path: &Path) -> Result<AtomicFile, Error> {
        if path == Path::new(STDOUT) {
            let out = BufWriter::with_capacity(1 << 18, Out::Stdout(0));
            return Ok(AtomicFile { path: path.to_owned(), temporary: PathBuf::new(), out, finished: true });
        }
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(Error::Usage(format!("{} is a directory: expected the name of a file", path.display())));
        };
        let dir = directory(path);
        if !dir.is_dir() {
            let message = format!("there is no directory {} to write {} to", dir.display(), name.display());
            return Err(Error::Failed(message));
        }
        // Readers do not look for this extension.
        let temporary = dir.join(format!(".{}.{}.tmp", name.display(), std::process::id()));
        let file = File::create(&temporary).map_err(|e| Error::at("write", &temporary, e))?;
        let out = BufWriter::with_capacity(1 << 18, Out::File(file));
        Ok(AtomicFile { path: path.to_owned(), temporary, out, finished: false })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the file and gives it its name. Returns its size in bytes.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(mut self) -> Result<u64, Error> {
        let mut publish = || -> io::Result<u64> {
            self.out.flush()?;
            let file = match self.out.get_ref() {
                Out::File(file) => file,
                Out::Stdout(bytes) => return Ok(*bytes),
            };
            file.sync_all()?;
            let bytes = file.metadata()?.len();
            std::fs::rename(&self.temporary, &self.path)?;
            self.finished = true;
            File::open(directory(&self.path))?.sync_all()?;
            Ok(bytes)
        };
        publish().map_err(|e| Error::at("write", &self.path, e))
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Out::File(file) => file.write(bytes),
            Out::Stdout(written) => {
                let n = io::stdout().write(bytes)?;
                *written += n as u64;
                Ok(n)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::File(file) => file.flush(),
            Out::Stdout(_) => io::stdout().flush(),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.finished {
            // If it cannot be removed, its name shows that it is temporary.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
