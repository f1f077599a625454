//! `/invocations`, `/ping` and `/health`: the default model, as MLflow's scoring server and SageMaker's containers offer theirs (docs/CLIENTS.md).

use super::answer::{self, Dialect, HttpResponse};
use super::body;
use super::data_plane::DataPlane;
use super::door::Arrived;
use super::endpoint::{Target, VersionPart};
use super::info::check_ready;
use super::predict::{self, Protocol};
use super::traced;
use crate::access::Identity;
use crate::codec::frames::Media;
use crate::model::{Code, Failure, ModelName, RequestId, quoted};
use crate::serve::find;
use crate::traces::Trace;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use std::borrow::Cow;
use std::sync::Arc;

/// Answers a prediction for the default model.
pub(super) async fn invocations(
    plane: &Arc<DataPlane>,
    request: Arrived<'_>,
    identity: Option<&Identity>,
    mut trace: Option<Trace>,
) -> HttpResponse {
    let prepared = default_model(plane).and_then(|model| {
        plane.check_model(identity, model.as_str())?;
        Ok((model, media(request.headers)?))
    });
    match prepared {
        Ok((model, media)) => {
            let target = Target { model: Cow::Borrowed(model.as_str()), version: VersionPart::Any };
            predict::predict(plane, request, Protocol::Invocations(media), Some(&target), None, trace).await
        }
        Err(failure) => {
            plane.count_refusal(failure.code);
            let mut response = answer::error(&failure);
            let id = answer::caller_id(request.headers).unwrap_or_else(RequestId::generate);
            answer::set_request_id(response.headers_mut(), &id);
            traced::failed(&mut trace, &failure);
            if let Some(trace) = trace {
                traced::end(trace, Dialect::Invocations, &id, &mut response);
            }
            body::discard_request(request.headers, request.body).await;
            response
        }
    }
}

/// Whether the default model answers requests: 200 with an empty body.
///
/// # Errors
/// `NOT_FOUND` without a default model, `MODEL_NOT_FOUND` for one that does not exist, `NOT_READY`, and `DRAINING` when the server stops.
pub(super) fn ping(plane: &DataPlane) -> Result<HttpResponse, Failure> {
    let model = default_model(plane)?;
    if plane.is_stopping() {
        return Err(Failure::new(Code::Draining, "the server stops"));
    }
    check_ready(find(&plane.gateway.snapshot(), model.as_str())?, &VersionPart::Any)?;
    Ok(answer::json(""))
}

fn default_model(plane: &DataPlane) -> Result<ModelName, Failure> {
    plane.limits.default_model().ok_or_else(|| {
        let message = "this server has no default model: set default_model in [serving] of its configuration, or name the model in \
                       the path, as in /v2/models/M/infer";
        Failure::new(Code::NotFound, message)
    })
}

/// The format of a body, by its media type. Without one, and with those that clients of HTTP send by themselves, it is JSON.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE`.
fn media(headers: &HeaderMap) -> Result<Media, Failure> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Media::Json) };
    let text = value.to_str().unwrap_or("?");
    let refuse = |expected: &str| {
        let message = format!("content-type: expected {expected}, got {}", quoted(text));
        Failure::new(Code::UnsupportedMediaType, message)
    };
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default().to_ascii_lowercase();
    let mut header = None;
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        let value = value.trim().trim_matches('"').to_ascii_lowercase();
        match (name.trim().to_ascii_lowercase().as_str(), value.as_str()) {
            ("charset", charset) if !["utf-8", "utf8", "us-ascii"].contains(&charset) => {
                return Err(refuse("the charset utf-8"));
            }
            ("header", "present") => header = Some(true),
            ("header", "absent") => header = Some(false),
            ("header", _) => return Err(refuse("header=present or header=absent")),
            _ => {}
        }
    }
    match media.as_str() {
        "text/csv" | "application/csv" => Ok(Media::Csv { header }),
        "application/jsonlines"
        | "application/jsonl"
        | "application/x-jsonlines"
        | "application/x-ndjson"
        | "application/ndjson" => Ok(Media::Lines),
        "" | "application/json" | "application/x-www-form-urlencoded" | "text/plain" => Ok(Media::Json),
        other if other.ends_with("+json") => Ok(Media::Json),
        _ => Err(refuse("application/json, text/csv or application/jsonlines")),
    }
}
