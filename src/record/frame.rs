//! The bytes of a segment: frames, each with its length and checksum.
//!
//! All numbers are little-endian: length of kind and body (u32), CRC-32 of both (u32), kind (u8), body.

use super::about::About;
use std::sync::Arc;

/// The first bytes of a segment.
pub(super) const MAGIC: &[u8; 8] = b"SLUICE01";
/// Bytes before the kind: length and checksum.
pub(super) const HEAD: usize = 8;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Stream = 1,
    Prediction = 2,
    Feedback = 3,
    Gap = 4,
    End = 5,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Stream, Kind::Prediction, Kind::Feedback, Kind::Gap, Kind::End];
}

/// A frame of 4 GiB or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Appends a frame whose body `fill` writes. When the frame is too large, `out` keeps its former content.
pub(super) fn write_frame(out: &mut Vec<u8>, kind: Kind, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), TooLarge> {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    out.push(kind as u8);
    fill(out);
    let Ok(length) = u32::try_from(out.len() - start - HEAD) else {
        out.truncate(start);
        return Err(TooLarge);
    };
    let sum = crc32fast::hash(&out[start + HEAD..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + HEAD].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// Iterates over frames. It ends at the first frame that is incomplete or whose checksum is wrong; [`Frames::at`] is then the start of
/// that frame.
#[derive(Debug, Clone)]
pub(super) struct Frames<'f> {
    bytes: &'f [u8],
    at: usize,
}

impl<'f> Frames<'f> {
    /// `at`: the start of the first frame.
    pub fn new(bytes: &'f [u8], at: usize) -> Frames<'f> {
        Frames { bytes, at }
    }

    pub fn at(&self) -> usize {
        self.at
    }
}

impl<'f> Iterator for Frames<'f> {
    type Item = (Kind, &'f [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.bytes.get(self.at..self.at + HEAD)?;
        let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
        let sum = u32::from_le_bytes(head[4..].try_into().ok()?);
        let start = self.at + HEAD;
        let content = self.bytes.get(start..start.checked_add(length)?)?;
        let (kind, body) = content.split_first()?;
        let kind = Kind::ALL.into_iter().find(|k| *k as u8 == *kind)?;
        if crc32fast::hash(content) != sum {
            return None;
        }
        self.at = start + length;
        Some((kind, body))
    }
}

/// The frames of a buffer that this process filled. They are complete, so checksums are not compared.
pub(super) fn own_frames(bytes: &[u8]) -> impl Iterator<Item = (Kind, &[u8])> {
    let mut reader = Reader(bytes);
    std::iter::from_fn(move || {
        let (length, _sum) = (reader.u32()?, reader.u32()?);
        let (kind, body) = reader.bytes(length as usize)?.split_first()?;
        Some((Kind::ALL.into_iter().find(|k| *k as u8 == *kind)?, body))
    })
}

// === other frames ===

/// Appends the frame that says which stream a number stands for.
pub(super) fn write_stream(out: &mut Vec<u8>, id: u32, about: &About) -> Result<(), TooLarge> {
    write_frame(out, Kind::Stream, |out| {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(about.to_json().to_string().as_bytes());
    })
}

pub(super) fn read_stream(body: &[u8]) -> Option<(u32, Arc<About>)> {
    let mut reader = Reader(body);
    let id = reader.u32()?;
    let about = serde_json::from_slice(reader.0).ok()?;
    Some((id, Arc::new(About::from_json(about).ok()?)))
}

/// Appends a text of at most 64 KiB after its length. A longer text is cut; request ids and arms are never that long.
pub(super) fn write_text(out: &mut Vec<u8>, text: &str) {
    let text = cut_text(text);
    let length = u16::try_from(text.len()).expect("the text was cut to this length");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text);
}

pub(super) fn cut_text(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(usize::from(u16::MAX))]
}

/// Reads a body from its front.
pub(super) struct Reader<'f>(pub &'f [u8]);

impl<'f> Reader<'f> {
    pub fn bytes(&mut self, n: usize) -> Option<&'f [u8]> {
        let (front, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(front)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// What [`write_text`] wrote.
    pub fn text(&mut self) -> Option<&'f str> {
        let length = u16::from_le_bytes(self.array()?);
        std::str::from_utf8(self.bytes(usize::from(length))?).ok()
    }
}
