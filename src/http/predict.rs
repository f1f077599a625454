//! A prediction: bytes in, bytes out.

use super::answer::{self, HttpResponse};
use super::body;
use super::door::{DataPlane, Permit};
use super::endpoint::Target;
use crate::codec::{inflate, oip, tfs};
use crate::model::{Code, Failure, InferenceRequest, Parameters, RequestId, Signature};
use crate::route::Ask;
use crate::serve::{ActiveRequest, Ran, find};
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::{Duration, Instant};

const X_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// The protocol a prediction speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// Open Inference Protocol v2, JSON or binary.
    Oip,
    /// TensorFlow Serving's REST predict.
    Tfs,
}

/// A body as far as it can be read before the version, and so the signature, is known.
enum Parsed {
    Oip(oip::OipRequest),
    /// One bare tensor, whose type only the signature tells.
    OipRaw(Bytes),
    Tfs(tfs::TfsRequest),
}

/// What an answer's encoder needs to remember of the request.
enum Form {
    Oip(oip::AnswerForm),
    Tfs(tfs::Style),
}

/// Answers a predict request; whatever happens, the answer carries the request's id.
pub(super) async fn predict(
    door: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: Incoming,
    wire: Wire,
    target: &Target<'_>,
    received: Instant,
) -> HttpResponse {
    let mut id = answer::caller_id(headers);
    let mut response = match attempt(door, headers, body, wire, target, received, &mut id).await {
        Ok(response) => response,
        Err(failure) => answer::failed(&failure),
    };
    if !response.headers().contains_key(answer::SERVER_TIMING) {
        // Refused before it waited or ran.
        answer::timing(response.headers_mut(), Duration::ZERO, Duration::ZERO);
    }
    answer::request_id(response.headers_mut(), &id.unwrap_or_else(RequestId::generate));
    response
}

/// The steps of a prediction up to the version's exchange; a failure here is charged to no version.
async fn attempt(
    door: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: Incoming,
    wire: Wire,
    target: &Target<'_>,
    received: Instant,
    id: &mut Option<RequestId>,
) -> Result<HttpResponse, Failure> {
    let refuse = |failure: Failure| {
        door.count_refusal(failure.code);
        failure
    };
    let Taken { _permit, deadline, body } = take_in(door, headers, body, received).await.map_err(refuse)?;
    let started = Instant::now();
    // Whoever asks for what is not there should read that, whatever else is wrong.
    let parsed =
        parse(wire, headers, body).map_err(|failure| refuse(missing(door, headers, target).unwrap_or(failure)))?;
    if let Parsed::Oip(request) = &parsed
        && let Some(text) = request.request.id.as_ref().filter(|id| !id.is_empty())
    {
        *id = Some(
            RequestId::from_caller(text.clone())
                .map_err(|e| refuse(Failure::new(Code::InvalidRequest, format!("id: {e}"))))?,
        );
    }
    let id = &*id.get_or_insert_with(RequestId::generate);
    let mut exchange = open(door, headers, target, &parsed, id, started).map_err(refuse)?;
    let (mut response, outcome) = match run(door, &mut exchange, parsed, target, id, deadline).await {
        Ok((response, ran)) => (compress(headers, response), Ok(ran)),
        Err(failure) => {
            if let Some(internal) = &failure.internal {
                let loaded = &exchange.served().loaded;
                tracing::warn!(request_id = %id, model = %loaded.model, version = %loaded.version, code = %failure.code,
                    detail = internal, "prediction failed");
            }
            let mut response = answer::failed(&failure);
            let spent = started.elapsed();
            // What a run that gave no answer took is known only as a whole.
            match failure.code {
                Code::DeadlineExceeded => answer::timing(response.headers_mut(), spent, Duration::ZERO),
                Code::EngineFailed => answer::timing(response.headers_mut(), Duration::ZERO, spent),
                _ => {}
            }
            (response, Err(failure))
        }
    };
    let served = Arc::clone(exchange.served());
    match door.gateway.end(exchange, outcome).await {
        Ok(None) => {}
        Ok(Some(aftermath)) => {
            // A task of its own on this thread: it runs once the connection's has written the answer.
            let door = Arc::clone(door);
            tokio::spawn(async move { door.gateway.mirror(aftermath) });
        }
        Err(failure) => response = answer::failed(&failure),
    }
    answer::served_by(response.headers_mut(), &served.version_text, &served.arm);
    Ok(response)
}

