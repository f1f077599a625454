//! Answers: their headers and bodies.

use super::problem;
use crate::model::{Failure, RequestId};
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, VARY};
use http::{HeaderMap, Response};
use http_body_util::Full;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::fmt::Write as _;
use std::time::Duration;

pub type HttpResponse = Response<Full<Bytes>>;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const X_VERSION: HeaderName = HeaderName::from_static("x-sluicegate-version");
pub const X_ARM: HeaderName = HeaderName::from_static("x-sluicegate-arm");
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
pub const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A JSON answer with status 200.
pub fn json(body: impl Into<Bytes>) -> HttpResponse {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A prediction's body: JSON alone, or JSON of the given length followed by binary tensors.
pub fn prediction(body: Bytes, json_length: Option<usize>) -> HttpResponse {
    let mut response = json(body);
    if let Some(length) = json_length {
        response.headers_mut().insert(CONTENT_TYPE, BINARY);
        response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    response
}

/// An error answer.
pub fn failed(failure: &Failure) -> HttpResponse {
    problem::response(failure).map(Full::new)
}

/// Marks an answer as compressed.
pub fn encoded(headers: &mut HeaderMap, encoding: &'static str) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
}

/// The caller's `x-request-id`, where there is one that can be an id.
pub fn caller_id(headers: &HeaderMap) -> Option<RequestId> {
    let value = headers.get(X_REQUEST_ID)?;
    RequestId::from_caller(String::from_utf8_lossy(value.as_bytes()).into_owned())
        .ok()
        .filter(|id| !id.as_str().is_empty())
}

/// Puts the request id on an answer, as it is where a header can carry it and percent-encoded where it cannot.
pub fn request_id(headers: &mut HeaderMap, id: &RequestId) {
    /// What a header value cannot carry, or a proxy might trim; `%` too, so that an encoded id can be decoded.
    const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'"');
    let id = id.as_str();
    let plain = id.bytes().all(|b| (0x21..=0x7e).contains(&b)) && !id.is_empty();
    let value = if plain {
        HeaderValue::from_str(id)
    } else {
        HeaderValue::from_str(&utf8_percent_encode(id, UNSAFE).to_string())
    };
    headers.insert(
        X_REQUEST_ID,
        value.expect("visible ASCII is a header value, and percent-encoding leaves nothing else"),
    );
}

/// Who answered: version and arm, both of which are header text by their own rules.
pub fn served_by(headers: &mut HeaderMap, version: &str, arm: &str) {
    for (name, text) in [(X_VERSION, version), (X_ARM, arm)] {
        // Versions are digits, and arms match [A-Za-z0-9._-]: both checked where they are made.
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    }
}

/// `server-timing` (W3C Server Timing), in milliseconds with microsecond digits.
pub fn timing(headers: &mut HeaderMap, queue: Duration, infer: Duration) {
    let (queue, infer) = (queue.as_micros(), infer.as_micros());
    let mut text = String::with_capacity(48);
    // Writing to a String cannot fail.
    let _ =
        write!(text, "queue;dur={}.{:03}, infer;dur={}.{:03}", queue / 1000, queue % 1000, infer / 1000, infer % 1000);
    headers.insert(SERVER_TIMING, HeaderValue::try_from(text).expect("digits and punctuation are header text"));
}
