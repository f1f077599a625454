//! gRPC on the connections of HTTP/2: calls, their messages, and the status that ends them.
//!
//! A prediction takes the way of all predictions (`predict.rs`); only its frame, its message and the form of failures differ. The other calls are
//! answered here: [`unary`] and [`describe`], [`health`], [`stream`] and [`reflection`].

mod call;
mod describe;
mod health;
mod messages;
mod places;
mod reflection;
mod status;
mod stream;
mod unary;

pub(super) use call::Call;
pub(super) use messages::Messages;
pub(super) use places::StreamPlaces;
pub(super) use status::{error, is_failed, outcome};

use super::answer::{self, HttpResponse};
use super::data_plane::DataPlane;
use super::door::{Arrived, Sender};
use super::endpoint::{Target, VersionPart, version};
use super::handle::Caller;
use super::predict::{self, Protocol};
use super::traced;
use crate::access::Identity;
use crate::codec::grpc::{Named, NamedVersion};
use crate::codec::inflate::Encoding;
use crate::model::{Code, Failure, quoted};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Response, Version};
use hyper::body::Incoming;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A call whose message has not been read.
pub(super) struct Asked<'a> {
    pub caller: &'a Arc<Caller>,
    pub parts: &'a Parts,
    pub incoming: Incoming,
    pub sender: Sender,
    pub identity: Option<Arc<Identity>>,
    pub received: Instant,
}

/// Answers a call.
pub(super) async fn answer(plane: &Arc<DataPlane>, call: Call, asked: Asked<'_>) -> HttpResponse {
    let response = match call {
        Call::ModelInfer => predict(plane, asked, Protocol::GrpcInfer).await,
        Call::Predict => predict(plane, asked, Protocol::GrpcPredict).await,
        Call::ModelStreamInfer => stream::open(plane, asked),
        Call::HealthWatch => health::watch(plane, asked).await,
        Call::ReflectionV1 | Call::ReflectionV1Alpha => reflection::open(plane, call, asked).await,
        _ => unary::answer(plane, call, asked).await,
    };
    seal(plane, response)
}

async fn predict(plane: &Arc<DataPlane>, asked: Asked<'_>, protocol: Protocol) -> HttpResponse {
    let Asked { caller, parts, incoming, sender, identity, received } = asked;
    let body = super::body::UnreadBody { incoming, caller };
    let arrived = Arrived { headers: &parts.headers, body, received, sender: &sender };
    let trace = traced::begin(plane, parts, caller.address, received);
    predict::predict(plane, arrived, protocol, None, identity.as_deref(), trace).await
}

/// Whether a request is a gRPC call, by its media type: `application/grpc`, also with `+proto`.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    const NAME: &[u8] = b"application/grpc";
    let Some(value) = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) else { return false };
    let Some((name, rest)) = value.split_at_checked(NAME.len()) else { return false };
    name.eq_ignore_ascii_case(NAME) && matches!(rest, [] | [b';', ..] | [b'+', b'p', b'r', b'o', b't', b'o', ..])
}

/// Checks that a request to a call's path is a call.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE` for another media type, `INVALID_REQUEST` over HTTP/1. The client does not read a status of gRPC then.
pub(super) fn check(parts: &Parts) -> Result<(), Failure> {
    if parts.version < Version::HTTP_2 {
        return Err(Failure::new(Code::InvalidRequest, "gRPC calls need HTTP/2, got HTTP/1"));
    }
    if !is_call(&parts.headers) {
        let got = parts
            .headers
            .get(CONTENT_TYPE)
            .map_or("none".into(), |value| quoted(&String::from_utf8_lossy(value.as_bytes())));
        let message = format!("content-type: expected application/grpc, got {got}");
        return Err(Failure::new(Code::UnsupportedMediaType, message));
    }
    Ok(())
}

/// The time limit that a call asks for: up to eight digits and a unit.
///
/// # Errors
/// `INVALID_REQUEST` for anything else.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let of = |text: &str| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let n: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(n * 3600),
            "M" => Duration::from_secs(n * 60),
            "S" => Duration::from_secs(n),
            "m" => Duration::from_millis(n),
            "u" => Duration::from_micros(n),
            "n" => Duration::from_nanos(n),
            _ => return None,
        })
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    of(&text).map(Some).ok_or_else(|| {
        let message =
            format!("grpc-timeout: expected up to eight digits and one of H M S m u n, got {}", quoted(&text));
        Failure::new(Code::InvalidRequest, message)
    })
}

/// The coding for an answer: that of the request, where the client reads it.
pub(super) fn answer_encoding(headers: &HeaderMap, of_request: Option<Encoding>) -> Option<Encoding> {
    let accepted = headers.get(ACCEPT_ENCODING)?.to_str().ok()?;
    of_request.filter(|encoding| accepted.split(',').any(|name| name.trim() == encoding.as_str()))
}

/// An answer with one message, already framed.
pub(super) fn message(framed: Bytes, encoding: Option<Encoding>) -> HttpResponse {
    let mut response = Response::new(framed.into());
    set_headers(response.headers_mut());
    if let Some(encoding) = encoding {
        response.headers_mut().insert(ENCODING, HeaderValue::from_static(encoding.as_str()));
    }
    response
}

/// Sets the headers that each answer has.
fn set_headers(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity,deflate,gzip"));
}

/// Moves what describes an answer from its headers into its trailers, together with the status. A failure has no message: its headers are the
/// trailers.
pub(super) fn seal(plane: &DataPlane, mut response: HttpResponse) -> HttpResponse {
    const MOVED: [HeaderName; 5] =
        [answer::X_REQUEST_ID, answer::X_VERSION, answer::X_ARM, answer::X_FALLBACK, answer::SERVER_TIMING];
    if !plane.limits.version_headers() {
        answer::hide_served_by(response.headers_mut());
    }
    if is_failed(&response) {
        return response;
    }
    let mut trailers = status::ok();
    for name in MOVED {
        if let Some(value) = response.headers_mut().remove(&name) {
            trailers.insert(name, value);
        }
    }
    response.body_mut().set_trailers(trailers);
    response
}

/// The model and version that a message names, for a caller that may use the model.
///
/// # Errors
/// `INVALID_REQUEST` without a model, `VERSION_NOT_FOUND` for what is not a version, `FORBIDDEN`.
pub(super) fn target(plane: &DataPlane, identity: Option<&Identity>, named: Named) -> Result<Target<'static>, Failure> {
    if named.model.is_empty() {
        return Err(Failure::new(Code::InvalidRequest, "the message names no model"));
    }
    plane.check_model(identity, &named.model)?;
    let version = match named.version {
        NamedVersion::Any => VersionPart::Any,
        NamedVersion::Version(text) => version(&text)?,
        NamedVersion::Label(label) => VersionPart::Label(Cow::Owned(label)),
    };
    Ok(Target { model: Cow::Owned(named.model), version })
}
