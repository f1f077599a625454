//! Compression and decompression of bodies: gzip and deflate.
//!
//! Decompression stops at a limit, so a small body that expands without end costs no more memory than the limit.

use crate::budget::Hold;
use crate::model::{Code, Failure, quoted};
use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use std::io::{self, Read, Write as _};

/// A supported content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    Gzip,
    /// The zlib format (RFC 1950), as HTTP defines it.
    Deflate,
}

impl Encoding {
    /// The name in `Content-Encoding`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
        }
    }

    pub fn parse(name: &str) -> Option<Encoding> {
        match name.trim() {
            n if n.eq_ignore_ascii_case("gzip") || n.eq_ignore_ascii_case("x-gzip") => Some(Encoding::Gzip),
            n if n.eq_ignore_ascii_case("deflate") => Some(Encoding::Deflate),
            _ => None,
        }
    }
}

/// Decodes a body with the given `Content-Encoding`: `gzip` (one or more members), `deflate` (with the zlib header or, as some
/// clients send it, without) or `identity`. The result has at most `max` bytes.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE` for another coding or a list of codings, `BODY_TOO_LARGE` over the limit, `INVALID_REQUEST` if the
/// stream is corrupt, incomplete or followed by other bytes.
pub fn inflate(encoding: &str, body: Bytes, max: usize, hold: &Hold) -> Result<Bytes, Failure> {
    let length = body.len();
    let plain = inflate_up_to(encoding, &body, max, hold)?.ok_or_else(|| too_large(encoding, max))?;
    let is_same = plain.as_ptr() == body.as_ptr();
    drop(body);
    if !is_same {
        hold.shrink_by(length);
    }
    Ok(plain)
}

/// More than `max` bytes come out of a body.
#[cold]
pub fn too_large(encoding: &str, max: usize) -> Failure {
    let coding = encoding.trim();
    Failure::new(Code::BodyTooLarge, format!("the body is larger than {max} bytes after {coding} decompression"))
}

/// The same, but `None` where more than `max` bytes come out of it. The compressed body is still counted.
///
/// # Errors
/// As [`inflate`].
pub fn inflate_up_to(encoding: &str, body: &Bytes, max: usize, hold: &Hold) -> Result<Option<Bytes>, Failure> {
    let name = encoding.trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        return Ok(Some(body.clone()));
    }
    let Some(encoding) = Encoding::parse(name) else {
        return Err(Failure::new(
            Code::UnsupportedMediaType,
            format!("content encoding {} is not supported: expected gzip, deflate or identity", quoted(name)),
        ));
    };
    let inflated = match encoding {
        Encoding::Gzip => decompress(&mut MultiGzDecoder::new(&body[..]), MultiGzDecoder::get_ref, max, hold),
        // Clients send both forms under this name, and the first bytes do not always tell which one it is.
        Encoding::Deflate => match decompress(&mut ZlibDecoder::new(&body[..]), ZlibDecoder::get_ref, max, hold) {
            Err(Problem::Broken(problem)) => {
                match decompress(&mut DeflateDecoder::new(&body[..]), DeflateDecoder::get_ref, max, hold) {
                    Err(Problem::Broken(_)) => Err(Problem::Broken(problem)),
                    other => other,
                }
            }
            other => other,
        },
    };
    match inflated {
        Ok(plain) => Ok(Some(plain.into())),
        Err(Problem::TooLarge) => Ok(None),
        Err(Problem::Refused(failure)) => Err(failure),
        Err(Problem::Broken(problem)) => {
            Err(Failure::new(Code::InvalidRequest, format!("the {} body is {problem}", encoding.as_str())))
        }
    }
}

/// Why a body was not decompressed.
enum Problem {
    Broken(&'static str),
    TooLarge,
    /// There is no memory for it.
    Refused(Failure),
}

/// Compresses an answer, at the fastest level.
#[must_use]
pub fn compress(encoding: Encoding, plain: &[u8]) -> Vec<u8> {
    let out = Vec::with_capacity(plain.len() / 2);
    let written = match encoding {
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(out, Compression::fast());
            encoder.write_all(plain).and_then(|()| encoder.finish())
        }
        Encoding::Deflate => {
            let mut encoder = ZlibEncoder::new(out, Compression::fast());
            encoder.write_all(plain).and_then(|()| encoder.finish())
        }
    };
    written.expect("writing to a Vec does not fail")
}

/// Compresses an answer in pieces, at the fastest level.
#[derive(Debug)]
pub enum Compressor {
    Gzip(GzEncoder<Vec<u8>>),
    Deflate(ZlibEncoder<Vec<u8>>),
}

