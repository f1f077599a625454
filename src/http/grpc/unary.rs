//! Calls with one small message and one answer: health, readiness, metadata.

use super::super::answer::{self, Dialect, HttpResponse};
use super::super::body::{self, UnreadBody};
use super::super::data_plane::DataPlane;
use super::super::{admission, info, triton};
use super::{Asked, Call, describe, health, message, target};
use crate::budget::Hold;
use crate::codec::grpc::frame;
use crate::codec::grpc::generated::inference;
use crate::codec::grpc::generated::tensorflow::serving;
use crate::codec::grpc::{Named, NamedVersion};
use crate::codec::inflate;
use crate::codec::metadata::EXTENSIONS;
use crate::model::{Code, Failure, RequestId};
use http::HeaderValue;
use prost::Message;
use std::sync::Arc;

/// The most bytes of such a message, also after decompression. They hold a few names.
const MOST: usize = 64 << 10;

/// Answers a call. The answer has a request id, as all have.
pub(super) async fn answer(plane: &Arc<DataPlane>, call: Call, asked: Asked<'_>) -> HttpResponse {
    let id = answer::caller_id(&asked.parts.headers).unwrap_or_else(RequestId::generate);
    let mut response = attempt(plane, call, asked).await.unwrap_or_else(|failure| {
        plane.count_refusal(failure.code);
        Dialect::Grpc.error(&failure)
    });
    answer::set_request_id(response.headers_mut(), &id);
    response
}

async fn attempt(plane: &Arc<DataPlane>, call: Call, mut asked: Asked<'_>) -> Result<HttpResponse, Failure> {
    let identity = asked.identity.take();
    let identity = identity.as_deref();
    let named = |model: String, version: String| {
        let version = if version.is_empty() { NamedVersion::Any } else { NamedVersion::Version(version) };
        target(plane, identity, Named { model, version })
    };
    match call {
        Call::ServerLive => {
            read::<inference::ServerLiveRequest>(plane, asked).await?;
            let live = plane.gateway().executor().can_replace_workers();
            respond(&inference::ServerLiveResponse { live })
        }
        Call::ServerReady => {
            read::<inference::ServerReadyRequest>(plane, asked).await?;
            respond(&inference::ServerReadyResponse { ready: plane.ready() })
        }
        Call::ModelReady => {
            let inference::ModelReadyRequest { name, version } = read(plane, asked).await?;
            let ready = named(name, version)
                .and_then(|target| info::with_entry(plane, &target, |entry| info::check_ready(entry, &target.version)));
            match ready {
                Ok(()) => respond(&inference::ModelReadyResponse { ready: true }),
                // As Triton answers: a model that does not exist is not ready.
                Err(failure) if is_not_ready(failure.code) => respond(&inference::ModelReadyResponse { ready: false }),
                Err(failure) => Err(failure),
            }
        }
        Call::ServerMetadata => {
            read::<inference::ServerMetadataRequest>(plane, asked).await?;
            respond(&inference::ServerMetadataResponse {
                name: "sluicegate".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                extensions: EXTENSIONS.map(str::to_owned).to_vec(),
            })
        }
        Call::ModelMetadata => {
            let inference::ModelMetadataRequest { name, version } = read(plane, asked).await?;
            respond(&describe::model_metadata(plane, &named(name, version)?)?)
        }
        Call::ModelConfig => {
            let inference::ModelConfigRequest { name, version } = read(plane, asked).await?;
            let config = triton::config(plane, &named(name, version)?)?;
            respond(&inference::ModelConfigResponse { config: Some(config) })
        }
        Call::ModelStatistics => {
            let inference::ModelStatisticsRequest { name, version } = read(plane, asked).await?;
            // Without a name: all models.
            let target = if name.is_empty() { None } else { Some(named(name, version)?) };
            let model_stats = triton::statistics(plane, identity, target.as_ref())?;
            respond(&inference::ModelStatisticsResponse { model_stats })
        }
        Call::RepositoryIndex => {
            let inference::RepositoryIndexRequest { ready, .. } = read(plane, asked).await?;
            respond(&inference::RepositoryIndexResponse { models: triton::index(plane, identity, ready) })
        }
        Call::GetModelMetadata => {
            let request: serving::GetModelMetadataRequest = read(plane, asked).await?;
            respond(&describe::tf_metadata(plane, identity, request)?)
        }
        Call::GetModelStatus => {
            let request: serving::GetModelStatusRequest = read(plane, asked).await?;
            respond(&describe::tf_status(plane, identity, request)?)
        }
        Call::HealthCheck => {
            let (caller, parts) = (asked.caller, asked.parts);
            let request: tonic_health::pb::HealthCheckRequest = read(plane, asked).await?;
            health::check(plane, caller, parts, &request.service)?;
            let status = health::status(plane, &request.service)?;
            respond(&tonic_health::pb::HealthCheckResponse { status: status.into() })
        }
        _ => Err(Failure::new(Code::NotFound, "the call is not answered here")),
    }
}

fn is_not_ready(code: Code) -> bool {
    matches!(code, Code::ModelNotFound | Code::VersionNotFound | Code::NotReady | Code::Draining)
}

/// Reads the one message of a call.
///
/// # Errors
/// Those of [`body::read`], and `INVALID_REQUEST` for a message that is not of this type.
pub(super) async fn read<M: Message + Default>(plane: &Arc<DataPlane>, asked: Asked<'_>) -> Result<M, Failure> {
    let Asked { caller, parts, incoming, received, .. } = asked;
    let headers = &parts.headers;
    let deadline = received + admission::timeout(plane, headers, Dialect::Grpc)?;
    let hold = Hold::open(&plane.budget, &caller.account)?;
    let (body, most) = (UnreadBody { incoming, caller }, MOST + frame::HEAD);
    let body = body::read(headers, body, Dialect::Grpc, most, plane.limits.body_timeout(), deadline, &hold).await?;
    let (compressed, mut message) = frame::only_message(body)?;
    if compressed {
        let encoding = frame::encoding(headers.get(super::ENCODING).map(HeaderValue::as_bytes))?;
        message = inflate::inflate(encoding.as_str(), message, MOST, &hold)?;
    }
    M::decode(message).map_err(|e| Failure::new(Code::InvalidRequest, format!("the message cannot be read: {e}")))
}

/// An answer with this message.
///
/// # Errors
/// `INTERNAL` for a message over 4 GiB.
fn respond(answer: &impl Message) -> Result<HttpResponse, Failure> {
    Ok(message(framed(answer)?, None))
}

/// A message in its frame.
///
/// # Errors
/// `INTERNAL` for a message over 4 GiB.
pub(super) fn framed(answer: &impl Message) -> Result<bytes::Bytes, Failure> {
    let mut out = vec![0; frame::HEAD];
    answer.encode(&mut out).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
    frame::finish(out, None)
}
