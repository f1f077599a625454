//! The limit on open files of this process, files that can be opened without waiting, and the room on a file system.

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The limit on open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// The soft limit when the process started. `None`: no limit.
    pub before: Option<u64>,
    /// The limit now.
    pub now: Option<u64>,
}

/// Raises the soft limit on open files to the hard one. Sockets are files, and the soft limit is 1024 on many systems only for
/// programs that use `select`.
pub fn raise_open_files() -> OpenFiles {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let is_raised = limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok();
    OpenFiles { before: limit.current, now: if is_raised { limit.maximum } else { limit.current } }
}

/// Opens a regular file for reading. Opening a named pipe would wait for a writer, a device may have no end, and opening some devices does something.
///
/// # Errors
/// When it cannot be opened, or is not a regular file (`InvalidData`).
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Before it is opened, because opening a device can have an effect.
    regular(&std::fs::metadata(path)?)?;
    // It may have been replaced since then; then opening it does not wait. A regular file is read as without the flag.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

fn regular(metadata: &std::fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"))
}

/// Everything that this process creates from now on is for its user alone, or also for its group to read. What the environment forbids (umask) stays
/// forbidden.
pub fn keep_files_private(group_reads: bool) {
    let others = Mode::from_raw_mode(if group_reads { 0o027 } else { 0o077 });
    let before = umask(others);
    umask(before | others);
}

/// The room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// For processes without special rights.
    pub free: u64,
    pub total: u64,
}

/// The room on the file system of a path. `None` when the system does not say.
#[must_use]
pub fn disk_space(path: &Path) -> Option<DiskSpace> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(DiskSpace { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
}
