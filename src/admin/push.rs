//! Push: a new version over HTTP.

use super::Admin;
use super::body::{check_media_type, refuse_encoding};
use super::error::ErrorResponse;
use super::extract::{Operator, Target};
use super::fleet_push::{self, FleetPush};
use super::models::state_of;
use super::received::{Content, Received};
use super::responses::models::Changed;
use super::schemas::Problem;
use crate::fleet::Fleet;
use crate::http::discard;
use crate::lifecycle::Actor;
use crate::model::{Code, Failure, ModelName, Version};
use crate::registry;
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use http::StatusCode;
use http::header::{CONTENT_TYPE, LOCATION};
use http_body::Body as _;
use std::sync::Arc;

/// Push a new version
///
/// The body is the .onnx file or, with `content-type: application/x-tar`, an archive with all files of the version, `model.onnx` at its top. The
/// version is stored completely or not at all, and gets no traffic until it is promoted.
#[utoipa::path(
    put, path = "/api/v1/models/{model}/versions/{version}", operation_id = "push_version", tag = "models",
    params(
        ("model" = String, Path), ("version" = String, Path),
        ("x-sluicegate-signature" = Option<String>, Header, description = "The content of model.sig, as one line of Base64; needed where \
                                                                            [models] trusted_keys has a key; an archive has the file instead"),
    ),
    request_body(content(
        (Vec<u8> = "application/octet-stream"),
        (Vec<u8> = "application/x-tar"),
    )),
    responses(
        (status = 201, description = "The version is in the models directory", body = Changed,
         headers(("location" = String, description = "The version"))),
        (status = 400, description = "Not an ONNX model, a refused archive, or an invalid name or version", body = Problem),
        (status = 409, description = "The version exists; versions are immutable", body = Problem),
        (status = 413, description = "The body is too large", body = Problem),
    )
)]
pub(super) async fn push(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    request: Request,
) -> Result<impl IntoResponse, ErrorResponse> {
    let (model, version) = target.new_version()?;
    // Clients name all kinds of types for a file. In a form, the file is only a part of the body.
    let is_file = |media: &str| !media.to_ascii_lowercase().starts_with("multipart/");
    let typed = check_media_type(request.headers(), is_file, "application/octet-stream or application/x-tar");
    receive(admin, model, Some(version), typed, actor, request).await
}

/// Push a new version under the next free number
///
/// As a push with a number. The number is one more than the largest that the model has or had, and is chosen when the version gets its name: two
/// pushes never get the same one. The answer and the header `location` name it. Repeating the request pushes another version.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/versions", operation_id = "push_next_version", tag = "models",
    params(
        ("model" = String, Path),
        ("x-sluicegate-signature" = Option<String>, Header, description = "As for a push with a number"),
    ),
    request_body(content(
        (Vec<u8> = "application/octet-stream"),
        (Vec<u8> = "application/x-tar"),
    )),
    responses(
        (status = 201, description = "The version is in the models directory", body = Changed,
         headers(("location" = String, description = "The version"))),
        (status = 400, description = "Not an ONNX model, a refused archive, or an invalid name", body = Problem),
        (status = 409, description = "The largest possible number is taken", body = Problem),
        (status = 413, description = "The body is too large", body = Problem),
        (status = 415, description = "The content type is neither of the two", body = Problem),
    )
)]
pub(super) async fn push_next(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    request: Request,
) -> Result<impl IntoResponse, ErrorResponse> {
    let model = target.new_model()?;
    // Exactly these: a form of a web page can send a POST with other types.
    let is_known = |media: &str| media.eq_ignore_ascii_case("application/octet-stream") || is_tar(media);
    let expected = "application/octet-stream or application/x-tar";
    let typed = check_media_type(request.headers(), is_known, expected);
    receive(admin, model, None, typed, actor, request).await
}

