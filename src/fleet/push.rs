//! Puts a pushed version into the fleet's store: first its files, then, by one compare-and-set, the manifest that makes it a version.

use super::board::now;
use super::session::{bucket, connect};
use super::store::{STEP, Store, UNUSED, is_late};
use super::wire::{self, SCHEMA, SharedFile, SharedVersion};
use super::{Fleet, versions};
use crate::mirror::Mirror;
use crate::model::{Code, Failure, ModelName, Version, VersionId};
use async_nats::jetstream;
use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store as Bucket};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A version to store.
pub(crate) struct Pushing {
    pub model: ModelName,
    pub version: Version,
    /// Whether the next free number from `version` on is taken. Otherwise it is exactly this one.
    pub next_free: bool,
    /// The directory with its files, which are complete and synced.
    pub dir: PathBuf,
    pub actor: String,
    /// Keeps the files here, so that this gateway need not fetch them.
    pub mirror: Mirror,
}

/// A version that the store has.
#[derive(Debug)]
pub(crate) struct Stored {
    pub version: Version,
    /// False where the same files were there already under this number.
    pub is_new: bool,
    revision: u64,
}

/// Numbers that are tried for the next free one, where others push at the same time.
const NUMBERS: usize = 100;

impl Fleet {
    /// Whether the store has a version, as far as this gateway knows.
    pub(crate) fn has_version(&self, model: &ModelName, version: Version) -> bool {
        self.sharing.catalogue.has(&VersionId { model: model.clone(), version })
    }

    /// Stores a version, on a thread and a connection of its own.
    ///
    /// # Errors
    /// `CONFLICT` when the store has other files under this number, `NOT_READY` when NATS does not answer or too many pushes are being stored. Nothing is there
    /// then that anybody reads, except where the words say that it is not known.
    pub(crate) async fn push(&self, pushing: Pushing) -> Result<Stored, Failure> {
        let Ok(permit) = self.sharing.pushes.clone().try_acquire_owned() else {
            let words = "other pushes are being stored in the fleet; try again when they are done";
            return Err(Failure::new(Code::NotReady, words));
        };
        let (reply, answer) = oneshot::channel();
        let fleet = self.clone();
        let thread = std::thread::Builder::new().name("fleet-push".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let stored = match runtime {
                Ok(runtime) => runtime.block_on(Box::pin(fleet.store(&pushing))),
                Err(error) => Err(internal("the push cannot begin", &error)),
            };
            drop(permit);
            // Fails only when nobody waits any more.
            let _ = reply.send(stored);
        });
        thread.map_err(|error| internal("the push cannot begin", &error))?;
        answer.await.unwrap_or_else(|_| Err(Failure::new(Code::Internal, "the push ended without a result")))
    }

    /// Removes a version that was stored a moment ago, because it cannot be put into the audit trail.
    ///
    /// # Errors
    /// In words.
    pub(crate) async fn take_back(&self, model: &ModelName, stored: &Stored) -> Result<(), String> {
        let config = &self.sharing.config;
        let client = connect(config).await?;
        let versions = bucket(&jetstream::new(client), versions::config(config)).await?;
        let key = wire::version_key(&VersionId { model: model.clone(), version: stored.version });
        let removed = timeout(STEP, versions.delete_expect_revision(key, Some(stored.revision))).await;
        removed.map_err(|_| "NATS does not answer".to_owned())?.map_err(|error| error.to_string())
    }

    async fn store(&self, pushing: &Pushing) -> Result<Stored, Failure> {
        let Pushing { model, version, next_free, dir, actor, mirror } = pushing;
        let config = &self.sharing.config;
        let files = files_of(dir).map_err(|error| internal("the files cannot be read back", &error))?;
        let shared =
            SharedVersion { schema: SCHEMA, files, actor: actor.clone(), node: config.node.clone(), ts: now() };
        let manifest =
            serde_json::to_vec(&shared).map_err(|error| internal("the version cannot be described", &error))?;
        if manifest.len() > usize::try_from(wire::LARGEST_MANIFEST).unwrap_or(usize::MAX) {
            let words =
                format!("the version has {} files, and the list of them is larger than 1020 KiB", shared.files.len());
            return Err(Failure::new(Code::InvalidRequest, words));
        }
        let client = connect(config).await.map_err(|why| away(&why))?;
        let versions =
            bucket(&jetstream::new(client.clone()), versions::config(config)).await.map_err(|why| away(&why))?;
        let mut id = VersionId { model: model.clone(), version: *version };
        // Found before gigabytes are sent. The same files are stored again where they are missing.
        let before = if *next_free { None } else { found(&versions, &id).await.map_err(|why| away(&why))? };
        if let Some((known, _)) = &before {
            same(&id, known, &shared)?;
        }
        let store = Store::open(config, &client).await.map_err(|why| away(&why))?;
        // A slow push stores again what was removed meanwhile, because no version had it yet.
        loop {
            let began = Instant::now();
            store_files(&store, dir, &shared.files).await?;
            if began.elapsed() < UNUSED / 2 {
                break;
            }
        }
        if let Some((_, revision)) = before {
            return Ok(Stored { version: id.version, is_new: false, revision });
        }
        if self.board.is_here(&id.model) {
            for file in &shared.files {
                mirror.adopt(&dir.join(&file.path));
            }
        }
        for _ in 0..NUMBERS {
            let created = timeout(STEP, versions.create(wire::version_key(&id), manifest.clone().into())).await;
            match created {
                Ok(Ok(revision)) => return Ok(Stored { version: id.version, is_new: true, revision }),
                Ok(Err(error)) if error.kind() == CreateErrorKind::AlreadyExists || is_late(&error) => {
                    if *next_free {
                        id.version = id.version.next().ok_or_else(|| {
                            Failure::new(Code::Conflict, "the largest possible number is taken".to_owned())
                        })?;
                        continue;
                    }
                    if let Some((known, revision)) = found(&versions, &id).await.map_err(|why| away(&why))? {
                        same(&id, &known, &shared)?;
                        return Ok(Stored { version: id.version, is_new: false, revision });
                    }
                }
                Ok(Err(error)) => return Err(unknown(&id, &error)),
                Err(_) => return Err(unknown(&id, &"NATS does not answer")),
            }
        }
        Err(Failure::new(Code::NotReady, "other gateways push versions of this model all the time; try again"))
    }
}

