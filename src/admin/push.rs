//! Push: receives a new version over HTTP.

use super::Admin;
use super::body::{check_media_type, next_piece, refuse_encoding};
use super::error::ErrorResponse;
use super::extract::{Operator, Target};
use super::models::state_of;
use super::responses::models::Changed;
use super::schemas::Problem;
use crate::http::discard;
use crate::model::{Code, Failure, ModelName, Version};
use crate::registry;
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use bytes::Bytes;
use http::StatusCode;
use http::header::LOCATION;
use http_body::Body as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Push a new version
///
/// The body is the .onnx file. It is stored completely or not at all, and gets no traffic until it is promoted.
#[utoipa::path(
    put, path = "/api/v1/models/{model}/versions/{version}", operation_id = "push_version", tag = "models",
    params(
        ("model" = String, Path), ("version" = String, Path),
        ("x-sluicegate-signature" = Option<String>, Header, description = "The content of model.sig, as one line of Base64; needed where \
                                                                            [models] trusted_keys has a key"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "The version is in the models directory", body = Changed,
         headers(("location" = String, description = "The version"))),
        (status = 400, description = "Not an ONNX model, or an invalid name or version", body = Problem),
        (status = 409, description = "The version exists; versions are immutable", body = Problem),
        (status = 413, description = "The file is too large", body = Problem),
    )
)]
pub(super) async fn push(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    request: Request,
) -> Result<impl IntoResponse, ErrorResponse> {
    let (model, version) = target.new_version()?;
    refuse_encoding(request.headers())?;
    // Clients name all kinds of types for a file. In a form, the file is only a part of the body.
    let is_file = |media: &str| !media.to_ascii_lowercase().starts_with("multipart/");
    let typed = check_media_type(request.headers(), is_file, "application/octet-stream");
    let signature = signature(request.headers())?;
    let mut body = request.into_body();
    if let Err(failure) = typed.and_then(|()| refuse_early(&admin, &model, version, &body)) {
        discard(&mut body).await;
        return Err(failure.into());
    }
    let file = ReceivedFile::receive(&admin.models_dir, &mut body, admin.max_push).await?;
    let (handle, name) = (admin.handle.clone(), model.clone());
    // In a task of its own, because the file must stay until the manager has moved it, even if the client disconnects meanwhile.
    let pushing = tokio::spawn(async move {
        let result = handle.push(name, version, file.path.clone(), signature, actor).await;
        drop(file);
        result
    });
    pushing.await.map_err(|e| Failure::new(Code::Internal, "the push failed").with_internal(e.to_string()))??;
    let next = "the version is loaded, verified and warmed next; it gets no traffic until it is promoted";
    let location = format!("/api/v1/models/{model}/versions/{version}");
    let state = state_of(&admin, &model, version);
    let changed = Changed { model, version, state, next: Some(next) };
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(changed)))
}

/// The signature in the headers, as the content of a `model.sig`.
fn signature(headers: &http::HeaderMap) -> Result<Option<String>, Failure> {
    const HEADER: &str = "x-sluicegate-signature";
    // The Base64 of 64 bytes.
    const LENGTH: usize = 88;
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    match value.to_str().map(str::trim) {
        Ok(text) if text.len() == LENGTH && text.bytes().all(is_digit) => Ok(Some(format!("{text}\n"))),
        _ => Err(Failure::new(
            Code::InvalidRequest,
            format!("{HEADER}: expected the Base64 of 64 bytes, {LENGTH} characters"),
        )),
    }
}

/// Refuses what can be refused before gigabytes are sent. This sees the snapshot only; the manager checks the directory later.
fn refuse_early(admin: &Admin, model: &ModelName, version: Version, body: &Body) -> Result<(), Failure> {
    use registry::State::{Failed, Unloaded};
    let snapshot = admin.reader.snapshot();
    let known = snapshot.model(model.as_str()).and_then(|entry| entry.versions().get(&version));
    if known.is_some_and(|status| !matches!(status.state, Failed | Unloaded)) {
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

fn too_large(limit: u64) -> Failure {
    let message = format!(
        "the file is larger than the limit of {limit} bytes for a push; copy it into the models directory instead"
    );
    Failure::new(Code::BodyTooLarge, message)
}

/// A temporary file. It is removed when this is dropped, unless the manager moved it.
#[derive(Debug)]
struct ReceivedFile {
    path: PathBuf,
}

impl Drop for ReceivedFile {
    fn drop(&mut self) {
        // Fails when the manager has moved the file.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ReceivedFile {
    const PREFIX: &'static str = ".push-";

    /// Receives a body. The file is complete and durable when this returns.
    async fn receive(dir: &Path, body: &mut Body, limit: u64) -> Result<ReceivedFile, Failure> {
        let dir = dir.to_owned();
        let (received, file) = blocking(move || {
            remove_abandoned(&dir);
            let path = dir.join(format!("{}{}.onnx", Self::PREFIX, uuid::Uuid::now_v7()));
            let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            Ok((ReceivedFile { path }, file))
        })
        .await?;
        // At most four pieces wait for the disk; then the sender has to wait.
        let (pieces, written) = mpsc::channel(4);
        let writing = tokio::task::spawn_blocking(move || write(file, written));
        let mut bytes = 0;
        while let Some(piece) = next_piece(body).await? {
            bytes += piece.len() as u64;
            if bytes > limit {
                discard(body).await;
                return Err(too_large(limit));
            }
            if pieces.send(piece).await.is_err() {
                // The writer has failed. Its error is returned below.
                break;
            }
        }
        drop(pieces);
        writing.await.map_err(io::Error::other).flatten().map_err(|e| not_written(&e))?;
        if bytes == 0 {
            return Err(Failure::new(Code::InvalidRequest, "the body is empty: expected the bytes of an .onnx file"));
        }
        Ok(received)
    }
}

fn write(mut file: File, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
    }
    file.sync_all()
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(f).await.map_err(io::Error::other).flatten().map_err(|e| not_written(&e))
}

fn not_written(error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no space is left in the models directory",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "the models directory is not writable",
        io::ErrorKind::NotFound => "the models directory does not exist",
        _ => "writing into the models directory failed",
    };
    Failure::new(Code::Internal, format!("the file was not stored: {reason}")).with_internal(error.to_string())
}

/// Removes files that a killed server left behind. Files that are being written are younger than an hour.
fn remove_abandoned(dir: &Path) {
    const ABANDONED: Duration = Duration::from_hours(1);
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(ReceivedFile::PREFIX);
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_ours && age().is_some_and(|age| age > ABANDONED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