/// A body that was let in and read.
pub(super) struct Taken {
    /// The request's place, for as long as it is answered.
    pub _permit: Permit,
    pub deadline: Instant,
    pub body: Bytes,
}

/// Lets a request in and reads its body, under the limits.
pub(super) async fn take_in(
    door: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: Incoming,
    received: Instant,
) -> Result<Taken, Failure> {
    let admitted = door.admit().and_then(|permit| {
        check_media(headers)?;
        Ok((permit, received + timeout(door, headers)?))
    });
    let (permit, deadline) = match admitted {
        Ok(admitted) => admitted,
        Err(failure) => {
            body::discard(headers, body).await;
            return Err(failure);
        }
    };
    let body = read(door, headers, body, deadline).await?;
    Ok(Taken { _permit: permit, deadline, body })
}

fn parse(wire: Wire, headers: &HeaderMap, body: Bytes) -> Result<Parsed, Failure> {
    match wire {
        Wire::Tfs => tfs::parse(&body).map(Parsed::Tfs),
        Wire::Oip => {
            let length = match headers.get(answer::HEADER_LENGTH) {
                None => None,
                Some(value) => Some(oip::header_length(value.as_bytes(), body.len())?),
            };
            if length == Some(0) {
                return Ok(Parsed::OipRaw(body));
            }
            oip::decode(&body, length).map(Parsed::Oip)
        }
    }
}

/// The model, version or label that the path names and that does not exist.
fn missing(door: &DataPlane, headers: &HeaderMap, target: &Target<'_>) -> Option<Failure> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let ask =
        Ask { selector: target.version.selector(), header: &header, parameters: &Parameters::new(), request_id: "" };
    let snapshot = door.gateway.snapshot();
    let failure = find(&snapshot, &target.model).and_then(|entry| entry.route(&ask).map(drop)).err()?;
    matches!(failure.code, Code::ModelNotFound | Code::VersionNotFound | Code::LabelNotFound).then_some(failure)
}

fn open(
    door: &DataPlane,
    headers: &HeaderMap,
    target: &Target<'_>,
    parsed: &Parsed,
    id: &RequestId,
    started: Instant,
) -> Result<ActiveRequest, Failure> {
    const NONE: &Parameters = &Parameters::new();
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let parameters = match parsed {
        Parsed::Oip(request) => &request.request.parameters,
        Parsed::OipRaw(_) | Parsed::Tfs(_) => NONE,
    };
    let ask = Ask { selector: target.version.selector(), header: &header, parameters, request_id: id.as_str() };
    door.gateway.open(&target.model, &ask, id, started)
}

/// The steps of a prediction on its version; a failure here is charged to that version.
async fn run(
    door: &DataPlane,
    exchange: &mut ActiveRequest,
    parsed: Parsed,
    target: &Target<'_>,
    id: &RequestId,
    deadline: Instant,
) -> Result<(HttpResponse, Ran), Failure> {
    let (request, form) = decode(parsed, exchange.signature())?;
    let ran = door.gateway.infer(exchange, request, deadline).await?;
    let mut response = match form {
        Form::Oip(form) => {
            let head = oip::AnswerHead {
                model_name: &target.model,
                model_version: &exchange.served().version_text,
                id: id.as_str(),
            };
            let encoded = oip::encode(&ran.answer, &head, &form)?;
            exchange.nonfinite(encoded.nonfinite);
            answer::prediction(encoded.body, encoded.json_length)
        }
        Form::Tfs(style) => {
            let encoded = tfs::encode_predict(&ran.answer, style)?;
            exchange.nonfinite(encoded.nonfinite);
            answer::json(encoded.body)
        }
    };
    answer::timing(response.headers_mut(), ran.queue, ran.infer);
    Ok((response, ran))
}

