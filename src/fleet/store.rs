//! The fleet's store: files by their SHA-256 in the object store of `JetStream`.
//!
//! An object has the form that NATS's own clients read (`nats object`): chunks under a subject of their own, then one message that makes them an object.
//! - Bytes become an object by one compare-and-set when all chunks are there. Of two gateways that store the same bytes, one wins, and the other removes its chunks.
//! - A read asks for one chunk after the other by its number in the stream, so that it goes on where it stopped and holds one chunk in memory.
//! - Every exchange has a deadline. What an interrupted push leaves is removed by [`Store::sweep`].

use super::Config;
use super::catalogue::Catalogue;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_ROLLUP};
use async_nats::jetstream::context::{PublishAckFuture, PublishErrorKind};
use async_nats::jetstream::kv::{UpdateError, UpdateErrorKind};
use async_nats::jetstream::object_store::{self, ObjectInfo, ObjectOptions};
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read as _};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// The store of one fleet, on one connection.
pub(super) struct Store {
    context: Context,
    stream: Stream,
    bucket: String,
    /// The bytes of a chunk.
    chunk: usize,
}

/// An object that is there.
#[derive(Debug, Clone)]
struct Object {
    info: ObjectInfo,
    /// The number of the message that makes it an object.
    sequence: u64,
}

/// Where a read of an object is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// Of the chunks.
    nuid: String,
    /// The bytes that were read, and the number in the stream that the next chunk has at least.
    bytes: u64,
    next: u64,
}

/// Why an object could not be read.
#[derive(Debug)]
pub(super) struct Unread {
    pub words: String,
    /// NATS went away: a read on another connection can go on.
    pub is_lost: bool,
}

impl From<String> for Unread {
    fn from(words: String) -> Unread {
        Unread { words, is_lost: true }
    }
}

fn wrong(words: impl Into<String>) -> Unread {
    Unread { words: words.into(), is_lost: false }
}

/// What was found without use in earlier sweeps, and since when it is the same. The clock of this process counts.
#[derive(Debug, Default)]
pub(super) struct Swept(BTreeMap<String, (u64, Instant)>);

/// Every exchange with NATS.
pub(super) const STEP: Duration = Duration::from_secs(5);
/// Large enough that a round trip for each costs little, and well under what NATS takes by default (1 MiB).
const CHUNK: usize = 512 << 10;
/// Room for the headers of a message.
const HEADERS: usize = 4 << 10;
/// Chunks that are on their way.
const IN_FLIGHT: usize = 4;
/// What is without use for so long is removed.
pub(super) const UNUSED: Duration = Duration::from_hours(1);
/// The most subjects that one sweep looks at.
const LOOKED_AT: usize = 100_000;

impl Store {
    /// Opens the store. It is made where there is none.
    ///
    /// # Errors
    /// In words.
    pub async fn open(config: &Config, client: &Client) -> Result<Store, String> {
        let bucket = format!("{}_models", config.name);
        let mut context = jetstream::new(client.clone());
        context.set_timeout(STEP);
        let name = format!("OBJ_{bucket}");
        let payload = client.server_info().max_payload;
        let chunk = CHUNK.min(payload.saturating_sub(HEADERS)).max(1);
        if let Ok(Ok(stream)) = timeout(STEP, context.get_stream(&name)).await {
            return Ok(Store { context, stream, bucket, chunk });
        }
        let settings = object_store::Config {
            bucket: bucket.clone(),
            description: Some("Sluicegate: files of versions, by SHA-256".to_owned()),
            num_replicas: config.replicas,
            ..object_store::Config::default()
        };
        let made = timeout(STEP, context.create_object_store(settings)).await.map_err(|_| no_answer())?;
        // Fails where another gateway was faster.
        match timeout(STEP, context.get_stream(&name)).await.map_err(|_| no_answer())? {
            Ok(stream) => Ok(Store { context, stream, bucket, chunk }),
            Err(error) => {
                let why = made.err().map_or_else(|| error.to_string(), |error| error.to_string());
                Err(format!("the store {bucket} cannot be opened or made: {why}"))
            }
        }
    }

