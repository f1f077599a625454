//! The objects below a prefix, for threads that may wait: listed, read by ranges, replaced and removed.

use super::{Address, Client, Settings, open, words};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, ObjectMeta, ObjectStoreExt as _, PutMultipartOptions, PutOptions,
    PutPayload,
};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// The objects below one address.
pub struct Prefix {
    address: Address,
    client: Client,
    /// Drives one request at a time.
    runtime: Mutex<Runtime>,
    pub(super) blocks: super::object::Blocks,
}

/// An object, as it was listed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listed {
    /// Below the prefix.
    pub name: String,
    pub bytes: u64,
    /// Changes when the object is replaced. Some servers have none.
    pub tag: Option<String>,
}

/// The metadata of an object that has the SHA-256 of its bytes, in lower-case hex.
pub(crate) const SHA256: &str = "sha256";
/// Files up to this length are one request. Larger ones are sent in parts of it: the smallest that every store takes is 5 MiB.
pub(crate) const PART: u64 = 8 << 20;
/// The most objects of a listing.
const MAX_OBJECTS: usize = 2_000_000;
/// The longest wait for an answer. A part has so long to arrive.
const WITHIN: Duration = Duration::from_mins(2);

impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Prefix").field(&self.address.to_string()).finish()
    }
}

impl Prefix {
    /// A client for commands. Nothing is asked for yet.
    ///
    /// # Errors
    /// When the environment has settings that cannot be used.
    pub fn open(address: &Address, instance_metadata: bool) -> io::Result<Prefix> {
        let settings = Settings { timeout: WITHIN, retries: 3, instance_metadata };
        let client = open(address.scheme, &address.name, &settings)
            .map_err(|words| io::Error::other(format!("{address}: {words}")))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
        let blocks = super::object::Blocks::default();
        Ok(Prefix { address: address.clone(), client, runtime: Mutex::new(runtime), blocks })
    }

    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The objects below a directory whose names come after `after` and before `before`, in the order of their names.
    ///
    /// # Errors
    /// When it cannot be listed completely.
    pub fn list(&self, dir: &str, after: Option<&str>, before: Option<&str>) -> io::Result<Vec<Listed>> {
        let path = self.path(dir)?;
        let mut objects = match after {
            Some(after) => self.client.objects.list_with_offset(Some(&path), &self.path(after)?),
            None => self.client.objects.list(Some(&path)),
        };
        self.wait(async {
            let mut listed = Vec::new();
            while let Some(object) = timeout(WITHIN, objects.next()).await.map_err(|_| self.silent(dir))? {
                let ObjectMeta { location, size, e_tag, .. } = object.map_err(|error| self.at(dir, &error))?;
                let Some(name) = self.below(&location) else { continue };
                if before.is_some_and(|before| name.as_str() >= before) {
                    break;
                }
                if listed.len() == MAX_OBJECTS {
                    return Err(io::Error::other(format!("{self} has more than {MAX_OBJECTS} objects in {dir}")));
                }
                listed.push(Listed { name, bytes: size, tag: e_tag });
            }
            listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(listed)
        })
    }

