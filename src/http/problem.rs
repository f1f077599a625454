//! The error answer of both planes. Only this file maps codes to HTTP.

use crate::model::{Code, Failure};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use serde::Serialize;

/// The HTTP status of a code.
fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidRequest | Code::InvalidTensor => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Forbidden => StatusCode::FORBIDDEN,
        Code::NotFound | Code::ModelNotFound | Code::VersionNotFound | Code::LabelNotFound => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
        Code::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        Code::Conflict => StatusCode::CONFLICT,
        Code::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        Code::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        // A client that closed its connection never reads its answer.
        Code::ClientClosed | Code::Internal | Code::EngineFailed => StatusCode::INTERNAL_SERVER_ERROR,
        Code::NotReady | Code::Unsupported | Code::Draining | Code::Overloaded | Code::LogUnavailable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// `{"error": "<sentence>", "code": "<STABLE_CODE>"}`, with `"details": [...]` if there are several complaints.
#[derive(Debug, Serialize)]
struct Problem<'a> {
    error: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    details: &'a [String],
}

/// The body of an error answer: at most 64 KiB, and without the text for the log.
fn body(failure: &Failure) -> Bytes {
    // The fields are public, so the text can have grown since the failure was created.
    let mut bounded = Failure { internal: None, ..failure.clone() };
    bounded.limit();
    let problem = Problem { error: &bounded.message, code: bounded.code.as_str(), details: &bounded.details };
    serde_json::to_vec(&problem).expect("strings always serialize").into()
}

/// In whole seconds, as the header has them, and at least one: where it is not known, the cause may be gone by then.
fn retry_after(failure: &Failure) -> u64 {
    const MOST: u64 = 60;
    let after = failure.retry_after.unwrap_or_default();
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).clamp(1, MOST)
}

/// The complete error answer: status, `retry-after` if a retry can help, JSON body.
#[must_use]
pub fn response(failure: &Failure) -> Response<Bytes> {
    let mut response = Response::new(body(failure));
    *response.status_mut() = status(failure.code);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let retry = status(failure.code) == StatusCode::SERVICE_UNAVAILABLE || failure.code == Code::TooManyRequests;
    if retry && failure.code != Code::Unsupported {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after(failure)));
    }
    if failure.code == Code::Unauthenticated {
        let scheme = HeaderValue::from_static("Bearer realm=\"sluicegate\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    }
    response
}
