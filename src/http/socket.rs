//! What HTTP reads from and writes to: the TCP socket, or TLS on it. It notes in the connection's activity what arrives.

use super::activity::Activity;
use super::frames::Frames;
use super::wire::Wire;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

/// What HTTP reads from and writes to.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    activity: Arc<Activity>,
    /// With HTTP/2, the frames that arrive.
    frames: Option<Frames>,
    /// The client sends nothing more.
    ended: bool,
    /// Bytes of the next request have arrived, so that the end of the connection is not next.
    has_next: bool,
}

#[derive(Debug)]
pub(super) enum Stream {
    Plain(Wire),
    Tls(Box<TlsStream<Wire>>),
}

impl Socket {
    pub(super) fn new(stream: Stream, activity: Arc<Activity>, is_http2: bool) -> Socket {
        let frames = is_http2.then(Frames::new);
        Socket { stream, activity, frames, ended: false, has_next: false }
    }

    /// Whether HTTP/1 need not read while a request is answered: [`Socket::poll_flush`] looks for the end of the connection instead. With TLS
    /// only a read shows the end.
    pub(super) fn finds_end(&self) -> bool {
        self.frames.is_none() && matches!(self.stream, Stream::Plain(_))
    }

    /// Looks whether the client closed while its request is answered. Without a system call, where nothing has arrived since the request.
    ///
    /// # Errors
    /// When the request is to be dropped: the client has gone.
    fn find_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Stream::Plain(wire) = &mut self.stream else { return Ok(()) };
        if !self.ended && !self.has_next {
            match wire.poll_has_ended(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(ended) => {
                    self.ended = ended?;
                    self.has_next = !self.ended;
                }
            }
        }
        if self.ended && !self.activity.client_stopped_sending() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.frames.is_some() && this.activity.turn_is_over() {
            // Other connections of this thread are served first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !this.ended {
            match std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buf)) {
                Ok(()) => {}
                // TLS ends with a message of its own, but many clients just close. HTTP knows where a request ends, so that nothing can be
                // cut off unnoticed (RFC 9112, section 9.8).
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            let arrived = &buf.filled()[before..];
            if !arrived.is_empty() {
                this.has_next = false;
                let partial_head = this.frames.as_mut().map_or(1, |frames| frames.read(arrived));
                this.activity.set_partial_head(partial_head);
                if let Some(frames) = &mut this.frames {
                    this.activity.add_to_turn(frames.take_begun());
                    if frames.is_flood() {
                        this.activity.set_flooded();
                        return Poll::Ready(Err(io::Error::other("too many frames that carry no request")));
                    }
                }
                return Poll::Ready(Ok(()));
            }
            this.ended = buf.remaining() > 0;
        }
        // Nobody needs to be woken: the connection's task looks at this after each poll, and so does the end of the request.
        if this.frames.is_none() && this.activity.client_stopped_sending() {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// HTTP/1 calls this each time that its connection is polled.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finds_end() && self.activity.has_request() {
            self.find_end(cx)?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(wire) => Pin::new(wire).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Plain(wire) => Pin::new(wire).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Plain(wire) => Pin::new(wire).poll_write_vectored(cx, bufs),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(wire) => wire.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(wire) => Pin::new(wire).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(wire) => Pin::new(wire).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
