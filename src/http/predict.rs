//! A prediction, from the bytes of the request to the bytes of the answer.

use super::admission::{AdmittedBody, admit_and_read};
use super::answer::{self, Dialect, HttpResponse};
use super::answer_body::{AnswerBody, BUFFERED};
use super::data_plane::{DataPlane, RequestKind, Task};
use super::door::{Arrived, Reason, Sender};
use super::endpoint::Target;
pub(super) use super::formats::Protocol;
use super::formats::{Parsed, decode, encode, id_of, parse};
use super::grpc;
use super::negotiation::{accepted_encoding, compress};
use super::traced;
use super::workers::LARGE;
use crate::access::Identity;
use crate::budget::Hold;
use crate::codec::grpc::Undecoded;
use crate::codec::inflate::{Compressor, Encoding};
use crate::codec::oip;
use crate::codec::pieces::Pieces;
use crate::model::{Code, Failure, Parameters, RequestId, Requester};
use crate::registry::Snapshot;
use crate::route::RouteRequest;
use crate::serve::{ActiveRequest, RunOutput, ShadowCopies, not_found};
use crate::traces::Trace;
use bytes::Bytes;
use http::HeaderMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who asks, and what is known before the message is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub headers: &'a HeaderMap,
    /// When its headers, or on a stream its first byte, had been read.
    pub received: Instant,
    pub sender: &'a Sender,
    pub protocol: Protocol,
    /// The model in the path. A gRPC call names it in its message.
    pub target: Option<&'a Target<'a>>,
    /// Who calls, where a gRPC call proved that: it may not use every model.
    pub identity: Option<&'a Identity>,
}

/// What becomes known about a request while it is answered.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub id: Option<RequestId>,
    /// Present where the request is traced.
    pub trace: Option<Trace>,
}

/// Answers a predict request. Each answer, also an error, has the request's id.
pub(super) async fn predict(
    plane: &Arc<DataPlane>,
    request: Arrived<'_>,
    protocol: Protocol,
    target: Option<&Target<'_>>,
    identity: Option<&Identity>,
    trace: Option<Trace>,
) -> HttpResponse {
    let mut known = Known { id: answer::caller_id(request.headers), trace };
    let Arrived { headers, received, sender, .. } = request;
    let call = Call { headers, received, sender, protocol, target, identity };
    let mut response = match admit_and_read(plane, RequestKind::Predict, request, target, protocol.dialect()).await {
        Ok(admitted) => answer_admitted(plane, &call, admitted, &mut known).await,
        Err(failure) => {
            plane.count_refusal(failure.code);
            Err(failure)
        }
    }
    .unwrap_or_else(|failure| {
        traced::failed(&mut known.trace, &failure);
        protocol.error(&failure, known.id.as_ref())
    });
    if !response.headers().contains_key(answer::SERVER_TIMING) {
        // The request was refused before it waited or ran.
        answer::set_timing(response.headers_mut(), Duration::ZERO, Duration::ZERO);
    }
    let id = known.id.unwrap_or_else(RequestId::generate);
    answer::set_request_id(response.headers_mut(), &id);
    if let Some(trace) = known.trace {
        traced::end(trace, protocol.dialect(), &id, &mut response);
    }
    response
}

/// The steps of a prediction whose body has been read. A failure returned here is not counted for any version. Failures on a version become a
/// response.
pub(super) async fn answer_admitted(
    plane: &Arc<DataPlane>,
    call: &Call<'_>,
    admitted: AdmittedBody,
    known: &mut Known,
) -> Result<HttpResponse, Failure> {
    let refuse = |failure: Failure| {
        plane.count_refusal(failure.code);
        failure
    };
    let Call { headers, received, sender, protocol, .. } = *call;
    let AdmittedBody { _admitted, deadline, body, encoding, hold } = admitted;
    let started = Instant::now();
    let Known { id, trace } = known;
    traced::read(trace, started);
    let snapshot = plane.gateway.snapshot();
    let large = body.len() > LARGE;
    let (mut parsed, hold, named) = parse_named(plane, &snapshot, call, body, hold, deadline).await.map_err(refuse)?;
    let target = named.as_ref().or(call.target);
    let target = target.ok_or_else(|| refuse(Failure::new(Code::Internal, "the request names no model")))?;
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
    parsed.set_names(|| snapshot.model(&target.model).map(|entry| Arc::clone(entry.features())));
    drop(snapshot);
    let encoding = grpc::answer_encoding(headers, encoding);
    let mut body = None;
    let (mut response, outcome) = match run(
        plane,
        &mut active,
        Decoding { parsed, large, hold, encoding, trace: trace.as_mut() },
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
                    if protocol.dialect() != Dialect::Grpc {
                        response = compress(headers, response);
                    }
                    response.body_mut().hold(hold);
                }
                Some(pieces) => body = Some((pieces, hold)),
            }
            (response, Ok(output))
        }
        Err(failure) => {
            traced::failed(trace, &failure);
            if failure.code == Code::Overloaded {
                shed(Reason::Queue);
            }
            if let Some(internal) = &failure.internal {
                let loaded = &active.served().loaded;
                tracing::warn!(request_id = %id, model = %loaded.model, version = %loaded.version, code = %failure.code,
                    detail = internal, "prediction failed");
            }
            let mut response = protocol.error(&failure, Some(id));
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
        Ok(Some(copies)) => mirror(plane, copies),
        Err(failure) => {
            traced::failed(trace, &failure);
            response = protocol.error(&failure, Some(id));
        }
    }
    traced::served(trace, &served, fallback, started);
    answer::set_served_by(response.headers_mut(), &served.version_text, served.arm());
    if let Some(reason) = fallback {
        answer::set_fallback(response.headers_mut(), reason);
    }
    Ok(response)
}