fn decode(parsed: Parsed, signature: &Signature) -> Result<(InferenceRequest, Form), Failure> {
    match parsed {
        Parsed::Oip(oip::OipRequest { request, form }) => Ok((request, Form::Oip(form))),
        Parsed::OipRaw(body) => {
            let oip::OipRequest { request, form } = oip::decode_raw(&body, signature)?;
            Ok((request, Form::Oip(form)))
        }
        Parsed::Tfs(parsed) => {
            let style = parsed.style();
            Ok((parsed.decode(signature)?, Form::Tfs(style)))
        }
    }
}

async fn read(door: &DataPlane, headers: &HeaderMap, body: Incoming, deadline: Instant) -> Result<Bytes, Failure> {
    let cap = door.limits.max_body();
    let body = body::read(headers, body, cap, door.limits.body_timeout(), deadline).await?;
    match headers.get(CONTENT_ENCODING) {
        None => Ok(body),
        Some(encoding) => inflate::inflate(&String::from_utf8_lossy(encoding.as_bytes()), body, cap),
    }
}

/// The caller's `x-request-timeout-ms`, else the configured one; never more than the configured most.
fn timeout(door: &DataPlane, headers: &HeaderMap) -> Result<Duration, Failure> {
    let Some(value) = headers.get(X_TIMEOUT) else {
        return Ok(door.limits.request_timeout());
    };
    let text = value.to_str().unwrap_or_default().trim();
    match text.parse::<u64>() {
        Ok(millis) if millis > 0 => Ok(Duration::from_millis(millis).min(door.limits.max_request_timeout())),
        _ => Err(Failure::new(
            Code::InvalidRequest,
            format!("{X_TIMEOUT}: expected a positive number of milliseconds, got {text:?}"),
        )),
    }
}

/// Whether the body's type can be read and the answer's type is wanted.
///
/// No Content-Type is fine (tritonclient sends none), and so is the form type that `curl -d` sends unasked: the bytes are
/// read as JSON either way, as Triton and TensorFlow Serving do.
fn check_media(headers: &HeaderMap) -> Result<(), Failure> {
    const READ: [&str; 3] = ["application/json", "application/octet-stream", "application/x-www-form-urlencoded"];
    if let Some(value) = headers.get(CONTENT_TYPE) {
        let text = value.to_str().unwrap_or_default();
        let media = text.split(';').next().unwrap_or_default().trim();
        let known =
            READ.iter().any(|known| media.eq_ignore_ascii_case(known)) || media.ends_with("+json") || media.is_empty();
        if !known {
            return Err(Failure::new(
                Code::UnsupportedMediaType,
                format!("content-type: expected application/json or application/octet-stream, got {text:?}"),
            ));
        }
    }
    let mut accepts = headers.get_all(ACCEPT).iter().filter(|v| !v.is_empty()).peekable();
    if accepts.peek().is_none() {
        return Ok(());
    }
    let wanted = accepts.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let refused =
            parts.any(|p| matches!(p.strip_prefix("q="), Some(q) if q.parse::<f32>().is_ok_and(|q| q <= 0.0)));
        let ours = ["*/*", "application/*", "application/json", "application/octet-stream"];
        !refused && ours.iter().any(|known| media.eq_ignore_ascii_case(known))
    });
    if wanted {
        return Ok(());
    }
    Err(Failure::new(
        Code::NotAcceptable,
        "accept: answers are application/json, or application/octet-stream where binary outputs are asked for",
    ))
}

/// Compresses an answer where the caller takes it so and it becomes smaller.
fn compress(headers: &HeaderMap, response: HttpResponse) -> HttpResponse {
    let Some(accepted) = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()) else { return response };
    let Some(encoding) = inflate::negotiate(accepted) else { return response };
    let (mut parts, body) = response.into_parts();
    let plain = body.into_inner().unwrap_or_default();
    let compressed = inflate::compress(encoding, &plain);
    let body = if compressed.len() < plain.len() {
        answer::encoded(&mut parts.headers, encoding.as_str());
        compressed.into()
    } else {
        plain
    };
    HttpResponse::from_parts(parts, body.into())
}
