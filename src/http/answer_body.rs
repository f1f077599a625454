//! The body of an answer, and the memory it holds until it is written.

use crate::budget::Hold;
use crate::codec::inflate::Compressor;
use crate::codec::pieces::{PIECE, Pieces};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The body of an answer: whole, or made in pieces as the client reads.
#[derive(Debug, Default)]
pub(super) struct AnswerBody(Source);

#[derive(Debug, Default)]
enum Source {
    #[default]
    Nothing,
    Whole(Bytes, Option<Hold>),
    Pieces(Box<Stream>),
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
        AnswerBody(Source::Pieces(Box::new(Stream { pieces, compressor, hold: Arc::new(hold), left })))
    }

    /// Ties a request's memory to the whole answer. An answer in pieces has its own.
    pub(super) fn hold(&mut self, hold: Hold) {
        if let Source::Whole(bytes, held) = &mut self.0 {
            hold.shrink_to(bytes.len());
            *held = Some(hold);
        }
    }

    /// The bytes of a whole answer; `None` for one in pieces.
    pub(super) fn whole(&self) -> Option<&Bytes> {
        match &self.0 {
            Source::Whole(bytes, _) => Some(bytes),
            Source::Nothing | Source::Pieces(_) => None,
        }
    }
}

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> AnswerBody {
        if bytes.is_empty() { AnswerBody(Source::Nothing) } else { AnswerBody(Source::Whole(bytes, None)) }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match std::mem::take(&mut self.0) {
            Source::Nothing => None,
            Source::Whole(bytes, None) => Some(bytes),
            Source::Whole(bytes, Some(hold)) => Some(Bytes::from_owner(HeldBytes(bytes, hold))),
            Source::Pieces(mut stream) => stream.next().inspect(|_| self.0 = Source::Pieces(stream)),
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Source::Nothing)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
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
