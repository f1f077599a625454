//! The status that ends a call. Only this file maps codes to those of gRPC.

use super::super::answer::HttpResponse;
use super::{ENCODING, set_headers};
use crate::codec::grpc::generated::google::protobuf::{Any, Duration};
use crate::codec::grpc::generated::google::rpc::bad_request::FieldViolation;
use crate::codec::grpc::generated::google::rpc::{BadRequest, ErrorInfo, RetryInfo, Status};
use crate::model::{Code, Failure};
use crate::traces::Outcome;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response};
use prost::{Message, Name};
use tonic::Code as Grpc;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const X_CODE: HeaderName = HeaderName::from_static("x-sluicegate-code");

/// Clients take 8 KiB of metadata by default. A message is percent-encoded, which can make three bytes of one.
const MAX_MESSAGE: usize = 1 << 10;
/// The most bytes of all details together.
const MAX_DETAILS: usize = 2 << 10;

/// The code of gRPC for a code.
const fn grpc_code(code: Code) -> Grpc {
    match code {
        Code::InvalidRequest | Code::InvalidTensor => Grpc::InvalidArgument,
        Code::Unauthenticated => Grpc::Unauthenticated,
        Code::Forbidden => Grpc::PermissionDenied,
        Code::ModelNotFound | Code::VersionNotFound | Code::LabelNotFound => Grpc::NotFound,
        // A path or a coding that this server does not have.
        Code::NotFound | Code::MethodNotAllowed | Code::NotAcceptable | Code::UnsupportedMediaType => {
            Grpc::Unimplemented
        }
        Code::Conflict => Grpc::Aborted,
        Code::PreconditionFailed => Grpc::FailedPrecondition,
        Code::BodyTooLarge | Code::HeadersTooLarge | Code::TooManyRequests => Grpc::ResourceExhausted,
        Code::ClientClosed => Grpc::Cancelled,
        Code::Internal | Code::EngineFailed => Grpc::Internal,
        Code::NotReady | Code::Unsupported | Code::Draining | Code::Overloaded | Code::LogUnavailable => {
            Grpc::Unavailable
        }
        Code::BodyTimeout | Code::DeadlineExceeded => Grpc::DeadlineExceeded,
    }
}

/// The status of a call for its span, by OpenTelemetry's conventions. `None`: it succeeded.
pub(in crate::http) fn outcome(failure: Option<Code>) -> Outcome {
    let code = failure.map_or(Grpc::Ok, grpc_code);
    let is_error = matches!(
        code,
        Grpc::Unknown
            | Grpc::DeadlineExceeded
            | Grpc::Unimplemented
            | Grpc::Internal
            | Grpc::Unavailable
            | Grpc::DataLoss
    );
    Outcome { status: u16::try_from(code as i32).unwrap_or(2), is_error }
}

/// The trailers of a call that succeeded.
pub(super) fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(8);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The trailers of a call that failed: the status, the stable code, and details as `google.rpc.Status` has them.
pub(super) fn trailers(failure: &Failure) -> HeaderMap {
    let code = grpc_code(failure.code);
    let message = cut(&failure.message, MAX_MESSAGE);
    let status = tonic::Status::with_details(code, message, details(failure, code, message));
    let mut trailers = HeaderMap::new();
    // It fails for bytes that a header cannot carry. All are percent-encoded or in base64.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(STATUS, HeaderValue::from(code as i32));
    }
    trailers.insert(X_CODE, HeaderValue::from_static(failure.code.as_str()));
    if let Some(after) = failure.retry_after {
        trailers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    trailers
}

/// The answer to a call that failed before it had a message: its headers are its trailers.
pub(in crate::http) fn error(failure: &Failure) -> HttpResponse {
    let mut response = Response::new(super::super::answer_body::AnswerBody::default());
    *response.headers_mut() = trailers(failure);
    set_headers(response.headers_mut());
    response
}

/// Whether an answer is a failure, which has its status in the headers.
pub(in crate::http) fn is_failed(response: &HttpResponse) -> bool {
    debug_assert!(!response.headers().contains_key(ENCODING) || !response.headers().contains_key(STATUS));
    response.headers().contains_key(STATUS)
}

/// `google.rpc.Status` with the stable code, all complaints, and when to retry.
fn details(failure: &Failure, code: Grpc, message: &str) -> Bytes {
    let reason = failure.code.as_str().to_owned();
    let mut details = vec![any(&ErrorInfo { reason, domain: "sluicegate".to_owned(), ..ErrorInfo::default() })];
    let mut left = MAX_DETAILS;
    let mut field_violations = Vec::new();
    for detail in &failure.details {
        let description = cut(detail, left);
        if description.len() < detail.len() {
            break;
        }
        left -= description.len();
        field_violations.push(FieldViolation { description: description.to_owned(), ..FieldViolation::default() });
    }
    if !field_violations.is_empty() {
        details.push(any(&BadRequest { field_violations }));
    }
    if let Some(after) = failure.retry_after {
        let seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
        let nanos = i32::try_from(after.subsec_nanos()).unwrap_or_default();
        details.push(any(&RetryInfo { retry_delay: Some(Duration { seconds, nanos }) }));
    }
    Status { code: code as i32, message: message.to_owned(), details }.encode_to_vec().into()
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com{}", M::type_url()), value: message.encode_to_vec().into() }
}

/// The beginning of a text, of at most so many bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
