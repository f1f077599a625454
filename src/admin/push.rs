//! A new version over the wire.

use super::Admin;
use super::answers::Changed;
use super::ask::{Operator, Target};
use super::body::{check_encoding, next};
use super::models::state_of;
use super::refused::Refused;
use super::shapes::Problem;
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
/// The body is the .onnx file. It lands whole or not at all, and takes no traffic until it is promoted.
#[utoipa::path(
    put, path = "/api/v1/models/{model}/versions/{version}", operation_id = "push_version", tag = "models",
    params(("model" = String, Path), ("version" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "It is in the models directory", body = Changed,
         headers(("location" = String, description = "The version"))),
        (status = 400, description = "Not an ONNX model, or not a name or version", body = Problem),
        (status = 409, description = "The version exists already: versions are immutable", body = Problem),
        (status = 413, description = "Larger than may be pushed", body = Problem),
    )
)]
pub(super) async fn push(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    request: Request,
) -> Result<impl IntoResponse, Refused> {
    let (model, version) = target.new_version()?;
    check_encoding(request.headers())?;
    let mut body = request.into_body();
    if let Err(refused) = refuse_early(&admin, &model, version, &body) {
        discard(&mut body).await;
        return Err(refused.into());
    }
    let staged = Staged::receive(&admin.models_dir, &mut body, admin.max_push).await?;
    admin.handle.push(model.clone(), version, staged.path.clone(), actor).await?;
    let next = "it is loaded, verified and warmed beside what serves; it takes no traffic until it is promoted";
    let location = format!("/api/v1/models/{model}/versions/{version}");
    let state = state_of(&admin, &model, version);
    let changed = Changed { model, version, state, next: Some(next) };
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(changed)))
}

/// What can be told before gigabytes are sent. The manager has the last word: it sees the directory, this only what is published.
fn refuse_early(admin: &Admin, model: &ModelName, version: Version, body: &Body) -> Result<(), Failure> {
    use registry::State::{Failed, Unloaded};
    let snapshot = admin.reader.snapshot();
    let known = snapshot.model(model.as_str()).and_then(|entry| entry.versions().get(&version));
    if known.is_some_and(|status| !matches!(status.state, Failed | Unloaded)) {
        let words = format!(
            "version {version} of model {model} exists already, and versions are immutable; push it as another"
        );
        return Err(Failure::new(Code::Conflict, words));
    }
    if body.size_hint().lower() > admin.max_push {
        return Err(too_large(admin.max_push));
    }
    Ok(())
}

fn too_large(cap: u64) -> Failure {
    let words = format!(
        "the file is larger than the {cap} bytes that may be pushed; copy it into the models directory instead"
    );
    Failure::new(Code::BodyTooLarge, words)
}

/// A file that is whole and durable and not yet a version. Removed when this is dropped, unless the manager moved it.
#[derive(Debug)]
struct Staged {
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already where it became a version.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Staged {
    const PREFIX: &'static str = ".push-";

    async fn receive(dir: &Path, body: &mut Body, cap: u64) -> Result<Staged, Failure> {
        let dir = dir.to_owned();
        let (staged, file) = blocking(move || {
            sweep(&dir);
            let path = dir.join(format!("{}{}.onnx", Self::PREFIX, uuid::Uuid::now_v7()));
            let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            Ok((Staged { path }, file))
        })
        .await?;
        // A few pieces ahead of the disk; then the sender waits, and nothing is lost.
        let (pieces, written) = mpsc::channel(4);
        let writing = tokio::task::spawn_blocking(move || write(file, written));
        let mut bytes = 0;
        while let Some(piece) = next(body).await? {
            bytes += piece.len() as u64;
            if bytes > cap {
                discard(body).await;
                return Err(too_large(cap));
            }
            if pieces.send(piece).await.is_err() {
                // The writer has ended, and says why below.
                break;
            }
        }
        drop(pieces);
        writing.await.map_err(io::Error::other).flatten().map_err(|e| not_written(&e))?;
        if bytes == 0 {
            return Err(Failure::new(Code::InvalidRequest, "the body is empty: expected the bytes of an .onnx file"));
        }
        Ok(staged)
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
    let why = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no space is left in the models directory",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "the models directory cannot be written to"
        }
        io::ErrorKind::NotFound => "the models directory is not there",
        _ => "writing into the models directory failed",
    };
    Failure::new(Code::Internal, format!("the file was not taken: {why}")).with_internal(error.to_string())
}

/// Removes what a killed server left half received. A file still written to is younger than this.
fn sweep(dir: &Path) {
    const ABANDONED: Duration = Duration::from_hours(1);
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(Staged::PREFIX);
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if ours && age().is_some_and(|age| age > ABANDONED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
