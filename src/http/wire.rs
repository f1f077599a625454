//! A connection's TCP socket: it notes in the connection's activity what it takes, and it closes without losing bytes.

use super::activity::Activity;
use crate::machine;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long a closing connection waits for the client to close too. If the socket were closed while bytes of the client are unread,
/// the kernel would reset the connection, and the client could lose the end of its answer.
const LINGER: Duration = Duration::from_secs(1);
/// The most bytes that it reads meanwhile. A client that sends more does not read its answer.
const LINGER_BYTES: usize = 16 << 20;
/// How often a closing connection looks whether the kernel has sent everything, once the client has closed its half.
const LOOK: Duration = Duration::from_millis(20);

/// A connection's TCP socket. With TLS, what passes through it is encrypted.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// The client has closed its sending half.
    ended: bool,
    closing: Option<Closing>,
    /// How long a closing connection waits for a client that takes no bytes.
    write_timeout: Duration,
}

/// The sending half is closed, and the client's last bytes are awaited.
#[derive(Debug)]
struct Closing {
    timer: Pin<Box<Sleep>>,
    /// Bytes of the client that were read and dropped.
    dropped: usize,
    /// The bytes that the kernel had not delivered, and when their number last fell.
    undelivered: (usize, Instant),
}

impl Wire {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, write_timeout: Duration) -> Wire {
        Wire { stream, activity, ended: false, closing: None, write_timeout }
    }

    /// Whether the client has closed its sending half; false where unread bytes come before that. Pending while nothing has arrived.
    ///
    /// # Errors
    /// When the connection broke.
    pub(super) fn poll_has_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut next = [MaybeUninit::uninit(); 1];
        let bytes = std::task::ready!(self.stream.poll_peek(cx, &mut ReadBuf::uninit(&mut next)))?;
        self.ended |= bytes == 0;
        Poll::Ready(Ok(self.ended))
    }

    /// Waits until the client has closed and everything is delivered, or for a limited time.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(closing) = &mut self.closing else { return Poll::Ready(()) };
        loop {
            let mut scratch = [MaybeUninit::uninit(); 4096];
            while !self.ended {
                let mut scratch = ReadBuf::uninit(&mut scratch);
                match Pin::new(&mut self.stream).poll_read(cx, &mut scratch) {
                    Poll::Ready(Ok(())) if scratch.filled().is_empty() => {
                        self.ended = true;
                        closing.timer.as_mut().reset((Instant::now() + LOOK).into());
                    }
                    Poll::Ready(Ok(())) => {
                        closing.dropped += scratch.filled().len();
                        if closing.dropped > LINGER_BYTES {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            let is_due = closing.timer.as_mut().poll(cx).is_ready();
            if !is_due && !self.ended {
                return Poll::Pending;
            }
            let left = machine::undelivered(self.stream.as_raw_fd());
            let now = Instant::now();
            if left == 0 {
                return Poll::Ready(());
            }
            if left < closing.undelivered.0 {
                closing.undelivered = (left, now);
            } else if now.duration_since(closing.undelivered.1) >= self.write_timeout {
                self.activity.set_reset();
                return Poll::Ready(());
            }
            if !is_due {
                return Poll::Pending;
            }
            closing.timer.as_mut().reset((now + LOOK).into());
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (this, before) = (&mut *self, buf.filled().len());
        std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.ended |= buf.filled().len() == before && buf.remaining() > 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        note(&self.activity, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        note(&self.activity, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            std::task::ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if this.activity.closes_at_once() {
                return Poll::Ready(Ok(()));
            }
            this.activity.set_lingers();
            let (now, first) = (Instant::now(), if this.ended { LOOK } else { LINGER });
            let timer = Box::pin(tokio::time::sleep(first));
            this.closing = Some(Closing { timer, dropped: 0, undelivered: (usize::MAX, now) });
        }
        this.poll_linger(cx).map(Ok)
    }
}

/// Notes what the socket took, or that it takes nothing at the moment.
fn note(activity: &Activity, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
    match &polled {
        Poll::Ready(Ok(written)) => activity.wrote(*written),
        Poll::Ready(Err(_)) => {}
        Poll::Pending => activity.set_write_blocked(),
    }
    polled
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.activity.is_reset() {
            // The kernel would keep the unsent bytes for minutes. If setting the option fails, it does.
            let _ = self.stream.set_zero_linger();
        }
    }
}