    /// The directories in a directory, by their last names.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn dirs(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = self.path(dir)?;
        let listed = self.wait(async {
            let listed = timeout(WITHIN, self.client.objects.list_with_delimiter(Some(&path))).await;
            listed.map_err(|_| self.silent(dir))?.map_err(|error| self.at(dir, &error))
        })?;
        let last = |path: &Path| path.filename().map(str::to_owned);
        Ok(listed.common_prefixes.iter().filter_map(last).collect())
    }

    /// Bytes of an object, if it is still the one that was listed.
    ///
    /// # Errors
    /// `NotFound` when it was removed. When it was replaced, or cannot be read.
    pub fn read(&self, object: &Listed, from: u64, length: u64) -> io::Result<Bytes> {
        let name = &object.name;
        let options = GetOptions {
            if_match: object.tag.clone(),
            range: Some(GetRange::Bounded(from..from + length)),
            ..GetOptions::default()
        };
        let path = self.path(name)?;
        let bytes = self.wait(async {
            let read = async {
                let mut pieces = self.client.objects.get_opts(&path, options).await?.into_stream();
                let mut bytes = BytesMut::new();
                // A server may send more than it was asked for.
                while bytes.len() as u64 <= length
                    && let Some(piece) = pieces.next().await
                {
                    bytes.extend_from_slice(&piece?);
                }
                Ok(bytes.freeze())
            };
            timeout(WITHIN, read).await.map_err(|_| self.silent(name))?.map_err(|error| self.at(name, &error))
        })?;
        if bytes.len() as u64 != length {
            let more = if bytes.len() as u64 > length { "more than" } else { "only" };
            let words = format!(
                "{self}/{name}: it gave {more} {} bytes; expected {length}",
                bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX))
            );
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, words));
        }
        Ok(bytes)
    }

    /// Copies an object into a file.
    ///
    /// # Errors
    /// As [`Prefix::read`]; when the file cannot be written.
    pub fn fetch(&self, object: &Listed, to: &std::path::Path) -> io::Result<()> {
        let mut file = File::create(to)?;
        let mut at = 0;
        while at < object.bytes {
            let length = PART.min(object.bytes - at);
            file.write_all(&self.read(object, at, length)?)?;
            at += length;
        }
        Ok(())
    }

    /// Puts a file in the place of an object, as a whole.
    ///
    /// # Errors
    /// When the file cannot be read, or the object cannot be written. It is then as before.
    pub fn replace(&self, name: &str, from: &std::path::Path, sha256: &str) -> io::Result<()> {
        let mut file = File::open(from)?;
        let length = file.metadata()?.len();
        let path = self.path(name)?;
        let mut part = |at: u64| -> io::Result<PutPayload> {
            let mut bytes = vec![0; usize::try_from(PART.min(length - at)).unwrap_or(0)];
            file.read_exact(&mut bytes)?;
            Ok(bytes.into())
        };
        let at = |error: object_store::Error| self.at(name, &error);
        let silent = || self.silent(name);
        self.wait(async {
            if length <= PART {
                let options = PutOptions { attributes: attributes(sha256), ..PutOptions::default() };
                let put = self.client.objects.put_opts(&path, part(0)?, options);
                timeout(WITHIN, put).await.map_err(|_| silent())?.map_err(at)?;
                return Ok(());
            }
            let options = PutMultipartOptions { attributes: attributes(sha256), ..PutMultipartOptions::default() };
            let begun = timeout(WITHIN, self.client.objects.put_multipart_opts(&path, options)).await;
            let mut upload = begun.map_err(|_| silent())?.map_err(at)?;
            let mut sent = 0;
            while sent < length {
                let payload = part(sent)?;
                sent += payload.content_length() as u64;
                timeout(WITHIN, upload.put_part(payload)).await.map_err(|_| silent())?.map_err(at)?;
            }
            timeout(WITHIN, upload.complete()).await.map_err(|_| silent())?.map_err(at)?;
            Ok(())
        })
    }

    /// Removes an object. One that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        let removed = self.wait(async {
            let removed = timeout(WITHIN, self.client.objects.delete(&path)).await;
            removed.map_err(|_| self.silent(name))?.map_err(|error| self.at(name, &error))
        });
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Ends an upload in parts, whose parts are removed. One that does not exist is no error.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn abort(&self, name: &str, id: &str) -> io::Result<()> {
        let (path, id) = (self.path(name)?, id.to_owned());
        let aborted = self.wait(async {
            let aborted = timeout(WITHIN, self.client.parts.abort_multipart(&path, &id)).await;
            aborted.map_err(|_| self.silent(name))?.map_err(|error| self.at(name, &error))
        });
        match aborted {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            aborted => aborted,
        }
    }

    fn wait<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).block_on(work)
    }

    fn path(&self, name: &str) -> io::Result<Path> {
        key(&self.address, name)
    }

    /// The name of an object below the prefix.
    fn below(&self, location: &Path) -> Option<String> {
        let prefix = self.address.prefix.as_str();
        let rest = location.as_ref().strip_prefix(prefix)?;
        let rest = if prefix.is_empty() { rest } else { rest.strip_prefix('/')? };
        Some(rest.to_owned())
    }

    fn at(&self, name: &str, error: &object_store::Error) -> io::Error {
        let kind = match error {
            object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                io::ErrorKind::PermissionDenied
            }
            _ => io::ErrorKind::Other,
        };
        let words = match error {
            object_store::Error::Precondition { .. } => "it was replaced in the meantime; try again".to_owned(),
            error => words(error),
        };
        io::Error::new(kind, format!("{self}/{name}: {words}"))
    }

    fn silent(&self, name: &str) -> io::Error {
        let words = format!("{self}/{name}: no answer within {} s", WITHIN.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, words)
    }
}

#[cfg(test)]
impl Prefix {
    /// A bucket in memory.
    pub(crate) fn in_memory(address: &str) -> Prefix {
        Prefix {
            address: Address::parse(address).unwrap(),
            client: Client::of(object_store::memory::InMemory::new()),
            runtime: Mutex::new(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()),
            blocks: super::object::Blocks::default(),
        }
    }
}

/// Its address.
impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

/// The key of an object in its bucket.
///
/// # Errors
/// When a part of the name cannot be one of a key.
pub(crate) fn key(address: &Address, name: &str) -> io::Result<Path> {
    let slash = if address.prefix.is_empty() || name.is_empty() { "" } else { "/" };
    Path::parse(format!("{}{slash}{name}", address.prefix)).map_err(|error| io::Error::other(error.to_string()))
}

/// What is stored with an object.
pub(crate) fn attributes(sha256: &str) -> Attributes {
    Attributes::from_iter([(Attribute::Metadata(SHA256.into()), sha256.to_owned())])
}
