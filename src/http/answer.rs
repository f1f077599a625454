//! The headers and bodies of answers.

use super::answer_body::AnswerBody;
use super::{grpc, problem};
use crate::model::{Failure, RequestId};
use bytes::Bytes;
use bytestring::ByteString;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, VARY};
use http::{HeaderMap, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use smallvec::SmallVec;
use std::time::Duration;

pub(super) type HttpResponse = Response<AnswerBody>;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const X_VERSION: HeaderName = HeaderName::from_static("x-sluicegate-version");
pub(super) const X_ARM: HeaderName = HeaderName::from_static("x-sluicegate-arm");
pub(super) const X_FALLBACK: HeaderName = HeaderName::from_static("x-sluicegate-fallback");
pub(super) const X_PRIORITY: HeaderName = HeaderName::from_static("x-sluicegate-priority");
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
pub(super) const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A JSON answer with status 200.
pub(super) fn json(body: impl Into<Bytes>) -> HttpResponse {
    json_body(body.into().into())
}

/// An answer of plain text with status 200.
pub(super) fn text(body: &'static str) -> HttpResponse {
    let mut response = Response::new(Bytes::from_static(body.as_bytes()).into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json_body(body: AnswerBody) -> HttpResponse {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// The answer to a prediction: JSON, or JSON of the given length followed by binary tensors.
pub(super) fn prediction(body: AnswerBody, json_length: Option<usize>) -> HttpResponse {
    let mut response = json_body(body);
    if let Some(length) = json_length {
        response.headers_mut().insert(CONTENT_TYPE, BINARY);
        response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    response
}

/// An error answer.
pub(super) fn error(failure: &Failure) -> HttpResponse {
    problem::response(failure).map(AnswerBody::from)
}

/// The protocol around a request: how its body is framed, and how failures are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// A status code and JSON.
    Http,
    /// The same, and bodies may be tables of other media types.
    Invocations,
    /// Frames, and a status in the trailers.
    Grpc,
}

impl Dialect {
    /// An error answer.
    pub(super) fn error(self, failure: &Failure) -> HttpResponse {
        match self {
            Dialect::Http | Dialect::Invocations => error(failure),
            Dialect::Grpc => grpc::error(failure),
        }
    }
}

/// Sets the headers of a compressed answer.
pub(super) fn set_encoding(headers: &mut HeaderMap, encoding: &'static str) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
}

/// The caller's `x-request-id`. `None` if it is missing, empty or too long.
pub(super) fn caller_id(headers: &HeaderMap) -> Option<RequestId> {
    let value = headers.get(X_REQUEST_ID)?;
    RequestId::from_caller(String::from_utf8_lossy(value.as_bytes()).into_owned())
        .ok()
        .filter(|id| !id.as_str().is_empty())
}

/// Sets the header `x-request-id`. An id that a header cannot carry is percent-encoded.
pub(super) fn set_request_id(headers: &mut HeaderMap, id: &RequestId) {
    /// Characters that a header value cannot carry or that a proxy might trim. Also `%`, so that an encoded id can be decoded.
    const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'"');
    let text = id.as_str();
    let plain = text.bytes().all(|b| (0x21..=0x7e).contains(&b)) && !text.is_empty();
    let value = if plain {
        HeaderValue::from_maybe_shared(id.to_bytes())
    } else {
        HeaderValue::from_str(&utf8_percent_encode(text, UNSAFE).to_string())
    };
    headers.insert(X_REQUEST_ID, value.expect("both the plain and the percent-encoded form are visible ASCII"));
}

/// Sets the headers that name the version and the arm that answered.
pub(super) fn set_served_by(headers: &mut HeaderMap, version: &ByteString, arm: &ByteString) {
    for (name, text) in [(X_VERSION, version), (X_ARM, arm)] {
        // Always valid: versions are digits, and arms match [A-Za-z0-9._-].
        if let Ok(value) = HeaderValue::from_maybe_shared(text.as_bytes().clone()) {
            headers.insert(name, value);
        }
    }
}

/// Says that the document's fallback answered, and why.
pub(super) fn set_fallback(headers: &mut HeaderMap, reason: &'static str) {
    headers.insert(X_FALLBACK, HeaderValue::from_static(reason));
}

/// Removes what tells a caller which version its key gets.
pub(super) fn hide_served_by(headers: &mut HeaderMap) {
    for name in [X_VERSION, X_ARM, X_FALLBACK] {
        headers.remove(name);
    }
}

/// Sets `server-timing` (W3C Server Timing), in milliseconds with three decimals.
pub(super) fn set_timing(headers: &mut HeaderMap, queue: Duration, infer: Duration) {
    let mut text = SmallVec::<[u8; 96]>::new();
    text.extend_from_slice(b"queue;dur=");
    millis(&mut text, queue);
    text.extend_from_slice(b", infer;dur=");
    millis(&mut text, infer);
    headers.insert(
        SERVER_TIMING,
        HeaderValue::from_bytes(&text).expect("digits and ASCII punctuation are valid in a header"),
    );
}

fn millis(text: &mut SmallVec<[u8; 96]>, duration: Duration) {
    let micros = duration.as_micros();
    text.extend_from_slice(itoa::Buffer::new().format(micros / 1000).as_bytes());
    // Adding 1000 keeps leading zeros. The first digit is cut off below.
    let fraction = micros % 1000 + 1000;
    text.push(b'.');
    text.extend_from_slice(&itoa::Buffer::new().format(fraction).as_bytes()[1..]);
}
