//! What the kernel holds of a socket's bytes.

use std::os::fd::RawFd;

/// The bytes that were written to a TCP socket and are not acknowledged by the other side yet. 0 where that is not known.
#[must_use]
pub fn undelivered(socket: RawFd) -> usize {
    count(socket, libc::TIOCOUTQ)
}

/// The bytes that have arrived on a socket and were not read yet. 0 where that is not known.
#[must_use]
pub fn unread(socket: RawFd) -> usize {
    count(socket, libc::FIONREAD)
}

fn count(socket: RawFd, request: libc::Ioctl) -> usize {
    let mut bytes: libc::c_int = 0;
    #[expect(unsafe_code, reason = "these requests have no safe wrapper")]
    // SAFETY: both requests write one int through the pointer, which is valid. A descriptor of another kind of file gives an error.
    let result = unsafe { libc::ioctl(socket, request, &raw mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}
