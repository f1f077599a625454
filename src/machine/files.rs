//! The limit on open files of this process, and the room on a file system.

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
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