impl Compressor {
    #[must_use]
    pub fn new(encoding: Encoding) -> Compressor {
        match encoding {
            Encoding::Gzip => Compressor::Gzip(GzEncoder::new(Vec::new(), Compression::fast())),
            Encoding::Deflate => Compressor::Deflate(ZlibEncoder::new(Vec::new(), Compression::fast())),
        }
    }

    /// Takes a piece of the answer. Returns what can be sent, which may be nothing.
    pub fn write(&mut self, plain: &[u8]) -> Vec<u8> {
        let (written, out) = match self {
            Compressor::Gzip(encoder) => (encoder.write_all(plain), encoder.get_mut()),
            Compressor::Deflate(encoder) => (encoder.write_all(plain), encoder.get_mut()),
        };
        written.expect("writing to a Vec does not fail");
        std::mem::take(out)
    }

    /// The rest, after the last piece.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let finished = match self {
            Compressor::Gzip(encoder) => encoder.finish(),
            Compressor::Deflate(encoder) => encoder.finish(),
        };
        finished.expect("writing to a Vec does not fail")
    }
}

/// Chooses the coding of the answer from an `Accept-Encoding` header. `None` means no compression.
///
/// The choice is the supported coding with the highest quality value, gzip if they are equal, and no compression only if the
/// client prefers `identity`.
#[must_use]
pub fn negotiate(accept_encoding: &str) -> Option<Encoding> {
    let (mut gzip, mut deflate, mut other, mut identity) = (None, None, None, None);
    for item in accept_encoding.split(',') {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        let slot = match (name.trim(), Encoding::parse(name)) {
            (_, Some(Encoding::Gzip)) => &mut gzip,
            (_, Some(Encoding::Deflate)) => &mut deflate,
            ("*", _) => &mut other,
            (name, _) if name.eq_ignore_ascii_case("identity") => &mut identity,
            _ => continue,
        };
        *slot = Some(quality(parameters));
    }
    let quality_of = |named: Option<f32>| named.or(other).unwrap_or(0.0);
    let (encoding, best) = if quality_of(deflate) > quality_of(gzip) {
        (Encoding::Deflate, quality_of(deflate))
    } else {
        (Encoding::Gzip, quality_of(gzip))
    };
    (best > 0.0 && best >= identity.unwrap_or(0.0)).then_some(encoding)
}

/// The quality value in a coding's parameters: 1 if it is missing, 0 (not accepted) if it is invalid.
fn quality(parameters: &str) -> f32 {
    let q = parameters.split(';').find_map(|p| {
        let (name, value) = p.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then_some(value.trim())
    });
    let Some(q) = q else { return 1.0 };
    q.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0)
}

/// Decompresses everything, at most `max` bytes. `rest` returns the input that the decoder has not consumed. After an error, what was
/// counted for the result is given back.
fn decompress<'b, D: Read>(
    decoder: &mut D,
    rest: impl Fn(&D) -> &&'b [u8],
    max: usize,
    hold: &Hold,
) -> Result<Vec<u8>, Problem> {
    let before = hold.used();
    let mut plain = Vec::new();
    let result = fill(decoder, &mut plain, max, hold);
    let result = match result {
        Ok(()) if !rest(decoder).is_empty() => Err(Problem::Broken("followed by bytes that are not part of it")),
        other => other,
    };
    match result {
        Ok(()) => Ok(plain),
        Err(problem) => {
            drop(plain);
            hold.shrink_to(before);
            Err(problem)
        }
    }
}

/// Fills `plain` with all that comes out of the decoder.
fn fill(decoder: &mut impl Read, plain: &mut Vec<u8>, max: usize, hold: &Hold) -> Result<(), Problem> {
    /// The least room for a read.
    const STEP: usize = 8 << 10;
    // One byte more than allowed shows that there is more.
    let most = max.saturating_add(1);
    // Bytes after this are zeros. They are written once, and not before each read: a body can be made of members of one byte.
    let mut filled = 0;
    let result = loop {
        if filled == plain.len() {
            if filled == most {
                break Err(Problem::TooLarge);
            }
            if let Err(failure) = hold.room(plain, STEP.min(most - filled), most) {
                break Err(Problem::Refused(failure));
            }
            plain.resize(plain.capacity().min(most), 0);
        }
        match decoder.read(&mut plain[filled..]) {
            Ok(0) => break Ok(()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break Err(Problem::Broken("cut short")),
            Err(_) => break Err(Problem::Broken("corrupt")),
        }
    };
    plain.truncate(filled);
    if result.is_ok() && filled > max { Err(Problem::TooLarge) } else { result }
}
