//! Downloads one file: goes on where an earlier download stopped, checks what arrived, and gives it the name of its content.

use super::offer::{Place, Source, Trouble};
use super::store::Store;
use crate::machine::durable::sync_parent;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// A complete file in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub sha256: String,
    pub bytes: u64,
}

/// What a download needs beside the source.
pub(super) struct Download<'a> {
    pub store: &'a Store,
    /// The name of the source: two sources do not share a download.
    pub source: &'a str,
    /// The SHA-256 that the file must have, where it is known.
    pub expected: Option<&'a str>,
    /// The most bytes of the file.
    pub most: u64,
    /// Whether to stop.
    pub stopping: &'a dyn Fn() -> bool,
    /// Is told the bytes that an earlier download left.
    pub begins: &'a dyn Fn(u64),
    /// Is told the bytes that arrived.
    pub arrived: &'a dyn Fn(usize),
}

/// The least average rate, in bytes per second. A download that is slower is ended, and goes on in the next round.
const LEAST_RATE: u64 = 64 << 10;
/// The time that a download may take beside that.
const START: Duration = Duration::from_mins(1);
const BUFFER: usize = 1 << 18;

/// The name of a download that is not complete: the same for the same bytes. Two sources do not share a download.
pub(super) fn key(source: &str, place: &Place) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{source:?} {place:?}"));
    if place.sha256.is_none() {
        // What a power cut leaves of a file may be wrong, and only a digest shows it. A killed process loses nothing.
        hasher.update(boot_id());
    }
    format!("{:x}", hasher.finalize())
}

impl Download<'_> {
    /// # Errors
    /// When it does not arrive, is too large, or is not what the source says it is.
    pub(super) fn run(&self, source: &mut dyn Source, place: &Place) -> Result<Blob, Trouble> {
        let key = key(self.source, place);
        let can_resume = place.tag.is_some() || self.expected.is_some();
        let before = if can_resume { self.store.complete(&key) } else { None };
        for sha256 in self.expected.iter().copied().chain(before.as_deref()) {
            if self.expected.is_none_or(|expected| expected == sha256)
                && let Some(blob) = self.known(sha256)?
            {
                return Ok(blob);
            }
        }
        let path = self.store.partial(&key);
        match self.read(source, place, &path, can_resume) {
            Ok((file, blob)) => {
                let blob = self.keep(&file, &path, blob)?;
                self.store.set_complete(&key, &blob.sha256).map_err(|e| disk(&e))?;
                Ok(blob)
            }
            Err(trouble) => {
                if trouble.changed || !can_resume {
                    // What cannot be removed is overwritten by the next download.
                    let _ = std::fs::remove_file(&path);
                }
                Err(trouble)
            }
        }
    }

    /// The file with a digest, where it is stored. It is read once more, because disks err.
    fn known(&self, sha256: &str) -> Result<Option<Blob>, Trouble> {
        let path = self.store.blob(sha256);
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|e| disk(&e))?,
        };
        let mut hasher = Sha256::new();
        let bytes = self.hash(&mut file, &mut hasher)?;
        if format!("{:x}", hasher.finalize()) == *sha256 {
            // Used now. A failure only makes it look older.
            let _ = file.set_modified(SystemTime::now());
            return Ok(Some(Blob { sha256: sha256.to_owned(), bytes }));
        }
        std::fs::remove_file(&path).map_err(|e| disk(&e))?;
        Ok(None)
    }

    fn read(
        &self,
        source: &mut dyn Source,
        place: &Place,
        path: &Path,
        can_resume: bool,
    ) -> Result<(File, Blob), Trouble> {
        let most = place.size.unwrap_or(self.most);
        if most > self.most {
            return Err(Trouble::new(format!("it has {most} bytes, and there is room for {}", self.most)));
        }
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(|e| disk(&e))?;
        let mut hasher = Sha256::new();
        let length = file.metadata().map_err(|e| disk(&e))?.len();
        if !can_resume || length > most {
            file.set_len(0).map_err(|e| disk(&e))?;
        }
        let from = self.hash(&mut file, &mut hasher)?;
        (self.begins)(from);
        let mut bytes = from;
        if place.size.is_none_or(|size| from < size) || from == 0 {
            let until = Instant::now() + START + Duration::from_secs((most - from) / LEAST_RATE);
            let mut sink = |piece: &[u8]| {
                bytes = bytes.saturating_add(piece.len() as u64);
                if (self.stopping)() {
                    return Err(Trouble::new("the server stops"));
                }
                if bytes > most {
                    return Err(Trouble::changed(format!("it is longer than {most} bytes")));
                }
                hasher.update(piece);
                (self.arrived)(piece.len());
                file.write_all(piece).map_err(|e| disk(&e))
            };
            source.read(place, from, until, &mut sink)?;
        }
        if let Some(size) = place.size.filter(|size| *size != bytes) {
            return Err(Trouble::new(format!("it ended after {bytes} of {size} bytes")));
        }
        Ok((file, Blob { sha256: format!("{:x}", hasher.finalize()), bytes }))
    }

    /// Hashes a file from its beginning. Leaves the position at its end.
    fn hash(&self, file: &mut File, hasher: &mut Sha256) -> Result<u64, Trouble> {
        let mut buffer = vec![0; BUFFER];
        let mut bytes = 0;
        file.seek(SeekFrom::Start(0)).map_err(|e| disk(&e))?;
        loop {
            if (self.stopping)() {
                return Err(Trouble::new("the server stops"));
            }
            match file.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(disk(&e)),
            }
        }
    }

    /// Checks the digest, and gives the file its name.
    fn keep(&self, file: &File, path: &Path, blob: Blob) -> Result<Blob, Trouble> {
        if let Some(expected) = self.expected.filter(|expected| *expected != blob.sha256) {
            // It would be wrong each time.
            let _ = std::fs::remove_file(path);
            return Err(Trouble::changed(format!("its SHA-256 is {}, expected {expected}", blob.sha256)));
        }
        let name = self.store.blob(&blob.sha256);
        let kept = file.sync_all().and_then(|()| {
            if name.exists() {
                // Versions link to the one that is there.
                return std::fs::remove_file(path);
            }
            std::fs::rename(path, &name).and_then(|()| sync_parent(&name))
        });
        kept.map(|()| blob).map_err(|e| disk(&e))
    }
}

/// A failure of this machine's disk, in words.
pub(super) fn disk(error: &io::Error) -> Trouble {
    Trouble::new(format!("the data directory cannot be used: {error}"))
}

/// Changes with each start of the machine. Empty where the system does not say.
fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default())
}
