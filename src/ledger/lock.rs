//! The lock file, which keeps a second server out of the data directory.

use super::error::LedgerError;
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// An exclusive lock on the data directory. The kernel releases it when the process ends for any reason.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join("lock")
    }

    /// # Errors
    /// [`LedgerError::InUse`] when another process holds the lock.
    pub(super) fn acquire(dir: &Path) -> Result<Lock, LedgerError> {
        let at_dir = |source| LedgerError::Directory { dir: dir.to_owned(), source };
        let path = Lock::path(dir);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(at_dir)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // The holder's process id is only a hint in the error message.
                let _ = file.take(32).read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "unknown" } else { holder.trim() }.to_owned();
                return Err(LedgerError::InUse { dir: dir.to_owned(), holder });
            }
            Err(e) => return Err(at_dir(e.into())),
        }
        // A failure here is ignored: a full disk must not keep a server from starting and serving what it served before.
        let _ = write_process_id(&mut file);
        Ok(Lock(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child process that is just being started may still have the file open.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn write_process_id(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}
