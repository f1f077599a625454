//! A prediction, from the bytes of the request to the bytes of the answer.

use super::admission::{AdmittedBody, admit_and_read};
use super::answer::{self, HttpResponse};
use super::body::UnreadBody;
use super::data_plane::{DataPlane, RequestKind, Task};
use super::endpoint::Target;
use super::negotiation::compress;
use crate::codec::{oip, tfs};
use crate::model::{Code, Failure, InferenceRequest, Parameters, RequestId, Signature};
use crate::registry::Snapshot;
use crate::route::RouteRequest;
use crate::serve::{ActiveRequest, RunOutput, not_found};
use bytes::Bytes;
use http::HeaderMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The protocol of a predict request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Open Inference Protocol v2, JSON or binary.
    Oip,
    /// TensorFlow Serving's REST predict.
    Tfs,
}

/// A body, parsed as far as possible before the version and so the signature is known.
enum Parsed {
    Oip(oip::OipRequest),
    /// One tensor without JSON. Its datatype is in the signature.
    OipRaw(Bytes),
    Tfs(tfs::TfsRequest),
}

/// What the encoder of the answer needs to know about the request.
enum AnswerFormat {
    Oip(oip::AnswerForm),
    Tfs(tfs::Style),
}

/// Answers a predict request. Each answer, also an error, has the request's id.
pub(super) async fn predict(
    plane: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: UnreadBody<'_>,
    protocol: Protocol,
    target: &Target<'_>,
    received: Instant,
) -> HttpResponse {
    let mut id = answer::caller_id(headers);
    let mut response = match attempt(plane, headers, body, protocol, target, received, &mut id).await {
        Ok(response) => response,
        Err(failure) => answer::error(&failure),
    };
    if !response.headers().contains_key(answer::SERVER_TIMING) {
        // The request was refused before it waited or ran.
        answer::set_timing(response.headers_mut(), Duration::ZERO, Duration::ZERO);
    }
    answer::set_request_id(response.headers_mut(), &id.unwrap_or_else(RequestId::generate));
    response
}

/// The steps of a prediction. A failure returned here is not counted for any version. Failures on a version become a response.
async fn attempt(
    plane: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: UnreadBody<'_>,
    protocol: Protocol,
    target: &Target<'_>,
    received: Instant,
    id: &mut Option<RequestId>,
) -> Result<HttpResponse, Failure> {
    let refuse = |failure: Failure| {
        plane.count_refusal(failure.code);
        failure
    };
    let admitted = admit_and_read(plane, RequestKind::Predict, headers, body, received).await;
    let AdmittedBody { _permit, deadline, body } = admitted.map_err(refuse)?;
    let started = Instant::now();
    let snapshot = plane.gateway.snapshot();
    // An unknown model or version is reported before an error in the body.
    let target_not_found = || not_found(&snapshot, &target.model, target.version.selector());
    let parsed = parse(protocol, headers, body).map_err(|failure| refuse(target_not_found().unwrap_or(failure)))?;
    if let Parsed::Oip(request) = &parsed
        && let Some(text) = request.request.id.as_ref().filter(|id| !id.is_empty())
    {
        *id = Some(
            RequestId::from_caller(text.clone())
                .map_err(|e| refuse(Failure::new(Code::InvalidRequest, format!("id: {e}"))))?,
        );
    }
    let id = &*id.get_or_insert_with(RequestId::generate);
    let mut active = open(plane, &snapshot, headers, target, &parsed, id, started).map_err(refuse)?;
    drop(snapshot);
    let (mut response, outcome) = match run(plane, &mut active, parsed, target, id, deadline).await {
        Ok((response, ran)) => (compress(headers, response), Ok(ran)),
        Err(failure) => {
            if let Some(internal) = &failure.internal {
                let loaded = &active.served().loaded;
                tracing::warn!(request_id = %id, model = %loaded.model, version = %loaded.version, code = %failure.code,
                    detail = internal, "prediction failed");
            }
            let mut response = answer::error(&failure);
            let elapsed = started.elapsed();
            // For a run without an answer, only the whole time is known.
            match failure.code {
                Code::DeadlineExceeded => answer::set_timing(response.headers_mut(), elapsed, Duration::ZERO),
                Code::EngineFailed => answer::set_timing(response.headers_mut(), Duration::ZERO, elapsed),
                _ => {}
            }
            (response, Err(failure))
        }
    };
    let served = Arc::clone(active.served());
    match plane.gateway.end(active, outcome, deadline).await {
        Ok(None) => {}
        Ok(Some(copies)) => {
            // A task of its own on this thread: it runs after the connection's task has written the answer.
            let plane = Arc::clone(plane);
            tokio::spawn(async move {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| plane.gateway.mirror(copies))) {
                    plane.report_panic(Task::ShadowCopies, &*panic);
                }
            });
        }
        Err(failure) => response = answer::error(&failure),
    }
    answer::set_served_by(response.headers_mut(), &served.version_text, served.arm());
    Ok(response)
}

fn parse(protocol: Protocol, headers: &HeaderMap, body: Bytes) -> Result<Parsed, Failure> {
    match protocol {
        Protocol::Tfs => tfs::parse(&body).map(Parsed::Tfs),
        Protocol::Oip => {
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

/// Routes the request and takes hold of the version that answers it.
fn open(
    plane: &DataPlane,
    snapshot: &Snapshot,
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
    let selector = target.version.selector();
    let request = RouteRequest { selector, header: &header, parameters, request_id: id.as_str() };
    plane.gateway.open(snapshot, &target.model, &request, id, started)
}

/// Decodes, runs and encodes a request on its version. A failure here counts for that version.
async fn run(
    plane: &DataPlane,
    active: &mut ActiveRequest,
    parsed: Parsed,
    target: &Target<'_>,
    id: &RequestId,
    deadline: Instant,
) -> Result<(HttpResponse, RunOutput), Failure> {
    let (request, format) = decode(parsed, active.signature())?;
    let ran = plane.gateway.infer(active, request, deadline).await?;
    let mut response = match format {
        AnswerFormat::Oip(form) => {
            let head = oip::AnswerHead {
                model_name: &target.model,
                model_version: &active.served().version_text,
                id: id.as_str(),
            };
            let encoded = oip::encode(&ran.answer, &head, &form)?;
            active.nonfinite(encoded.nonfinite);
            answer::prediction(encoded.body, encoded.json_length)
        }
        AnswerFormat::Tfs(style) => {
            let encoded = tfs::encode_predict(&ran.answer, style)?;
            active.nonfinite(encoded.nonfinite);
            answer::json(encoded.body)
        }
    };
    answer::set_timing(response.headers_mut(), ran.queue, ran.infer);
    Ok((response, ran))
}

fn decode(parsed: Parsed, signature: &Signature) -> Result<(InferenceRequest, AnswerFormat), Failure> {
    match parsed {
        Parsed::Oip(oip::OipRequest { request, form }) => Ok((request, AnswerFormat::Oip(form))),
        Parsed::OipRaw(body) => {
            let oip::OipRequest { request, form } = oip::decode_raw(&body, signature)?;
            Ok((request, AnswerFormat::Oip(form)))
        }
        Parsed::Tfs(parsed) => {
            let style = parsed.style();
            Ok((parsed.decode(signature)?, AnswerFormat::Tfs(style)))
        }
    }
}
