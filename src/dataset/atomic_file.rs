//! Writes a file atomically: it appears complete or not at all.

use super::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file with a temporary name in the target directory. It is removed if it is dropped before [`AtomicFile::finish`].
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<File>,
    finished: bool,
}

impl AtomicFile {
    /// # Errors
    /// When the directory does not exist, or the file cannot be created.
    pub fn create(path: &Path) -> Result<AtomicFile, Error> {
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
        let out = BufWriter::with_capacity(1 << 18, file);
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
            self.out.get_ref().sync_all()?;
            let bytes = self.out.get_ref().metadata()?.len();
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

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.finished {
            // If it cannot be removed, its name shows that it is temporary.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
