//! The files of the mirror: blobs by content, and the versions as hard links to them.
//!
//! A version gets its name by one rename, when all its files are there. Its `.files.json` says where it came from; there is no other list.

use crate::machine::durable::{sync_parent, write_atomically};
use crate::model::{ModelName, Version, VersionId};
use crate::source::Told;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The directory of the mirror.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    staged: AtomicU64,
}

/// Where a stored version came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub source: String,
    /// Of the offer.
    pub identity: String,
    pub files: Vec<StoredFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredFile {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

/// Where a stored `model.toml` came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SettingsOrigin {
    pub source: String,
    pub identity: String,
}

/// A file that can be removed when room is needed.
#[derive(Debug)]
struct Spare {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

const MANIFEST: &str = ".files.json";
const SETTINGS_ORIGIN: &str = ".model.toml.json";
/// A larger manifest is not one that this program wrote: ten thousand files with long names.
const MAX_MANIFEST: u64 = 8 << 20;
/// An unfinished download that nobody went on with for so long is removed.
const OLD_PARTIAL: Duration = Duration::from_hours(7 * 24);

impl Manifest {
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }
}

impl Store {
    /// Makes the directories, and removes what a process left behind that was killed.
    ///
    /// # Errors
    /// When they cannot be made.
    pub(super) fn open(root: PathBuf) -> io::Result<Store> {
        let store = Store { root, staged: AtomicU64::new(0) };
        for dir in [store.models(), store.blobs(), store.partials(), store.staging()] {
            std::fs::create_dir_all(dir)?;
        }
        for entry in entries(&store.staging()) {
            std::fs::remove_dir_all(&entry)?;
        }
        for partial in entries(&store.partials()) {
            let age =
                std::fs::metadata(&partial).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > OLD_PARTIAL) {
                std::fs::remove_file(&partial)?;
            }
        }
        Ok(store)
    }

    /// The directory with the versions.
    pub(super) fn models(&self) -> PathBuf {
        models_in(&self.root)
    }

    pub(super) fn blob(&self, sha256: &str) -> PathBuf {
        self.blobs().join(sha256)
    }

    pub(super) fn partial(&self, key: &str) -> PathBuf {
        self.partials().join(key)
    }

    /// The digest of a download that was complete.
    pub(super) fn complete(&self, key: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.partial(&format!("{key}.sha256"))).ok()?;
        (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())).then_some(text)
    }

    /// Remembers it, so that a version of several files goes on where it stopped.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn set_complete(&self, key: &str, sha256: &str) -> io::Result<()> {
        write_atomically(&self.partial(&format!("{key}.sha256")), sha256.as_bytes())
    }

    /// Forgets what is remembered of the downloads of a version that is there.
    pub(super) fn forget_complete(&self, keys: &[String]) {
        for key in keys {
            // What cannot be removed now is removed when it is old.
            let _ = std::fs::remove_file(self.partial(&format!("{key}.sha256")));
        }
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    fn version(&self, id: &VersionId) -> PathBuf {
        self.models().join(id.model.as_str()).join(id.version.to_string())
    }

    /// The stored versions. Directories that are not complete are removed: their versions are read again.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub(super) fn stored(&self) -> io::Result<BTreeMap<VersionId, Manifest>> {
        let mut stored = BTreeMap::new();
        for id in self.directories() {
            match self.manifest(&id) {
                Some(manifest) => drop(stored.insert(id, manifest)),
                None => self.remove(&id)?,
            }
        }
        Ok(stored)
    }

    /// Every version that has a directory, complete or not.
    fn directories(&self) -> BTreeSet<VersionId> {
        let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let mut all = BTreeSet::new();
        for dir in entries(&self.models()) {
            let Some(model) = name(&dir).and_then(|name| name.parse::<ModelName>().ok()) else { continue };
            let versions = entries(&dir).into_iter().filter_map(|path| name(&path)?.parse::<Version>().ok());
            all.extend(versions.map(|version| VersionId { model: model.clone(), version }));
        }
        all
    }

    /// The manifest of a version whose files are all there.
    fn manifest(&self, id: &VersionId) -> Option<Manifest> {
        let dir = self.version(id);
        let path = dir.join(MANIFEST);
        if std::fs::metadata(&path).ok()?.len() > MAX_MANIFEST {
            return None;
        }
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let is_there = |file: &StoredFile| {
            super::offer::check_path(&file.path).is_ok()
                && std::fs::metadata(dir.join(&file.path)).is_ok_and(|meta| meta.is_file() && meta.len() == file.bytes)
        };
        manifest.files.iter().all(is_there).then_some(manifest)
    }

    /// Gives a version its name. Its blobs must be there. What had the name before is removed.
    ///
    /// # Errors
    /// When the disk fails. Nothing has changed then.
    pub(super) fn land(&self, id: &VersionId, manifest: &Manifest) -> io::Result<()> {
        let staged = self.new_staging();
        let landed = self.fill(&staged, manifest).and_then(|()| self.rename_into_place(&staged, id));
        // Where it landed, this is what had the name before.
        let _ = std::fs::remove_dir_all(&staged);
        landed
    }

    fn fill(&self, staged: &Path, manifest: &Manifest) -> io::Result<()> {
        let mut dirs = BTreeSet::from([staged.to_owned()]);
        std::fs::create_dir(staged)?;
        for file in &manifest.files {
            let path = staged.join(&file.path);
            let dir = path.parent().unwrap_or(staged);
            std::fs::create_dir_all(dir)?;
            dirs.extend(dir.ancestors().take_while(|dir| dir.starts_with(staged)).map(Path::to_owned));
            let blob = self.blob(&file.sha256);
            if std::fs::hard_link(&blob, &path).is_err() {
                // Not every file system has hard links, and the number of links to a file is limited.
                std::fs::copy(&blob, &path)?;
                File::open(&path)?.sync_all()?;
            }
        }
        let mut file = File::create_new(staged.join(MANIFEST))?;
        file.write_all(&serde_json::to_vec(manifest)?)?;
        file.sync_all()?;
        dirs.iter().rev().try_for_each(|dir| File::open(dir)?.sync_all())
    }

    fn rename_into_place(&self, staged: &Path, id: &VersionId) -> io::Result<()> {
        let place = self.version(id);
        let model = place.parent().unwrap_or(&place);
        std::fs::create_dir_all(model)?;
        if place.exists() {
            // Where the file system cannot exchange two names, there is a moment without the version.
            if renameat_with(CWD, staged, CWD, &place, RenameFlags::EXCHANGE).is_err() {
                let old = self.new_staging();
                std::fs::rename(&place, &old)?;
                std::fs::rename(staged, &place)?;
                std::fs::remove_dir_all(old)?;
            }
        } else {
            std::fs::rename(staged, &place)?;
        }
        File::open(model)?.sync_all()?;
        sync_parent(model)
    }

    fn new_staging(&self) -> PathBuf {
        self.staging().join(self.staged.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Calls `work` with a new directory, which is removed afterwards.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn with_staging<T>(&self, work: impl FnOnce(&Path) -> T) -> io::Result<T> {
        let dir = self.new_staging();
        std::fs::create_dir(&dir)?;
        let done = work(&dir);
        std::fs::remove_dir_all(&dir)?;
        Ok(done)
    }

    /// Makes a synced file a blob. Returns its digest and its size.
    ///
    /// # Errors
    /// When it cannot be read or renamed.
    pub(super) fn adopt(&self, path: &Path) -> io::Result<(String, u64)> {
        let mut hasher = Sha256::new();
        let bytes = io::copy(&mut File::open(path)?, &mut hasher)?;
        let sha256 = format!("{:x}", hasher.finalize());
        let blob = self.blob(&sha256);
        if !blob.exists() {
            std::fs::rename(path, &blob)?;
            sync_parent(&blob)?;
        }
        Ok((sha256, bytes))
    }

    /// Removes a version, complete or not. It loses its name first.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(super) fn remove(&self, id: &VersionId) -> io::Result<()> {
        let place = self.version(id);
        let staged = self.new_staging();
        match std::fs::rename(&place, &staged) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        // Fails when other versions or settings are there.
        let _ = place.parent().map(std::fs::remove_dir);
        std::fs::remove_dir_all(staged)
    }

    /// Says why a version is not there, or what to know about one that is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn tell(&self, id: &VersionId, told: Option<&Told>) -> io::Result<()> {
        let dir = self.version(id);
        if told.is_some() {
            std::fs::create_dir_all(&dir)?;
        } else if !dir.exists() {
            return Ok(());
        }
        Told::write(told, &dir).map(drop)
    }

    /// The versions that are not there and of which something is said.
    pub(super) fn announced(&self) -> BTreeSet<VersionId> {
        let mut all = self.directories();
        all.retain(|id| !self.version(id).join(MANIFEST).exists());
        all
    }

    // === model.toml ===

    /// Where the `model.toml` files came from.
    pub(super) fn settings(&self) -> BTreeMap<ModelName, SettingsOrigin> {
        let read = |dir: PathBuf| {
            let model: ModelName = dir.file_name()?.to_str()?.parse().ok()?;
            let origin = serde_json::from_slice(&std::fs::read(dir.join(SETTINGS_ORIGIN)).ok()?).ok()?;
            Some((model, origin))
        };
        entries(&self.models()).into_iter().filter_map(read).collect()
    }

    /// # Errors
    /// When a file cannot be written.
    pub(super) fn put_settings(&self, model: &ModelName, text: &[u8], origin: &SettingsOrigin) -> io::Result<()> {
        let dir = self.models().join(model.as_str());
        std::fs::create_dir_all(&dir)?;
        write_atomically(&dir.join("model.toml"), text)?;
        write_atomically(&dir.join(SETTINGS_ORIGIN), &serde_json::to_vec(origin)?)
    }

    /// # Errors
    /// When a file cannot be removed.
    pub(super) fn remove_settings(&self, model: &ModelName) -> io::Result<()> {
        let dir = self.models().join(model.as_str());
        for name in ["model.toml", SETTINGS_ORIGIN] {
            match std::fs::remove_file(dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        // Fails when there are versions.
        let _ = std::fs::remove_dir(&dir);
        Ok(())
    }

    // === room ===

    /// The bytes of all files: blobs, and downloads that are not complete.
    pub(super) fn used(&self) -> u64 {
        let sizes = |dir: &Path| {
            let sizes = entries(dir).into_iter().filter_map(|path| std::fs::metadata(path).ok()).map(|meta| meta.len());
            sizes.fold(0, u64::saturating_add)
        };
        sizes(&self.blobs()).saturating_add(sizes(&self.partials()))
    }

    /// Removes files that nothing uses until `bytes` more fit under `limit`, the ones not used for longest first. `keep` are blobs and downloads that are in use.
    /// Returns how many bytes fit.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(super) fn make_room(&self, bytes: u64, limit: u64, keep: &BTreeSet<String>) -> io::Result<u64> {
        let mut used = self.used();
        if used.saturating_add(bytes) > limit {
            let mut spare = self.spare(keep);
            spare.sort_by_key(|spare| spare.used);
            for Spare { path, bytes: freed, .. } in spare {
                if used.saturating_add(bytes) <= limit {
                    break;
                }
                std::fs::remove_file(path)?;
                used = used.saturating_sub(freed);
            }
        }
        Ok(limit.saturating_sub(used))
    }

    fn spare(&self, keep: &BTreeSet<String>) -> Vec<Spare> {
        let partials = entries(&self.partials());
        entries(&self.blobs())
            .into_iter()
            .chain(partials)
            .filter_map(|path| {
                let meta = std::fs::metadata(&path).ok()?;
                let is_kept = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| keep.contains(name));
                // A version links to the others.
                let is_spare = meta.is_file() && meta.nlink() == 1 && !is_kept;
                is_spare.then(|| Spare {
                    bytes: meta.len(),
                    used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    path,
                })
            })
            .collect()
    }
}

/// The directory with the versions, for the one who watches it.
pub(super) fn models_in(root: &Path) -> PathBuf {
    root.join("models")
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
