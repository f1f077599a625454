//! The files of a push, received under a hidden name.

use super::body::next_piece;
use super::push::too_large;
use crate::archive::{Refused, unpack};
use crate::http::discard;
use crate::model::{Code, Failure, quoted};
use axum::body::Body;
use bytes::{Buf as _, Bytes};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// What the body of a push is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// An `.onnx` file.
    Model,
    /// A tar archive with all files of a version.
    Archive,
}

/// A file, or a directory of files, in the models directory. Removed when this is dropped, unless the manager moved it.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) path: PathBuf,
    /// The names of the files of an archive.
    pub(super) files: Option<Vec<String>>,
    /// As long as somebody wants the files.
    wanted: Arc<()>,
}

impl Drop for Received {
    fn drop(&mut self) {
        // Fails when the manager has moved it.
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

impl Received {
    const PREFIX: &'static str = ".push-";

    /// Receives a body. Everything is complete and durable when this returns.
    pub(super) async fn receive(
        dir: &Path,
        body: &mut Body,
        content: Content,
        limit: u64,
    ) -> Result<Received, Failure> {
        let dir = dir.to_owned();
        let (mut received, file) = blocking(move || {
            remove_abandoned(&dir);
            let name = format!("{}{}", Self::PREFIX, uuid::Uuid::now_v7());
            let file = match content {
                Content::Model => {
                    let path = dir.join(name + ".onnx");
                    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
                    return Ok((Received { path, files: None, wanted: Arc::default() }, Some(file)));
                }
                Content::Archive => dir.join(name),
            };
            std::fs::create_dir(&file)?;
            Ok((Received { path: file, files: None, wanted: Arc::default() }, None))
        })
        .await?;
        // At most four pieces wait for the disk; then the sender has to wait.
        let (pieces, written) = mpsc::channel(4);
        let (to, wanted) = (received.path.clone(), Arc::downgrade(&received.wanted));
        let writing = tokio::task::spawn_blocking(move || {
            let done = match file {
                Some(file) => write(file, written).map(|()| None).map_err(Refused::Disk),
                None => unpack_version(&mut Pieces { pieces: written, now: Bytes::new() }, &to).map(Some),
            };
            // The client left meanwhile: files that were made after `Received` was dropped are removed here.
            if wanted.upgrade().is_none() {
                remove(&to);
            }
            done
        });
        let bytes = pass_on(body, pieces, limit).await;
        let files = writing.await.map_err(|e| Refused::Disk(io::Error::other(e))).flatten();
        if bytes? == 0 {
            let expected = match content {
                Content::Model => "the bytes of an .onnx file",
                Content::Archive => "a tar archive",
            };
            return Err(Failure::new(Code::InvalidRequest, format!("the body is empty: expected {expected}")));
        }
        match files {
            Ok(files) => received.files = files,
            Err(refused) => {
                discard(body).await;
                return Err(match refused {
                    Refused::Invalid(why) => {
                        Failure::new(Code::InvalidRequest, format!("the archive is refused: {why}"))
                    }
                    Refused::Disk(error) => not_written(&error),
                });
            }
        }
        Ok(received)
    }
}

/// Gives the body to the writer, piece by piece. Returns the bytes. Ends early when the writer has failed.
async fn pass_on(body: &mut Body, pieces: mpsc::Sender<Bytes>, limit: u64) -> Result<u64, Failure> {
    let mut bytes = 0;
    while let Some(piece) = next_piece(body).await? {
        bytes += piece.len() as u64;
        if bytes > limit {
            discard(body).await;
            return Err(too_large(limit));
        }
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    Ok(bytes)
}

fn write(mut file: File, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
    }
    file.sync_all()
}

/// The pieces as a stream. It ends when the sender is gone.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece,
                None => return Ok(0),
            }
        }
        let n = self.now.len().min(buffer.len());
        self.now.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

/// Unpacks an archive that must have a model at its top, and makes its directories durable.
fn unpack_version(source: &mut Pieces, to: &Path) -> Result<Vec<String>, Refused> {
    const MODEL: &str = "model.onnx";
    let files = unpack(source, to)?;
    if !files.iter().any(|name| name == MODEL) {
        let nested = files.iter().find(|name| name.ends_with("/model.onnx"));
        let found = if let Some(name) = nested {
            format!("found {}: make the archive within the directory of the version (tar -C DIR -c .)", quoted(name))
        } else {
            let shown: Vec<String> = files.iter().take(10).map(|name| quoted(name)).collect();
            format!("found {}", if shown.is_empty() { "no file".to_owned() } else { shown.join(", ") })
        };
        return Err(Refused::Invalid(format!("expected {MODEL} at its top, {found}")));
    }
    let parents: BTreeSet<PathBuf> = files
        .iter()
        .flat_map(|name| Path::new(name).ancestors().skip(1).map(|parent| to.join(parent)).collect::<Vec<_>>())
        .collect();
    for parent in parents {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(Refused::Disk)?;
    }
    Ok(files)
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

/// Removes what a killed server left behind. What is being written has changed within the last hour.
fn remove_abandoned(dir: &Path) {
    const ABANDONED: Duration = Duration::from_hours(1);
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(Received::PREFIX);
        let age = || last_change(&entry.path()).and_then(|changed| changed.elapsed().ok());
        if is_ours && age().is_some_and(|age| age > ABANDONED) {
            remove(&entry.path());
        }
    }
}

/// The newest change of a file, or of a directory and what is directly in it.
fn last_change(path: &Path) -> Option<SystemTime> {
    let own = std::fs::metadata(path).ok()?.modified().ok()?;
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten();
    inside.filter_map(|entry| entry.metadata().ok()?.modified().ok()).chain([own]).max()
}
