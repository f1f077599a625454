//! What the child gets from its parent.

use super::Sockets;
use super::crash::Crash;
use super::message::{Descriptors, Message, VARIABLE};
use crate::marks::{self, Region};
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// What a server process that has a supervisor was started with.
#[derive(Debug)]
pub struct Inherited {
    pub sockets: Sockets,
    /// A copy of the configuration file as it was when it could last be read.
    pub configuration: Option<PathBuf>,
    pub parent: Supervised,
    /// Keeps `configuration` readable.
    _copy: Option<OwnedFd>,
}

/// The parent of this process: what it said, and what it is told.
#[derive(Debug)]
pub struct Supervised {
    /// How often a server process was started again.
    pub restarts: u64,
    /// Crashes that are not stored yet, oldest first.
    pub crashes: Vec<Crash>,
    region: &'static Region,
}

impl Supervised {
    /// The first `n` reports are stored, so that the parent need not pass them again.
    pub fn set_stored(&self, n: usize) {
        self.region.set_stored(n);
    }

    /// A stop may take this long. After it, and a few seconds more, the parent kills this process.
    pub fn set_stop_within(&self, time: Duration) {
        self.region.set_stop_within(time);
    }
}

/// What a supervisor has passed to this process. `None` where there is no supervisor. Must be called once, before any other descriptor is
/// opened, and before any version is loaded.
///
/// # Errors
/// When the descriptors are not what a supervisor of this program passes.
pub fn inherited() -> io::Result<Option<Inherited>> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let found = text.to_str().and_then(Descriptors::parse);
    // A process that another program started with this environment has no such descriptors.
    let Some(found) = found.filter(|found| found.parent == std::os::unix::process::parent_id()) else {
        return Ok(None);
    };
    let marks = take(found.marks)?;
    let sockets = Sockets { data: TcpListener::from(take(found.data)?), admin: TcpListener::from(take(found.admin)?) };
    let copy = found.configuration.map(take).transpose()?;
    let region = marks::install(marks)?;
    let Message { restarts, crashes } = serde_json::from_str(&region.message()).map_err(io::Error::other)?;
    Ok(Some(Inherited {
        sockets,
        configuration: found.configuration.map(|fd| PathBuf::from(format!("/proc/self/fd/{fd}"))),
        parent: Supervised { restarts, crashes, region },
        _copy: copy,
    }))
}

/// Owns an inherited descriptor. Children of this process do not inherit it.
#[expect(unsafe_code, reason = "a descriptor that another process opened is known by its number alone")]
fn take(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks whether the number is that of an open descriptor.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the parent opened it for this process. Nothing else here owns it, because this is called once, before
    // other descriptors are opened.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}
