//! What the kernel holds of a socket's bytes.

use std::os::fd::RawFd;

/// `TCP_CLOSE` in the kernel's list of states.
const CLOSED: u8 = 7;

/// The bytes that were written to a TCP socket and are not acknowledged by the other side yet. 0 when the other side has reset the
/// connection, so that they never will be, and where the number is not known.
#[must_use]
pub fn undelivered(socket: RawFd) -> usize {
    let bytes = count(socket, libc::TIOCOUTQ);
    // After a reset the kernel keeps the last number.
    if bytes > 0 && state(socket) == CLOSED { 0 } else { bytes }
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

/// The state of a TCP connection: the first byte of `struct tcp_info`. 0, which is no state, where it is not known.
fn state(socket: RawFd) -> u8 {
    let mut state = 0u8;
    let mut size: libc::socklen_t = 1;
    #[expect(unsafe_code, reason = "the option has no safe wrapper")]
    // SAFETY: the kernel writes at most `size` bytes to `state`, and the number of them to `size`. Both pointers are valid.
    let result =
        unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut state).cast(), &raw mut size) };
    if result == 0 { state } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    fn eventually(what: &str, condition: impl Fn() -> bool) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !condition() {
            assert!(std::time::Instant::now() < until, "within 10 s: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn bytes_that_nobody_reads_are_counted_until_the_other_side_resets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"four").unwrap();
        eventually("the bytes have arrived", || unread(server.as_raw_fd()) == 4);
        server.read_exact(&mut [0; 4]).unwrap();
        assert_eq!((unread(server.as_raw_fd()), undelivered(server.as_raw_fd())), (0, 0));
        server.set_nonblocking(true).unwrap();
        while server.write(&[0; 4096]).is_ok() {}
        eventually("the client's buffer is full", || undelivered(server.as_raw_fd()) > 0);
        drop(client);
        eventually("the client's reset has arrived", || undelivered(server.as_raw_fd()) == 0);
        assert_eq!(undelivered(-1), 0, "not a socket");
    }
}