/// Receives the body and hands it to the manager. `typed`: whether the type of the body is right.
async fn receive(
    admin: Arc<Admin>,
    model: ModelName,
    version: Option<Version>,
    typed: Result<(), Failure>,
    actor: Actor,
    request: Request,
) -> Result<impl IntoResponse, ErrorResponse> {
    refuse_encoding(request.headers())?;
    let signature = signature(request.headers())?;
    let media = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content = if media.is_some_and(is_tar) { Content::Archive } else { Content::Model };
    let mut body = request.into_body();
    // The same files may be pushed again into a fleet: whether they are the same is known when they are here.
    let is_known = |fleet: &Fleet| version.is_some_and(|version| fleet.has_version(&model, version));
    let is_known = admin.fleet.as_ref().is_some_and(is_known);
    let early = || {
        typed?;
        if content == Content::Archive && signature.is_some() {
            let message = format!("{SIGNATURE_HEADER} is for an .onnx file; an archive has the file model.sig");
            return Err(Failure::new(Code::InvalidRequest, message));
        }
        refuse_early(&admin, &model, version.filter(|_| !is_known), &body)
    };
    if let Err(failure) = early() {
        discard(&mut body).await;
        return Err(failure.into());
    }
    let received = Received::receive(&admin.models_dir, &mut body, content, admin.max_push).await?;
    let (handle, name, files) = (admin.handle.clone(), model.clone(), received.files.clone());
    let fleet = admin.fleet.clone().map(|fleet| (fleet, admin.mirror.clone()));
    // In a task of its own, because the files must stay until the manager has moved them, even if the client disconnects meanwhile.
    let pushing = tokio::spawn(async move {
        let path = received.path.clone();
        let result = match fleet {
            None => handle.push(name, version, path, signature, actor).await,
            Some((fleet, mirror)) => {
                let pushed =
                    FleetPush { fleet, mirror, handle, model: name, version, path, is_known, signature, actor };
                pushed.run().await
            }
        };
        drop(received);
        result
    });
    let pushed =
        pushing.await.map_err(|e| Failure::new(Code::Internal, "the push failed").with_internal(e.to_string()));
    let version = pushed??;
    if admin.fleet.as_ref().is_some_and(|fleet| fleet.is_here(&model)) {
        fleet_push::wait_until_known(&admin.reader, &model, version).await;
    }
    let next = "the version is loaded, verified and warmed next; it gets no traffic until it is promoted";
    let location = format!("/api/v1/models/{model}/versions/{version}");
    let state = state_of(&admin, &model, version);
    let changed = Changed { model, version, state, next: Some(next), files };
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(changed)))
}

fn is_tar(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    media.eq_ignore_ascii_case("application/x-tar") || media.eq_ignore_ascii_case("application/tar")
}

const SIGNATURE_HEADER: &str = "x-sluicegate-signature";

/// The signature in the headers, as the content of a `model.sig`.
fn signature(headers: &http::HeaderMap) -> Result<Option<String>, Failure> {
    // The Base64 of 64 bytes.
    const LENGTH: usize = 88;
    let Some(value) = headers.get(SIGNATURE_HEADER) else { return Ok(None) };
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    match value.to_str().map(str::trim) {
        Ok(text) if text.len() == LENGTH && text.bytes().all(is_digit) => Ok(Some(format!("{text}\n"))),
        _ => Err(Failure::new(
            Code::InvalidRequest,
            format!("{SIGNATURE_HEADER}: expected the Base64 of 64 bytes, {LENGTH} characters"),
        )),
    }
}

/// Refuses what can be refused before gigabytes are sent. This sees the snapshot only; the manager checks the directory later.
fn refuse_early(admin: &Admin, model: &ModelName, version: Option<Version>, body: &Body) -> Result<(), Failure> {
    use registry::State::{Failed, Unloaded};
    let snapshot = admin.reader.snapshot();
    let known = snapshot.model(model.as_str()).zip(version).and_then(|(entry, version)| entry.versions().get(&version));
    if let Some(version) = known.filter(|status| !matches!(status.state, Failed | Unloaded)).and(version) {
        let message = format!(
            "version {version} of model {model} already exists, and versions are immutable; push the file as another version"
        );
        return Err(Failure::new(Code::Conflict, message));
    }
    if body.size_hint().lower() > admin.max_push {
        return Err(too_large(admin.max_push));
    }
    Ok(())
}

pub(super) fn too_large(limit: u64) -> Failure {
    let message = format!(
        "the body is larger than the limit of {limit} bytes for a push; copy the files into the models directory instead"
    );
    Failure::new(Code::BodyTooLarge, message)
}
