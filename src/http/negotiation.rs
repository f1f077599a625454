//! Content negotiation: the media types of request and answer, and the compression of the answer.

use super::answer::{self, HttpResponse};
use crate::codec::inflate::{self, Encoding};
use crate::model::{Code, Failure, quoted};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};

/// Checks that the body has a media type this server reads, and that the client accepts a type this server writes.
///
/// A missing `content-type` is accepted (tritonclient sends none), and so are the form type that `curl -d` sends by default and the
/// plain text that `fetch` in browsers and Node sends for a string. The body is read as JSON in all these cases, as Triton and
/// TensorFlow Serving do.
pub(super) fn check_media_types(headers: &HeaderMap) -> Result<(), Failure> {
    check_body(headers)?;
    check_accepted(headers)
}

fn check_body(headers: &HeaderMap) -> Result<(), Failure> {
    const READ: [&str; 4] =
        ["application/json", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"];
    if let Some(value) = headers.get(CONTENT_TYPE) {
        let text = value.to_str().unwrap_or_default();
        let media = text.split(';').next().unwrap_or_default().trim();
        let known =
            READ.iter().any(|known| media.eq_ignore_ascii_case(known)) || media.ends_with("+json") || media.is_empty();
        if !known {
            return Err(Failure::new(
                Code::UnsupportedMediaType,
                format!("content-type: expected application/json or application/octet-stream, got {}", quoted(text)),
            ));
        }
    }
    Ok(())
}

/// Checks that the client accepts a type this server writes.
pub(super) fn check_accepted(headers: &HeaderMap) -> Result<(), Failure> {
    let mut accepts = headers.get_all(ACCEPT).iter().filter(|v| !v.is_empty()).peekable();
    if accepts.peek().is_none() {
        return Ok(());
    }
    let acceptable = accepts.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let refused =
            parts.any(|p| matches!(p.strip_prefix("q="), Some(q) if q.parse::<f32>().is_ok_and(|q| q <= 0.0)));
        let ours = ["*/*", "application/*", "application/json", "application/octet-stream"];
        !refused && ours.iter().any(|known| media.eq_ignore_ascii_case(known))
    });
    if acceptable {
        return Ok(());
    }
    Err(Failure::new(
        Code::NotAcceptable,
        "accept: answers are application/json, or application/octet-stream for binary outputs",
    ))
}

/// The coding of an answer that the client prefers; `None` for no compression.
pub(super) fn accepted_encoding(headers: &HeaderMap) -> Option<Encoding> {
    let accepted = headers.get(ACCEPT_ENCODING)?.to_str().ok()?;
    inflate::negotiate(accepted)
}

/// Compresses a whole answer if the client accepts that and it makes the answer smaller. An answer in pieces is compressed as it is sent.
pub(super) fn compress(headers: &HeaderMap, mut response: HttpResponse) -> HttpResponse {
    let Some(encoding) = accepted_encoding(headers) else { return response };
    let Some(plain) = response.body().whole() else { return response };
    let compressed = inflate::compress(encoding, plain);
    if compressed.len() < plain.len() {
        answer::set_encoding(response.headers_mut(), encoding.as_str());
        *response.body_mut() = Bytes::from(compressed).into();
    }
    response
}
