//! Encoding a large answer in pieces, as its reader takes them: the text of an answer is several times as large as its tensors.
//!
//! The pieces together are the same bytes as the whole encoding (`oip::encode`, `tfs::encode_predict`), which small answers use.

use super::oip::OipPieces;
use super::text::{self, estimated_width};
use super::tfs::TfsPieces;
use crate::tensor::{Data, Tensor};
use base64::Engine as _;
use smallvec::{SmallVec, smallvec};

/// The size of a piece, in bytes. A piece can be a little larger.
pub const PIECE: usize = 64 << 10;

/// An answer that is encoded in pieces.
#[derive(Debug)]
pub struct Pieces(pub(super) Form);

#[derive(Debug)]
pub(super) enum Form {
    Oip(OipPieces),
    Tfs(TfsPieces),
}

impl Pieces {
    /// The next piece. `None` after the last one.
    pub fn next_piece(&mut self) -> Option<Vec<u8>> {
        let mut piece = Vec::with_capacity(PIECE + PIECE / 8);
        match &mut self.0 {
            Form::Oip(answer) => answer.write(&mut piece),
            Form::Tfs(answer) => answer.write(&mut piece),
        }
        (!piece.is_empty()).then_some(piece)
    }

    /// Bytes of memory that it holds: the tensors, and text that was written before.
    #[must_use]
    pub fn held(&self) -> usize {
        match &self.0 {
            Form::Oip(answer) => answer.held(),
            Form::Tfs(answer) => answer.held(),
        }
    }

    /// The length of all pieces together, where it is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match &self.0 {
            Form::Oip(answer) => answer.length(),
            Form::Tfs(_) => None,
        }
    }
}

/// Whether a piece has its size.
pub(super) fn is_full(piece: &[u8]) -> bool {
    piece.len() >= PIECE
}

/// Writes a range of a tensor's elements as nested lists, as far as a piece has room.
#[derive(Debug)]
pub(super) struct Lists {
    extents: SmallVec<[usize; 8]>,
    /// The items written so far of each open list, outermost first.
    open: SmallVec<[usize; 8]>,
    /// The next element.
    at: usize,
    /// Bytes written of the string at `at`.
    inside: usize,
    state: State,
    /// Strings are `{"b64": "…"}`.
    base64: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Open,
    Done,
}

impl Lists {
    /// Lists with these extents, from element `at` on. Without extents: one element without a list.
    pub(super) fn new(extents: &[usize], at: usize, base64: bool) -> Lists {
        Lists { extents: extents.into(), open: smallvec![], at, inside: 0, state: State::Start, base64 }
    }

    /// Appends to a piece until it is full or everything is written. Returns true when everything is written. Strings that are not UTF-8
    /// are to be found before ([`first_not_utf8`]).
    pub(super) fn write(&mut self, out: &mut Vec<u8>, data: &Data) -> bool {
        while !is_full(out) {
            let Some(level) = self.open.len().checked_sub(1) else {
                match self.state {
                    State::Done => return true,
                    State::Start if self.extents.is_empty() => {
                        if self.element(out, data) {
                            self.state = State::Done;
                        }
                    }
                    State::Start => {
                        self.state = State::Open;
                        out.push(b'[');
                        self.open.push(0);
                    }
                    State::Open => self.state = State::Done,
                }
                continue;
            };
            let (written, extent) = (self.open[level], self.extents[level]);
            if written == extent {
                out.push(b']');
                self.open.pop();
                if let Some(outer) = self.open.last_mut() {
                    *outer += 1;
                }
                continue;
            }
            if written > 0 && self.inside == 0 {
                out.push(b',');
            }
            if level + 1 == self.extents.len() {
                self.open[level] += self.run(out, data, extent - written);
            } else {
                out.push(b'[');
                self.open.push(0);
            }
        }
        false
    }

    /// Writes some of the next `left` elements of the innermost list. Returns how many.
    fn run(&mut self, out: &mut Vec<u8>, data: &Data, left: usize) -> usize {
        if matches!(data, Data::Bytes(_)) {
            return usize::from(self.element(out, data));
        }
        let fits = PIECE.saturating_sub(out.len()) / estimated_width(data);
        let n = left.min(fits.max(1));
        // Numbers are always written.
        let _ = text::elements(out, data, self.at..self.at + n);
        self.at += n;
        n
    }

    /// Writes one element, or a part of a long string. Returns true when it is written.
    fn element(&mut self, out: &mut Vec<u8>, data: &Data) -> bool {
        let Data::Bytes(strings) = data else {
            let _ = text::elements(out, data, self.at..self.at + 1);
            self.at += 1;
            return true;
        };
        let string = &strings[self.at];
        if self.inside == 0 {
            text::plain(out, if self.base64 { "{\"b64\":\"" } else { "\"" });
        }
        let room = PIECE.saturating_sub(out.len()).max(64);
        let end = string.len().min(self.inside + room / 2);
        if self.base64 {
            // Three bytes are four characters, so that parts can be joined.
            let end = if end == string.len() { end } else { end - (end - self.inside) % 3 };
            text::plain(out, &base64::engine::general_purpose::STANDARD.encode(&string[self.inside..end]));
            self.inside = end;
        } else {
            let mut end = end;
            // A character has at most four bytes.
            while end < string.len() && string[end] & 0xc0 == 0x80 {
                end += 1;
            }
            text::escaped(out, &string[self.inside..end]);
            self.inside = end;
        }
        if self.inside < string.len() {
            return false;
        }
        text::plain(out, if self.base64 { "\"}" } else { "\"" });
        (self.at, self.inside) = (self.at + 1, 0);
        true
    }
}

/// The index of the first string that is not UTF-8.
pub(super) fn first_not_utf8(data: &Data) -> Option<usize> {
    match data {
        Data::Bytes(strings) => strings.iter().position(|string| std::str::from_utf8(string).is_err()),
        _ => None,
    }
}

/// An estimate of the bytes of a tensor as nested lists in JSON. Lists without elements count too: `[1000000000,0]` is long.
pub(super) fn estimated_json(tensor: &Tensor) -> usize {
    let values = match tensor.data() {
        Data::Bytes(strings) => strings.iter().map(|string| string.len() + 6).sum(),
        data => data.len().saturating_mul(estimated_width(data)),
    };
    let (outer, _) = tensor.shape().split_at(tensor.shape().len().saturating_sub(1));
    let lists = outer.iter().scan(1usize, |lists, extent| {
        *lists = lists.saturating_mul(*extent);
        Some(*lists)
    });
    lists.fold(values, |sum, lists| sum.saturating_add(lists.saturating_mul(3)))
}