/// Offers copies to shadows in a task of its own on this thread: it runs after the connection's task has written the answer.
fn mirror(plane: &Arc<DataPlane>, copies: ShadowCopies) {
    let plane = Arc::clone(plane);
    tokio::spawn(async move {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| plane.gateway.mirror(copies))) {
            plane.report_panic(Task::ShadowCopies, &*panic);
        }
    });
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

/// Parses a body, a large one on another thread. A gRPC call names its model in its message.
async fn parse_named(
    plane: &DataPlane,
    snapshot: &Snapshot,
    call: &Call<'_>,
    body: Bytes,
    hold: Hold,
    deadline: Instant,
) -> Result<(Parsed, Hold, Option<Target<'static>>), Failure> {
    let (protocol, length) = (call.protocol, call.headers.get(answer::HEADER_LENGTH).cloned());
    let large = body.len() > LARGE;
    let parse = move || parse(protocol, length.as_ref(), body, &hold).map(|parsed| (parsed, hold));
    let parsed =
        if large { plane.workers.run(deadline, parse).await.map_err(Undecoded::from).flatten() } else { parse() };
    let (mut parsed, hold) = parsed.map_err(|undecoded| first_failure(plane, snapshot, call, undecoded))?;
    let named = parsed.take_named().map(|named| grpc::target(plane, call.identity, named)).transpose()?;
    Ok((parsed, hold, named))
}

/// The failure that is reported for a body that was not decoded: an unknown model or version comes before an error in the body.
fn first_failure(plane: &DataPlane, snapshot: &Snapshot, call: &Call<'_>, undecoded: Undecoded) -> Failure {
    let Undecoded { named, failure } = undecoded;
    let missing = |target: &Target<'_>| not_found(snapshot, &target.model, target.version.selector());
    match (call.target, named.filter(|named| !named.model.is_empty())) {
        (Some(target), _) => missing(target).unwrap_or(failure),
        (None, Some(named)) => match grpc::target(plane, call.identity, *named) {
            Ok(target) => missing(&target).unwrap_or(failure),
            Err(refused) => refused,
        },
        (None, None) => failure,
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
    let parameters = parsed.request().map_or(NONE, |request| &request.parameters);
    let selector = target.version.selector();
    let request = RouteRequest { selector, header: &header, parameters, request_id: id.as_str() };
    plane.gateway.open(snapshot, &target.model, &request, id, started)
}

/// A parsed request, before the signature of its version is known.
struct Decoding<'t> {
    parsed: Parsed,
    /// The body is large, so that it is decoded on another thread.
    large: bool,
    hold: Hold,
    /// For the answer of a gRPC call.
    encoding: Option<Encoding>,
    trace: Option<&'t mut Trace>,
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
    decoding: Decoding<'_>,
    target: &Target<'_>,
    id: &RequestId,
    deadline: Instant,
    requester: Requester,
) -> Result<Ran, Failure> {
    let Decoding { parsed, large, hold, encoding, trace } = decoding;
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
    if let Some(trace) = trace {
        traced::ran(trace, &output);
    }
    hold.grow(output.answer.size()).inspect_err(|_| active.excuse_version())?;
    let head = oip::AnswerHead {
        model_name: &target.model,
        model_version: plane.limits.version_in_body().then_some(&*active.served().version_text),
        id: id.as_str(),
    };
    let (mut response, pieces) = encode(&output.answer, format, active, &head, &hold, encoding)?;
    answer::set_timing(response.headers_mut(), output.queue, output.infer);
    Ok(Ran { response, output, pieces, hold })
}
