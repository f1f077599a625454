//! Compressed bodies: gzip and deflate, both ways.
//!
//! What comes in is counted while it is inflated, so a small body that would grow past the cap costs the cap and no more.

use crate::model::{Code, Failure};
use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use std::io::{self, Read, Write as _};

/// Shorter answers are not worth compressing: they fit in one packet either way.
pub const WORTH_COMPRESSING: usize = 1024;

/// A content coding this server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    Gzip,
    /// The zlib format (RFC 1950), which is what HTTP means by it.
    Deflate,
}

impl Encoding {
    /// As `Content-Encoding` spells it.
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

/// Undoes a `Content-Encoding`: `gzip` (of one or more members), `deflate` (with its zlib wrapping or, as some clients send
/// it, without) or `identity`. The body that comes out has at most `cap` bytes.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE` for another coding or a list of them, `BODY_TOO_LARGE` over the cap, `INVALID_REQUEST` when the
/// stream is broken, ends early or has bytes after its end.
pub fn inflate(encoding: &str, body: Bytes, cap: usize) -> Result<Bytes, Failure> {
    let name = encoding.trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        return Ok(body);
    }
    let Some(encoding) = Encoding::parse(name) else {
        let shown: String = name.chars().take(60).collect();
        return Err(Failure::new(
            Code::UnsupportedMediaType,
            format!("content encoding {shown:?} is not supported: expected gzip, deflate or identity"),
        ));
    };
    let inflated = match encoding {
        Encoding::Gzip => drain(&mut MultiGzDecoder::new(&body[..]), MultiGzDecoder::get_ref, cap),
        // Both forms are sent under this name, and a stream may look like the one and be the other.
        Encoding::Deflate => drain(&mut ZlibDecoder::new(&body[..]), ZlibDecoder::get_ref, cap)
            .or_else(|why| drain(&mut DeflateDecoder::new(&body[..]), DeflateDecoder::get_ref, cap).map_err(|_| why)),
    };
    match inflated {
        Ok(plain) if plain.len() > cap => Err(Failure::new(
            Code::BodyTooLarge,
            format!("the body is larger than {cap} bytes once its {} encoding is undone", encoding.as_str()),
        )),
        Ok(plain) => Ok(plain.into()),
        Err(why) => Err(Failure::new(Code::InvalidRequest, format!("the {} body is {why}", encoding.as_str()))),
    }
}

/// Compresses an answer, quickly rather than tightly.
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
    written.expect("memory takes all that is written to it")
}

/// The coding to answer in, out of an `Accept-Encoding`; `None` is the plain body.
///
/// Of the codings the client takes, the one it likes best; gzip where it does not care, and the plain body only where it
/// says it likes that better. Whether an answer is worth it is for the caller to say ([`WORTH_COMPRESSING`]).
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
    let liked = |named: Option<f32>| named.or(other).unwrap_or(0.0);
    let (encoding, best) =
        if liked(deflate) > liked(gzip) { (Encoding::Deflate, liked(deflate)) } else { (Encoding::Gzip, liked(gzip)) };
    (best > 0.0 && best >= identity.unwrap_or(0.0)).then_some(encoding)
}

/// `q` out of a coding's parameters: 1 when absent, 0 (refused) when it makes no sense.
fn quality(parameters: &str) -> f32 {
    let q = parameters.split(';').find_map(|p| {
        let (name, value) = p.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then_some(value.trim())
    });
    let Some(q) = q else { return 1.0 };
    q.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0)
}

/// Reads all there is, at most one byte more than `cap`; `rest` gives what the decoder has not consumed.
fn drain<'b, D: Read>(decoder: &mut D, rest: impl Fn(&D) -> &&'b [u8], cap: usize) -> Result<Vec<u8>, &'static str> {
    let limit = u64::try_from(cap).unwrap_or(u64::MAX).saturating_add(1);
    let mut plain = Vec::new();
    match decoder.take(limit).read_to_end(&mut plain) {
        Ok(_) if plain.len() <= cap && !rest(decoder).is_empty() => Err("followed by bytes that are not part of it"),
        Ok(_) => Ok(plain),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err("cut short"),
        Err(_) => Err("corrupt"),
    }
}
