//! A file that is there whole or not at all.

use super::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file under a temporary name beside the one it shall have; removed when dropped unfinished.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<File>,
    finished: bool,
}

impl Unfinished {
    /// # Errors
    /// When the directory is missing, or the file cannot be made.
    pub fn create(path: &Path) -> Result<Unfinished, Error> {
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(Error::Usage(format!("{} is a directory: expected the name of a file", path.display())));
        };
        let dir = directory(path);
        if !dir.is_dir() {
            let words = format!("there is no directory {} to write {} to", dir.display(), name.display());
            return Err(Error::Failed(words));
        }
        // Never an ending that readers look for.
        let temporary = dir.join(format!(".{}.{}.tmp", name.display(), std::process::id()));
        let file = File::create(&temporary).map_err(|e| Error::at("write", &temporary, e))?;
        let out = BufWriter::with_capacity(1 << 18, file);
        Ok(Unfinished { path: path.to_owned(), temporary, out, finished: false })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, once it is on the disk; how many bytes it has.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(mut self) -> Result<u64, Error> {
        let mut place = || -> io::Result<u64> {
            self.out.flush()?;
            self.out.get_ref().sync_all()?;
            let bytes = self.out.get_ref().metadata()?.len();
            std::fs::rename(&self.temporary, &self.path)?;
            self.finished = true;
            File::open(directory(&self.path))?.sync_all()?;
            Ok(bytes)
        };
        place().map_err(|e| Error::at("write", &self.path, e))
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed says by its name that it is nothing.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
