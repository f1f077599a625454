//! An answer's body, which counts as being written until the last of its bytes is handed to the socket.

use super::activity::AnswerGuard;
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The most bytes of an answer that wait inside HTTP/2 for the client's window: one frame of the default size. The rest waits in
/// the body, where the stream can still be ended.
const PART: usize = 16 << 10;

/// An answer's body.
#[derive(Debug)]
pub(super) struct Written<B> {
    body: B,
    /// The rest of a long frame, on a stream of HTTP/2.
    rest: Bytes,
    guard: AnswerGuard,
}

/// A part of an answer.
#[derive(Debug)]
pub(super) struct Part {
    bytes: Bytes,
    guard: AnswerGuard,
}

impl<B> Written<B> {
    pub(super) fn new(body: B, guard: AnswerGuard) -> Written<B> {
        Written { body, rest: Bytes::new(), guard }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Written<B> {
    type Data = Part;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Part>, B::Error>>> {
        let this = &mut *self;
        let bytes = if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => bytes,
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                },
            }
        } else {
            std::mem::take(&mut this.rest)
        };
        let mut part = bytes;
        if this.guard.has_stream() && part.len() > PART {
            this.rest = part.split_off(PART);
        }
        Poll::Ready(Some(Ok(Frame::data(Part { bytes: part, guard: this.guard.again() }))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl Buf for Part {
    #[inline]
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    #[inline]
    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    #[inline]
    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(dst)
    }

    #[inline]
    fn advance(&mut self, n: usize) {
        self.bytes.advance(n);
        self.guard.took(n);
    }
}
