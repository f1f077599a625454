//! A directory as a bucket, such as a network file system that is mounted: `file:///mnt/records`.
//!
//! An object appears whole or not at all: it is written beside its place with another name, synced and renamed. What a file system says it has is not taken
//! for an answer: a digest is that of the bytes that are read back. Every call runs on a thread that may wait, as a network file system may never answer.

use super::prefix::{PART, SHA256, attributes};
use super::{Address, Scheme};
use crate::machine::durable::sync_parent;
use crate::machine::open_regular;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartId, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart,
};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// The files below a directory. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Local {
    root: Arc<Path>,
}

/// An upload in parts whose parts follow each other.
#[derive(Debug)]
struct InOrder {
    store: Local,
    key: Key,
    id: MultipartId,
    parts: usize,
}

/// The name of this store in errors.
pub(super) const STORE: &str = "directory";
/// The end of the names of files that are not whole. Nothing reads them: neither a listing here nor a query over `*.parquet`.
const UNFINISHED: &str = ".unfinished";
/// A network file system has to answer within this time at a start.
const CHECK_WITHIN: Duration = Duration::from_secs(5);

/// Whether files can be uploaded to an address, if it is one of a directory: it is there and can be written, and is not the data directory or in it. A file
/// system that does not answer is not waited for.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn check_writable(to: &Address, data: &Path) -> io::Result<()> {
    if to.scheme != Scheme::File {
        return Ok(());
    }
    let (root, data, shown) = (PathBuf::from(&to.name), data.to_owned(), to.to_string());
    let (said, checked) = mpsc::channel();
    let check = move || {
        let _ = said.send(checked_directory(&root, &data));
    };
    std::thread::Builder::new().name("upload-check".to_owned()).spawn(check)?;
    if let Ok(checked) = checked.recv_timeout(CHECK_WITHIN) {
        return checked.map_err(|why| io::Error::other(format!("{shown}: {why}")));
    }
    tracing::warn!(to = shown, "the directory of uploads does not answer; files wait for it");
    Ok(())
}

fn checked_directory(root: &Path, data: &Path) -> Result<(), String> {
    is_directory(root)?;
    let absolute = |path: &Path| path.canonicalize().map_err(|e| format!("{} cannot be read: {e}", path.display()));
    let (root, data) = (absolute(root)?, absolute(data)?);
    if root.starts_with(&data) {
        return Err(format!(
            "it is in the data directory {}; expected a directory elsewhere, such as one that is mounted",
            data.display()
        ));
    }
    let probe = root.join(format!(".sluicegate-{:016x}{UNFINISHED}", fastrand::u64(..)));
    let written = File::create_new(&probe).and_then(|mut file| file.write_all(b"x"));
    // What is left where this fails is empty, and no name of a record.
    let _ = std::fs::remove_file(&probe);
    written.map_err(|e| format!("it cannot be written: {e}"))
}

fn is_directory(root: &Path) -> Result<(), String> {
    match std::fs::metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err("it is not a directory".to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err("there is no such directory; it is not made, because it may be one that is not mounted".to_owned())
        }
        Err(e) => Err(format!("it cannot be read: {e}")),
    }
}

impl Local {
    pub(super) fn new(root: &str) -> Local {
        Local { root: Path::new(root).into() }
    }

