//! The five bytes before each message: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").

use crate::codec::inflate::{self, Encoding};
use crate::model::{Code, Failure};
use bytes::{Buf as _, Bytes};

/// The bytes before a message.
pub(crate) const HEAD: usize = 5;

/// What the bytes before a message say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) compressed: bool,
    pub(crate) length: usize,
}

/// Reads the beginning of a frame. `None` where fewer than [`HEAD`] bytes are there.
///
/// # Errors
/// `INVALID_REQUEST` for a first byte that is neither 0 nor 1.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let Some([flag, length @ ..]) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
    if *flag > 1 {
        return Err(invalid(format!("a gRPC frame is expected to begin with the byte 0 or 1, got {flag}")));
    }
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    Ok(Some(Head { compressed: *flag == 1, length }))
}

/// The one message of a call, and whether it is compressed.
///
/// # Errors
/// `INVALID_REQUEST` where the body is not exactly one frame.
pub(crate) fn only_message(mut body: Bytes) -> Result<(bool, Bytes), Failure> {
    if body.is_empty() {
        return Err(invalid("the call has no message: expected one"));
    }
    let Some(head) = head(&body)? else {
        return Err(invalid(format!("a gRPC frame begins with {HEAD} bytes, but the body has only {}", body.len())));
    };
    body.advance(HEAD);
    if body.len() < head.length {
        return Err(invalid(format!(
            "the message has {} bytes by its frame, but only {} arrived",
            head.length,
            body.len()
        )));
    }
    if body.len() > head.length {
        let rest = body.len() - head.length;
        return Err(invalid(format!("expected one message in the call, but {rest} bytes follow after it")));
    }
    Ok((head.compressed, body))
}

/// The coding of compressed messages, by the header `grpc-encoding`.
///
/// # Errors
/// `INVALID_REQUEST` without the header, `UNSUPPORTED_MEDIA_TYPE` for a coding that is not supported.
pub(crate) fn encoding(header: Option<&[u8]>) -> Result<Encoding, Failure> {
    let Some(name) = header.map(String::from_utf8_lossy) else {
        return Err(invalid("the message is compressed, but the header grpc-encoding does not say how"));
    };
    Encoding::parse(&name).ok_or_else(|| {
        let message =
            format!("grpc-encoding {} is not supported: expected gzip or deflate", crate::model::quoted(&name));
        Failure::new(Code::UnsupportedMediaType, message)
    })
}

/// Puts the five bytes of a frame in front of a message that left room for them, and compresses it where that makes it smaller.
pub(crate) fn finish(mut framed: Vec<u8>, encoding: Option<Encoding>) -> Result<Bytes, Failure> {
    let Some((head, message)) = framed.split_first_chunk_mut::<HEAD>() else {
        return Err(Failure::new(Code::Internal, "an answer without room for its frame"));
    };
    if let Some(encoding) = encoding {
        let compressed = inflate::compress(encoding, message);
        if compressed.len() < message.len() {
            let head = head_of(true, compressed.len())?;
            return Ok([&head[..], &compressed].concat().into());
        }
    }
    *head = head_of(false, message.len())?;
    Ok(framed.into())
}

/// # Errors
/// `INTERNAL` for more than 4 GiB, which a frame cannot carry.
fn head_of(compressed: bool, length: usize) -> Result<[u8; HEAD], Failure> {
    let length = u32::try_from(length).map_err(|_| {
        Failure::new(
            Code::Internal,
            format!("the answer has {length} bytes, more than a gRPC message can have (4 GiB)"),
        )
    })?;
    let [a, b, c, d] = length.to_be_bytes();
    Ok([u8::from(compressed), a, b, c, d])
}

#[cold]
fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}