    fn meta_subject(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.bucket, URL_SAFE.encode(name))
    }

    fn chunks_subject(&self, nuid: &str) -> String {
        format!("$O.{}.C.{nuid}", self.bucket)
    }

    /// The last message of an object's name, also where the object was deleted.
    async fn last(&self, sha256: &str) -> Result<Option<Object>, String> {
        let subject = self.meta_subject(sha256);
        let found = timeout(STEP, self.stream.get_last_raw_message_by_subject(&subject)).await;
        match found.map_err(|_| no_answer())? {
            Ok(message) => {
                let info = serde_json::from_slice(&message.payload)
                    .map_err(|error| format!("the object {sha256} in the store cannot be read: {error}"))?;
                Ok(Some(Object { info, sequence: message.sequence }))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(format!("the store cannot be read: {error}")),
        }
    }

    // === writing ===

    /// Stores a file under its digest, unless it is there. Returns whether it was stored now.
    ///
    /// # Errors
    /// In words. Nothing is there then that anybody reads.
    pub async fn put(&self, sha256: &str, bytes: u64, file: &mut File) -> Result<bool, String> {
        // Another gateway can store or remove the same object between two steps.
        for _ in 0..4 {
            let last = self.last(sha256).await?;
            let is_there = |object: &Object| !object.info.deleted && object.info.size as u64 == bytes;
            if let Some(object) = last.as_ref().filter(|object| is_there(object)) {
                // It is in use from now on, so that no sweep removes it.
                if self.publish(&object.info, object.sequence).await? {
                    return Ok(false);
                }
                continue;
            }
            let info = self.upload(sha256, bytes, file).await?;
            let published = self.publish(&info, last.as_ref().map_or(0, |object| object.sequence)).await;
            if !matches!(published, Ok(true)) {
                self.purge(&info.nuid).await;
            }
            if published? {
                if let Some(old) = last {
                    self.purge(&old.info.nuid).await;
                }
                return Ok(true);
            }
        }
        Err(format!("other gateways store and remove the object {sha256} all the time"))
    }

    async fn upload(&self, sha256: &str, bytes: u64, file: &mut File) -> Result<ObjectInfo, String> {
        let nuid = uuid::Uuid::now_v7().simple().to_string();
        let sent = self.send_chunks(&nuid, sha256, bytes, file).await;
        if sent.is_err() {
            self.purge(&nuid).await;
        }
        let (chunks, digest) = sent?;
        let size = usize::try_from(bytes).map_err(|_| format!("{bytes} bytes are too many for this machine"))?;
        Ok(ObjectInfo {
            name: sha256.to_owned(),
            description: None,
            metadata: std::collections::HashMap::new(),
            headers: None,
            options: Some(ObjectOptions { link: None, max_chunk_size: Some(self.chunk) }),
            bucket: self.bucket.clone(),
            nuid,
            size,
            chunks,
            modified: None,
            digest: Some(format!("SHA-256={}", URL_SAFE.encode(digest))),
            deleted: false,
        })
    }

    async fn send_chunks(
        &self,
        nuid: &str,
        sha256: &str,
        bytes: u64,
        file: &mut File,
    ) -> Result<(usize, Vec<u8>), String> {
        use std::io::Seek as _;
        let disk = |error: io::Error| format!("a file of the version cannot be read back: {error}");
        file.rewind().map_err(disk)?;
        let subject = self.chunks_subject(nuid);
        let mut hasher = Sha256::new();
        let (mut chunks, mut sent) = (0, 0);
        let mut waiting: VecDeque<PublishAckFuture> = VecDeque::new();
        loop {
            let mut chunk = Vec::with_capacity(self.chunk);
            file.by_ref().take(self.chunk as u64).read_to_end(&mut chunk).map_err(disk)?;
            if chunk.is_empty() {
                break;
            }
            hasher.update(&chunk);
            chunks += 1;
            sent += chunk.len() as u64;
            if waiting.len() == IN_FLIGHT
                && let Some(oldest) = waiting.pop_front()
            {
                acknowledged(oldest).await?;
            }
            let published = timeout(STEP, self.context.publish(subject.clone(), chunk.into())).await;
            waiting.push_back(published.map_err(|_| no_answer())?.map_err(|error| refused(&error))?);
        }
        for left in waiting {
            acknowledged(left).await?;
        }
        let digest = hasher.finalize();
        if sent != bytes || format!("{digest:x}") != sha256 {
            return Err("a file of the version changed while it was stored".to_owned());
        }
        Ok((chunks, digest.to_vec()))
    }

    /// Makes chunks an object. False when the last message of its name is not `expected` any more.
    async fn publish(&self, info: &ObjectInfo, expected: u64) -> Result<bool, String> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_ROLLUP, "sub");
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string().as_str());
        let text = serde_json::to_vec(info).map_err(|error| format!("the object cannot be described: {error}"))?;
        let subject = self.meta_subject(&info.name);
        let published = timeout(STEP, self.context.publish_with_headers(subject, headers, text.into())).await;
        let published = published.map_err(|_| no_answer())?.map_err(|error| refused(&error))?;
        match timeout(STEP, published.into_future()).await.map_err(|_| no_answer())? {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence || is_late(&error) => Ok(false),
            Err(error) => Err(refused(&error)),
        }
    }

    /// Removes chunks. What cannot be removed now is removed by a sweep.
    async fn purge(&self, nuid: &str) {
        let _ = timeout(STEP, self.stream.purge().filter(self.chunks_subject(nuid)).into_future()).await;
    }

    // === reading ===

    /// Reads an object from byte `from` on, and gives the bytes to `to` in order. `position` is where the last read stopped: a read that goes on there asks for
    /// nothing twice.
    ///
    /// # Errors
    /// In words; the inner one is what `to` returned.
    pub async fn read<E>(
        &self,
        sha256: &str,
        from: u64,
        position: &mut Position,
        to: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, Unread> {
        let object = self.last(sha256).await?.filter(|object| !object.info.deleted);
        let Object { info, .. } = object.ok_or_else(|| wrong(format!("the store has no object {sha256}")))?;
        if position.nuid != info.nuid || position.bytes > from {
            *position = Position { nuid: info.nuid.clone(), bytes: 0, next: 1 };
        }
        let subject = self.chunks_subject(&info.nuid);
        while position.bytes < info.size as u64 {
            let (next, chunk) = self.chunk_at(&subject, position.next, position.bytes, info.size).await?;
            let skipped = usize::try_from(from.saturating_sub(position.bytes)).unwrap_or(usize::MAX).min(chunk.len());
            if let Err(error) = to(&chunk[skipped..]) {
                return Ok(Err(error));
            }
            position.bytes += chunk.len() as u64;
            position.next = next;
        }
        Ok(Ok(()))
    }

    /// The first chunk from a number in the stream on, and the number after it.
    async fn chunk_at(&self, subject: &str, next: u64, read: u64, size: usize) -> Result<(u64, Bytes), Unread> {
        // A replica of the stream can be a moment behind.
        const TRIES: u32 = 5;
        const PAUSE: Duration = Duration::from_millis(200);
        for _ in 0..TRIES {
            let got = timeout(STEP, self.stream.direct_get_next_for_subject(subject, Some(next))).await;
            match got.map_err(|_| no_answer())? {
                Ok(message) if message.payload.is_empty() => return Err(wrong("the store has an empty chunk")),
                Ok(message) => return Ok((message.sequence + 1, message.payload)),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => sleep(PAUSE).await,
                Err(error) => return Err(format!("the store cannot be read: {error}").into()),
            }
        }
        Err(wrong(format!("the store has {read} of {size} bytes of it")))
    }

    // === cleaning ===

    /// Removes chunks that are no object, and objects that no version has, once they were so for an hour.
    ///
    /// # Errors
    /// In words, when the store cannot be read.
    pub async fn sweep(&self, swept: &mut Swept, catalogue: &Catalogue) -> Result<(), String> {
        let versions = catalogue.all(Duration::ZERO)?;
        let used: BTreeSet<&str> =
            versions.values().flatten().flat_map(|version| &version.files).map(|file| file.sha256.as_str()).collect();
        if versions.values().any(Result::is_err) {
            return Err("a version cannot be read, so nothing is known to be without use".to_owned());
        }
        let (mut unused, mut objects) = (Vec::new(), BTreeSet::new());
        for name in self.subjects("M").await? {
            let decoded = URL_SAFE.decode(&name).ok().and_then(|name| String::from_utf8(name).ok());
            let Some(sha256) = decoded else { continue };
            let Some(object) = self.last(&sha256).await? else { continue };
            if !used.contains(object.info.name.as_str()) {
                unused.push((name, object.sequence, object.info.nuid.clone()));
            }
            objects.insert(object.info.nuid);
        }
        let chunks = self.subjects("C").await?;
        let orphans: Vec<String> = chunks.into_iter().filter(|nuid| !objects.contains(nuid)).collect();
        let mut seen = BTreeMap::new();
        let now = Instant::now();
        let mut since = |key: String, mark: u64| {
            let known = swept.0.get(&key).filter(|(before, _)| *before == mark).map(|(_, since)| *since);
            let since = known.unwrap_or(now);
            seen.insert(key, (mark, since));
            now.duration_since(since) >= UNUSED
        };
        for (name, sequence, nuid) in unused {
            // It removes exactly this message: where a push has begun to use the object, it is another one.
            if since(format!("M.{name}"), sequence)
                && matches!(timeout(STEP, self.stream.delete_message(sequence)).await, Ok(Ok(true)))
            {
                self.purge(&nuid).await;
            }
        }
        for nuid in orphans {
            if since(format!("C.{nuid}"), 0) {
                self.purge(&nuid).await;
            }
        }
        swept.0 = seen;
        Ok(())
    }

    /// The last parts of the subjects of chunks (`C`) or objects (`M`).
    async fn subjects(&self, kind: &str) -> Result<Vec<String>, String> {
        let prefix = format!("$O.{}.{kind}.", self.bucket);
        let listed = timeout(STEP, self.stream.info_with_subjects(format!("{prefix}>"))).await;
        let mut listed =
            listed.map_err(|_| no_answer())?.map_err(|error| format!("the store cannot be listed: {error}"))?;
        let mut names = Vec::new();
        while names.len() < LOOKED_AT {
            match timeout(STEP, listed.next()).await.map_err(|_| no_answer())? {
                None => break,
                Some(Ok((subject, _))) => names.extend(subject.strip_prefix(&prefix).map(str::to_owned)),
                Some(Err(error)) => return Err(format!("the store cannot be listed: {error}")),
            }
        }
        Ok(names)
    }
}

/// Whether another change came first. A cluster has a second code for that, which the client does not know, where both are on their way.
pub(super) fn is_late(error: &dyn std::fmt::Display) -> bool {
    error.to_string().contains("wrong last sequence")
}

/// The same for a compare-and-set of a bucket.
pub(super) fn is_stale(error: &UpdateError) -> bool {
    error.kind() == UpdateErrorKind::WrongLastRevision || is_late(error)
}

async fn acknowledged(sent: PublishAckFuture) -> Result<(), String> {
    let stored = timeout(STEP, sent.into_future()).await.map_err(|_| no_answer())?;
    stored.map(drop).map_err(|error| refused(&error))
}

fn refused(error: &dyn std::fmt::Display) -> String {
    format!("the store does not take it: {error}")
}

fn no_answer() -> String {
    "NATS does not answer".to_owned()
}
