//! A prediction, from the bytes of the request to the bytes of the answer.

use super::admission::{AdmittedBody, admit_and_read};
use super::answer::{self, HttpResponse};
use super::answer_body::{AnswerBody, BUFFERED};
use super::data_plane::{DataPlane, RequestKind, Task};
use super::door::{Arrived, Reason};
use super::endpoint::Target;
use super::negotiation::{accepted_encoding, compress};
use super::workers::LARGE;
use crate::budget::Hold;
use crate::codec::inflate::Compressor;
use crate::codec::pieces::Pieces;
use crate::codec::{oip, tfs};
use crate::model::{Answer, Code, Failure, InferenceRequest, Parameters, RequestId, Requester, Signature};
use crate::registry::Snapshot;
use crate::route::RouteRequest;
use crate::serve::{ActiveRequest, RunOutput, not_found};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
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
    request: Arrived<'_>,
    protocol: Protocol,
    target: &Target<'_>,
) -> HttpResponse {
    let mut id = answer::caller_id(request.headers);
    let mut response = match attempt(plane, request, protocol, target, &mut id).await {
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
    request: Arrived<'_>,
    protocol: Protocol,
    target: &Target<'_>,
    id: &mut Option<RequestId>,
) -> Result<HttpResponse, Failure> {
    let refuse = |failure: Failure| {
        plane.count_refusal(failure.code);
        failure
    };
    let Arrived { headers, received, sender, .. } = request;
    let admitted = admit_and_read(plane, RequestKind::Predict, request, Some(target)).await;
    let AdmittedBody { _admitted, deadline, body, hold } = admitted.map_err(refuse)?;
    let started = Instant::now();
    let snapshot = plane.gateway.snapshot();
    // An unknown model or version is reported before an error in the body.
    let target_not_found = || not_found(&snapshot, &target.model, target.version.selector());
    let large = body.len() > LARGE;
    let length = headers.get(answer::HEADER_LENGTH).cloned();
    let parse = move || parse(protocol, length.as_ref(), body, &hold).map(|parsed| (parsed, hold));
    let parsed = if large { plane.workers.run(deadline, parse).await.flatten() } else { parse() };
    let (parsed, hold) = parsed.map_err(|failure| refuse(target_not_found().unwrap_or(failure)))?;
    if let Some(given) = id_of(&parsed).map_err(refuse)? {
        *id = Some(given);
    }
    let id = &*id.get_or_insert_with(RequestId::generate);
    let shed = |reason| sender.refused(plane, reason, received);
    let mut active = open(plane, &snapshot, headers, target, &parsed, id, started).map_err(|failure| {
        if failure.code == Code::TooManyRequests {
            shed(Reason::Model);
        }
        refuse(failure)
    })?;
    drop(snapshot);
    let mut body = None;
    let (mut response, outcome) = match run(
        plane,
        &mut active,
        Decoding { parsed, large, hold },
        target,
        id,
        deadline,
        sender.requester(),
    )
    .await
    {
        Ok(Ran { mut response, output, pieces, hold }) => {
            match pieces {
                None => {
                    response = compress(headers, response);
                    response.body_mut().hold(hold);
                }
                Some(pieces) => body = Some((pieces, hold)),
            }
            (response, Ok(output))
        }
        Err(failure) => {
            if failure.code == Code::Overloaded {
                shed(Reason::Queue);
            }
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
    let (served, fallback) = (Arc::clone(active.served()), active.fallback());
    let ended = plane.gateway.end(active, outcome, deadline).await;
    // The request's tensors are gone now; those of the answer stay until it was sent.
    let ended = ended.and_then(|copies| match body.take() {
        None => Ok(copies),
        Some((pieces, hold)) => {
            set_pieces(&mut response, pieces, headers, hold).map_err(refuse)?;
            Ok(copies)
        }
    });
    match ended {
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
    if let Some(reason) = fallback {
        answer::set_fallback(response.headers_mut(), reason);
    }
    Ok(response)
}

/// Makes the answer one that is encoded, and compressed where the client accepts it, as it is sent.
fn set_pieces(response: &mut HttpResponse, pieces: Pieces, headers: &HeaderMap, hold: Hold) -> Result<(), Failure> {
    hold.shrink_to(pieces.held());
    hold.grow(BUFFERED)?;
    let encoding = accepted_encoding(headers);
    if let Some(encoding) = encoding {
        answer::set_encoding(response.headers_mut(), encoding.as_str());
    }
    *response.body_mut() = AnswerBody::in_pieces(pieces, encoding.map(Compressor::new), hold);
    Ok(())
}

fn parse(protocol: Protocol, length: Option<&HeaderValue>, body: Bytes, hold: &Hold) -> Result<Parsed, Failure> {
    match protocol {
        Protocol::Tfs => tfs::parse(&body).map(Parsed::Tfs),
        Protocol::Oip => {
            let length = match length {
                None => None,
                Some(value) => Some(oip::header_length(value.as_bytes(), body.len())?),
            };
            if length == Some(0) {
                return Ok(Parsed::OipRaw(body));
            }
            oip::decode_counted(&body, length, hold).map(Parsed::Oip)
        }
    }
}

/// The id in the body of a request, where it has one.
fn id_of(parsed: &Parsed) -> Result<Option<RequestId>, Failure> {
    let Parsed::Oip(request) = parsed else { return Ok(None) };
    let Some(text) = request.request.id.as_ref().filter(|id| !id.is_empty()) else { return Ok(None) };
    RequestId::from_caller(text.clone()).map(Some).map_err(|e| Failure::new(Code::InvalidRequest, format!("id: {e}")))
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

/// A parsed request, before the signature of its version is known.
struct Decoding {
    parsed: Parsed,
    /// The body is large, so that it is decoded on another thread.
    large: bool,
    hold: Hold,
}

/// A request that ran.
struct Ran {
    /// The answer, without its body where that is made in pieces.
    response: HttpResponse,
    output: RunOutput,
    pieces: Option<Pieces>,
    hold: Hold,
}

/// Decodes, runs and encodes a request on its version. A failure here counts for that version.
async fn run(
    plane: &DataPlane,
    active: &mut ActiveRequest,
    decoding: Decoding,
    target: &Target<'_>,
    id: &RequestId,
    deadline: Instant,
    requester: Requester,
) -> Result<Ran, Failure> {
    let Decoding { parsed, large, hold } = decoding;
    let (request, format, hold) = if large {
        let served = Arc::clone(active.served());
        let decode = move || {
            let (request, format) = decode(parsed, &served.loaded.facts.signature, &hold)?;
            Ok::<_, Failure>((request, format, hold))
        };
        plane.workers.run(deadline, decode).await??
    } else {
        let (request, format) = decode(parsed, active.signature(), &hold)?;
        (request, format, hold)
    };
    let output = plane.gateway.infer(active, request, deadline, requester).await?;
    hold.grow(output.answer.size()).inspect_err(|_| active.excuse_version())?;
    let head = oip::AnswerHead {
        model_name: &target.model,
        model_version: plane.limits.version_in_body().then_some(&*active.served().version_text),
        id: id.as_str(),
    };
    let (mut response, pieces) = encode(&output.answer, format, active, &head, &hold)?;
    answer::set_timing(response.headers_mut(), output.queue, output.infer);
    Ok(Ran { response, output, pieces, hold })
}

/// Encodes a small answer. Prepares a large one to be encoded in pieces.
fn encode(
    answer: &Answer,
    format: AnswerFormat,
    active: &ActiveRequest,
    head: &oip::AnswerHead<'_>,
    hold: &Hold,
) -> Result<(HttpResponse, Option<Pieces>), Failure> {
    let (body, json_length, nonfinite, pieces) = match format {
        AnswerFormat::Oip(form) => {
            if oip::is_large(answer, head, &form) {
                let large = oip::encode_in_pieces(answer.clone(), head, form, hold)?;
                (Bytes::new(), large.json_length, large.nonfinite, Some(large.pieces))
            } else {
                let encoded = oip::encode(answer, head, &form)?;
                (encoded.body, encoded.json_length, encoded.nonfinite, None)
            }
        }
        AnswerFormat::Tfs(style) => {
            if tfs::is_large(answer, style) {
                let (pieces, nonfinite) = tfs::predict_in_pieces(answer.clone(), style)?;
                (Bytes::new(), None, nonfinite, Some(pieces))
            } else {
                let encoded = tfs::encode_predict(answer, style)?;
                (encoded.body, None, encoded.nonfinite, None)
            }
        }
    };
    active.nonfinite(nonfinite);
    hold.grow(body.len())?;
    Ok((answer::prediction(body.into(), json_length), pieces))
}

fn decode(parsed: Parsed, signature: &Signature, hold: &Hold) -> Result<(InferenceRequest, AnswerFormat), Failure> {
    match parsed {
        Parsed::Oip(oip::OipRequest { request, form }) => Ok((request, AnswerFormat::Oip(form))),
        Parsed::OipRaw(body) => {
            let oip::OipRequest { request, form } = oip::decode_raw(&body, signature, hold)?;
            Ok((request, AnswerFormat::Oip(form)))
        }
        Parsed::Tfs(parsed) => {
            let style = parsed.style();
            let request = parsed.decode(signature, hold)?;
            Ok((request, AnswerFormat::Tfs(style)))
        }
    }
}
