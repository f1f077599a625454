//! Compression and decompression of bodies: gzip and deflate.
//!
//! Decompression stops at a limit, so a small body that expands without end costs no more memory than the limit.

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

    fn parse(name: &str) -> Option<Encoding> {
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
pub fn inflate(encoding: &str, body: Bytes, max: usize) -> Result<Bytes, Failure> {
    let name = encoding.trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        return Ok(body);
    }
    let Some(encoding) = Encoding::parse(name) else {
        return Err(Failure::new(
            Code::UnsupportedMediaType,
            format!("content encoding {} is not supported: expected gzip, deflate or identity", quoted(name)),
        ));
    };
    let inflated = match encoding {
        Encoding::Gzip => decompress(&mut MultiGzDecoder::new(&body[..]), MultiGzDecoder::get_ref, max),
        // Clients send both forms under this name, and the first bytes do not always tell which one it is.
        Encoding::Deflate => decompress(&mut ZlibDecoder::new(&body[..]), ZlibDecoder::get_ref, max).or_else(|error| {
            decompress(&mut DeflateDecoder::new(&body[..]), DeflateDecoder::get_ref, max).map_err(|_| error)
        }),
    };
    match inflated {
        Ok(plain) if plain.len() > max => Err(Failure::new(
            Code::BodyTooLarge,
            format!("the body is larger than {max} bytes after {} decompression", encoding.as_str()),
        )),
        Ok(plain) => Ok(plain.into()),
        Err(problem) => Err(Failure::new(Code::InvalidRequest, format!("the {} body is {problem}", encoding.as_str()))),
    }
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

/// Decompresses everything, up to one byte more than `max`. `rest` returns the input that the decoder has not consumed.
fn decompress<'b, D: Read>(
    decoder: &mut D,
    rest: impl Fn(&D) -> &&'b [u8],
    max: usize,
) -> Result<Vec<u8>, &'static str> {
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let mut plain = Vec::new();
    match decoder.take(limit).read_to_end(&mut plain) {
        Ok(_) if plain.len() <= max && !rest(decoder).is_empty() => Err("followed by bytes that are not part of it"),
        Ok(_) => Ok(plain),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err("cut short"),
        Err(_) => Err("corrupt"),
    }
}