/// Stores the files that the store lacks.
async fn store_files(store: &Store, dir: &Path, files: &[SharedFile]) -> Result<(), Failure> {
    for file in files {
        let opened = File::open(dir.join(&file.path));
        let mut opened = opened.map_err(|error| internal("the files cannot be read back", &error))?;
        store.put(&file.sha256, file.bytes, &mut opened).await.map_err(|why| away(&why))?;
    }
    Ok(())
}

/// What the bucket has of a version, and its revision.
async fn found(versions: &Bucket, id: &VersionId) -> Result<Option<(SharedVersion, u64)>, String> {
    let entry = timeout(STEP, versions.entry(wire::version_key(id))).await.map_err(|_| "NATS does not answer")?;
    let entry = entry.map_err(|error| format!("the fleet's versions cannot be read: {error}"))?;
    let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok(None) };
    let known = wire::read::<SharedVersion>(&entry.value)
        .map_err(|why| format!("version {} of model {} in the fleet's store: {why}", id.version, id.model))?;
    Ok(Some((known, entry.revision)))
}

fn same(id: &VersionId, known: &SharedVersion, pushed: &SharedVersion) -> Result<(), Failure> {
    if known.files == pushed.files {
        return Ok(());
    }
    let VersionId { model, version } = id;
    let words = format!(
        "the fleet has version {version} of model {model} with other files ({} pushed it on {} at {}); versions are immutable: use the next number",
        known.actor, known.node, known.ts
    );
    Err(Failure::new(Code::Conflict, words))
}

/// The files below a directory, in the order of their paths.
fn files_of(dir: &Path) -> io::Result<Vec<SharedFile>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next)? {
            let entry = entry?;
            // As in the models directory, hidden files are no part of a version.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).ok().and_then(Path::to_str);
            let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a file name is no text"))?;
            let mut hasher = Sha256::new();
            let bytes = io::copy(&mut File::open(&path)?, &mut hasher)?;
            files.push(SharedFile { path: name.to_owned(), sha256: format!("{:x}", hasher.finalize()), bytes });
        }
    }
    files.sort();
    Ok(files)
}

fn away(why: &str) -> Failure {
    Failure::new(Code::NotReady, format!("the version is not pushed, because the fleet's store cannot be used: {why}"))
}

fn unknown(id: &VersionId, why: &dyn std::fmt::Display) -> Failure {
    let VersionId { model, version } = id;
    let words = format!(
        "the fleet did not confirm version {version} of model {model} ({why}): it is there or not; push the same files under the same number again"
    );
    Failure::new(Code::NotReady, words)
}

fn internal(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Internal, format!("the version is not pushed: {what}")).with_internal(error.to_string())
}