    /// Does something with the files on a thread that may wait.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Local) -> Result<T> + Send + 'static) -> Result<T> {
        let local = self.clone();
        tokio::task::spawn_blocking(move || {
            is_directory(&local.root).map_err(generic)?;
            work(&local)
        })
        .await?
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_ref())
    }

    fn unfinished(&self, key: &Key) -> PathBuf {
        self.root.join(format!("{key}{UNFINISHED}"))
    }

    /// Makes the directories of a file, but never the root.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let dirs = path.ancestors().skip(1).take_while(|dir| *dir != &*self.root);
        let missing: Vec<&Path> = dirs.take_while(|dir| !dir.is_dir()).collect();
        for dir in missing.into_iter().rev() {
            match std::fs::create_dir(dir) {
                // Another gateway was faster.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            sync_parent(dir)?;
        }
        Ok(())
    }

    /// Gives a whole file its name.
    fn publish(&self, key: &Key) -> io::Result<()> {
        let path = self.path(key);
        std::fs::rename(self.unfinished(key), &path)?;
        sync_parent(&path)
    }

    fn put(&self, key: &Key, payload: &PutPayload) -> io::Result<()> {
        let path = self.unfinished(key);
        self.make_parents(&path)?;
        let mut file = File::create(&path)?;
        payload.iter().try_for_each(|bytes| file.write_all(bytes))?;
        file.sync_all()?;
        self.publish(key)
    }

    /// All files below a directory, by their names. Where there is no such directory there are none.
    fn walk(&self, dir: &Key) -> io::Result<Vec<ObjectMeta>> {
        let mut found = Vec::new();
        let mut dirs = vec![self.path(dir)];
        while let Some(dir) = dirs.pop() {
            let (inner, files) = self.entries(&dir)?;
            dirs.extend(inner);
            found.extend(files);
        }
        found.sort_unstable_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
        Ok(found)
    }

    /// The directories and the whole files in a directory.
    fn entries(&self, dir: &Path) -> io::Result<(Vec<PathBuf>, Vec<ObjectMeta>)> {
        let (mut dirs, mut files) = (Vec::new(), Vec::new());
        let entries = match std::fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((dirs, files)),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file()
                && let Some(key) = self.key(&entry.path())
            {
                match entry.metadata() {
                    // It was removed, or renamed, after the listing.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    metadata => files.push(meta(key, &metadata?)),
                }
            }
        }
        Ok((dirs, files))
    }

    /// The name of a whole file. Names that are none of an object were not written here.
    fn key(&self, path: &Path) -> Option<Key> {
        let name = path.strip_prefix(&self.root).ok()?.to_str()?;
        if name.ends_with(UNFINISHED) { None } else { Key::parse(name).ok() }
    }

    fn get(&self, key: &Key, options: &GetOptions) -> Result<GetResult> {
        let at = |e| error(key, e);
        let mut file = open_regular(&self.path(key)).map_err(at)?;
        let meta = meta(key.clone(), &file.metadata().map_err(at)?);
        options.check_preconditions(&meta)?;
        if options.head {
            let attributes = attributes(&digest(&mut file).map_err(at)?);
            return Ok(result(meta, 0..0, Bytes::new(), attributes));
        }
        let range = match &options.range {
            Some(range) => range.as_range(meta.size).map_err(generic)?,
            None => 0..meta.size,
        };
        let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(generic)?];
        file.read_exact_at(&mut bytes, range.start).map_err(at)?;
        Ok(result(meta, range, bytes.into(), Attributes::new()))
    }

    /// The file has the bytes whose digest is the upload's id, or it begins again.
    fn complete(&self, key: &Key, id: &str) -> Result<()> {
        let at = |e| error(key, e);
        let path = self.unfinished(key);
        let mut file = open_regular(&path).map_err(at)?;
        file.sync_all().map_err(at)?;
        if digest(&mut file).map_err(at)? != id {
            std::fs::remove_file(&path).map_err(at)?;
            let source = "the parts that are there are not those that were sent".into();
            return Err(Error::Precondition { path: key.to_string(), source });
        }
        self.publish(key).map_err(at)
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.display().fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Local {
    async fn put_opts(&self, location: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !matches!(options.mode, PutMode::Overwrite) {
            return Err(unsupported("a condition of a write"));
        }
        let key = location.clone();
        self.run(move |local| local.put(&key, &payload).map_err(|e| error(&key, e))).await?;
        Ok(put())
    }

    async fn put_multipart_opts(&self, location: &Key, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let id = self.create_multipart_opts(location, o).await?;
        Ok(Box::new(InOrder { store: self.clone(), key: location.clone(), id, parts: 0 }))
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        let key = location.clone();
        self.run(move |local| local.get(&key, &options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let local = self.clone();
        let delete = move |key: Result<Key>| {
            let local = local.clone();
            async move {
                let key = key?;
                let deleted = key.clone();
                let delete = move |local: &Local| {
                    let path = local.path(&key);
                    std::fs::remove_file(&path).and_then(|()| sync_parent(&path)).map_err(|e| error(&key, e))
                };
                local.run(delete).await?;
                Ok(deleted)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (local, dir) = (self.clone(), prefix.cloned().unwrap_or_default());
        let walked = async move { local.run(move |local| local.walk(&dir).map_err(|e| error(&dir, e))).await };
        let items = |walked: Result<Vec<ObjectMeta>>| match walked {
            Ok(found) => stream::iter(found.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        };
        walked.into_stream().map(items).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        let dir = prefix.cloned().unwrap_or_default();
        let listed = move |local: &Local| {
            let (dirs, objects) = local.entries(&local.path(&dir)).map_err(|e| error(&dir, e))?;
            let common_prefixes = dirs.iter().filter_map(|dir| local.key(dir)).collect();
            Ok(ListResult { common_prefixes, objects, extensions: Extensions::default() })
        };
        self.run(listed).await
    }

    async fn copy_opts(&self, _: &Key, _: &Key, _: CopyOptions) -> Result<()> {
        Err(unsupported("a copy"))
    }
}

/// An upload in parts is one file, into which the parts are written at their places. Its id is the digest that the whole must have.
#[async_trait]
impl MultipartStore for Local {
    async fn create_multipart(&self, _: &Key) -> Result<MultipartId> {
        Err(unsupported("an upload in parts without a digest"))
    }

    async fn create_multipart_opts(&self, path: &Key, options: PutMultipartOptions) -> Result<MultipartId> {
        let Some(id) = options.attributes.get(&Attribute::Metadata(SHA256.into())).map(|id| id.as_ref().to_owned())
        else {
            return self.create_multipart(path).await;
        };
        let key = path.clone();
        let create = move |local: &Local| {
            let path = local.unfinished(&key);
            local.make_parents(&path).and_then(|()| File::create(&path)).map(drop).map_err(|e| error(&key, e))
        };
        self.run(create).await?;
        Ok(id)
    }

    async fn put_part(&self, path: &Key, _: &MultipartId, part: usize, data: PutPayload) -> Result<PartId> {
        let key = path.clone();
        let write = move |local: &Local| {
            let mut at = part as u64 * PART;
            // It is not made: without the parts before it, the upload has to begin again.
            let file = File::options().write(true).open(local.unfinished(&key))?;
            for bytes in &data {
                file.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
            }
            file.sync_data()
        };
        let key = path.clone();
        self.run(move |local| write(local).map_err(|e| error(&key, e))).await?;
        Ok(PartId { content_id: part.to_string() })
    }

    async fn complete_multipart(&self, path: &Key, id: &MultipartId, _: Vec<PartId>) -> Result<PutResult> {
        let (key, id) = (path.clone(), id.clone());
        self.run(move |local| local.complete(&key, &id)).await?;
        Ok(put())
    }

    async fn abort_multipart(&self, path: &Key, _: &MultipartId) -> Result<()> {
        let key = path.clone();
        self.run(move |local| std::fs::remove_file(local.unfinished(&key)).map_err(|e| error(&key, e))).await
    }
}

#[async_trait]
impl MultipartUpload for InOrder {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, key, id, part) = (self.store.clone(), self.key.clone(), self.id.clone(), self.parts);
        self.parts += 1;
        async move { MultipartStore::put_part(&store, &key, &id, part, data).await.map(drop) }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.store.complete_multipart(&self.key, &self.id, Vec::new()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.store.abort_multipart(&self.key, &self.id).await
    }
}

fn meta(location: Key, file: &Metadata) -> ObjectMeta {
    // A file that was replaced is another one, also where its times are the same.
    let tag = format!("{:x}-{:x}-{:x}-{:x}", file.ino(), file.mtime(), file.mtime_nsec(), file.len());
    let last_modified = file.modified().unwrap_or(std::time::UNIX_EPOCH).into();
    ObjectMeta { location, last_modified, size: file.len(), e_tag: Some(tag), version: None }
}

fn result(meta: ObjectMeta, range: std::ops::Range<u64>, bytes: Bytes, attributes: Attributes) -> GetResult {
    let payload = GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed());
    GetResult { payload, meta, range, attributes, extensions: Extensions::default() }
}

fn put() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Extensions::default() }
}

/// The SHA-256 of a file, in lower-case hex.
fn digest(file: &mut File) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:x}", digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}

fn error(key: &Key, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound { path: key.to_string(), source: error.into() },
        _ => generic(error),
    }
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: STORE, source: source.into() }
}

fn unsupported(what: &str) -> Error {
    Error::NotSupported { source: format!("{what} is not supported by a directory").into() }
}
