//! The body of an answer, and the memory it holds until it is written.

use super::grpc::Messages;
use crate::budget::Hold;
use crate::codec::inflate::Compressor;
use crate::codec::pieces::{PIECE, Pieces};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The body of an answer: whole, or made in pieces as the client reads. A gRPC answer has trailers.
#[derive(Debug, Default)]
pub(super) struct AnswerBody {
    source: Source,
    trailers: Option<Box<HeaderMap>>,
}

#[derive(Debug, Default)]
enum Source {
    #[default]
    Nothing,
    Whole(Bytes, Option<Hold>),
    Pieces(Box<Stream>),
    /// A stream of gRPC, which makes its own trailers.
    Messages(Box<Messages>),
}

/// An answer that is encoded as the client reads it.
#[derive(Debug)]
struct Stream {
    pieces: Pieces,
    /// `None` where the answer is not compressed.
    compressor: Option<Compressor>,
    /// What the tensors hold, shared with the pieces.
    hold: Arc<Hold>,
    /// Bytes that are left, where the length is known.
    left: Option<u64>,
}

/// Bytes and what they hold of the memory for requests. The HTTP library drops them after the last one was given to the kernel.
struct HeldBytes<H>(Bytes, H);

impl<H> AsRef<[u8]> for HeldBytes<H> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Pieces of one answer that the HTTP library keeps until they are written: its buffer for one connection, and one piece.
pub(super) const BUFFERED: usize = 8 * PIECE;

impl AnswerBody {
    /// An answer in pieces. `hold` has to count its tensors and [`BUFFERED`].
    pub(super) fn in_pieces(pieces: Pieces, compressor: Option<Compressor>, hold: Hold) -> AnswerBody {
        let left = if compressor.is_some() { None } else { pieces.length() };
        Source::Pieces(Box::new(Stream { pieces, compressor, hold: Arc::new(hold), left })).into()
    }

    /// The answers of a gRPC stream.
    pub(super) fn of_messages(messages: Messages) -> AnswerBody {
        Source::Messages(Box::new(messages)).into()
    }

    /// Sets what is sent after the body.
    pub(super) fn set_trailers(&mut self, trailers: HeaderMap) {
        if !matches!(self.source, Source::Messages(_)) {
            self.trailers = Some(Box::new(trailers));
        }
    }

    /// The bytes of a whole answer, with the memory they hold. Empty for one in pieces.
    pub(super) fn into_bytes(self) -> Bytes {
        match self.source {
            Source::Whole(bytes, hold) => held(bytes, hold),
            Source::Nothing | Source::Pieces(_) | Source::Messages(_) => Bytes::new(),
        }
    }

    /// Ties a request's memory to the whole answer. An answer in pieces has its own.
    pub(super) fn hold(&mut self, hold: Hold) {
        if let Source::Whole(bytes, held) = &mut self.source {
            hold.shrink_to(bytes.len());
            *held = Some(hold);
        }
    }

    /// The bytes of a whole answer; `None` for one in pieces.
    pub(super) fn whole(&self) -> Option<&Bytes> {
        match &self.source {
            Source::Whole(bytes, _) => Some(bytes),
            Source::Nothing | Source::Pieces(_) | Source::Messages(_) => None,
        }
    }
}

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> AnswerBody {
        if bytes.is_empty() { Source::Nothing.into() } else { Source::Whole(bytes, None).into() }
    }
}

impl From<Source> for AnswerBody {
    fn from(source: Source) -> AnswerBody {
        AnswerBody { source, trailers: None }
    }
}

fn held(bytes: Bytes, hold: Option<Hold>) -> Bytes {
    match hold {
        None => bytes,
        Some(hold) => Bytes::from_owner(HeldBytes(bytes, hold)),
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match std::mem::take(&mut self.source) {
            Source::Nothing => None,
            Source::Whole(bytes, hold) => Some(held(bytes, hold)),
            Source::Pieces(mut stream) => stream.next().inspect(|_| self.source = Source::Pieces(stream)),
            Source::Messages(mut messages) => {
                let next = messages.poll_next(cx);
                if !matches!(next, Poll::Ready(None)) {
                    self.source = Source::Messages(messages);
                }
                return next.map(|frame| frame.map(Ok));
            }
        };
        let trailers = || self.trailers.take().map(|trailers| Frame::trailers(*trailers));
        Poll::Ready(next.map(Frame::data).or_else(trailers).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Nothing) && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // With an exact size the answer has a `content-length`, which gRPC does not use.
        if self.trailers.is_some() {
            return SizeHint::default();
        }
        match &self.source {
            Source::Messages(_) => SizeHint::default(),
            Source::Nothing => SizeHint::with_exact(0),
            Source::Whole(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Source::Pieces(stream) => stream.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Stream {
    /// The next piece; never an empty one.
    fn next(&mut self) -> Option<Bytes> {
        loop {
            let plain = self.pieces.next_piece();
            let bytes = match (&mut self.compressor, plain) {
                (None, None) => return None,
                (None, Some(plain)) => plain,
                (Some(compressor), Some(plain)) => compressor.write(&plain),
                // The compressor is gone after this, which ends the stream.
                (compressor, None) => compressor.take().map_or_else(Vec::new, Compressor::finish),
            };
            if !bytes.is_empty() {
                self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                return Some(Bytes::from_owner(HeldBytes(bytes.into(), Arc::clone(&self.hold))));
            }
        }
    }
}
