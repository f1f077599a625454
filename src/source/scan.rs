//! The models directory, looked at: which versions are there, and a fingerprint of each one's files.
//!
//! Nothing here remembers or decides; `watch.rs` holds what was seen before against what is seen now.

use crate::backend::VersionFiles;
use crate::model::{ModelName, Version};
use std::collections::BTreeMap;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::Xxh3Default;

/// What tells one state of a version's files from another without reading them: names, sizes and times of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    digest: u128,
    /// Together, in bytes.
    pub bytes: u64,
    /// The newest time of change of any file; the status time, which a copy cannot set back as it can the other.
    pub changed: SystemTime,
}

/// A version's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub fingerprint: Fingerprint,
    /// Whether `model.onnx` is there.
    pub has_model: bool,
    /// Whether its files have been still for long enough to be read; set by whoever watches.
    pub still: bool,
    /// Why its files cannot be listed, where they cannot.
    pub trouble: Option<String>,
}

/// A model's directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundModel {
    /// The text of `model.toml`, where there is one; or why it cannot be read.
    pub settings: Option<Result<Arc<str>, String>>,
    pub versions: BTreeMap<Version, Found>,
    /// Directories whose names are not versions.
    pub strangers: Vec<PathBuf>,
}

/// The models directory.
#[derive(Debug, Default)]
pub struct FoundRoot {
    pub models: Vec<ModelName>,
    /// Directories whose names are not model names.
    pub strangers: Vec<PathBuf>,
}

/// Directories whose names begin so are nobody's: versions being pushed, `.git`, what volumes keep their data in.
const HIDDEN: char = '.';
/// More files, or deeper ones, are no version of a model.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 8;
/// A longer `model.toml` is not read.
const MAX_SETTINGS: u64 = 1 << 20;

/// Lists the models.
///
/// # Errors
/// When the directory cannot be read.
pub fn look_at_root(root: &Path) -> io::Result<FoundRoot> {
    let mut found = FoundRoot::default();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let Some(name) = visible_directory(&entry) else { continue };
        match name.parse::<ModelName>() {
            Ok(name) => found.models.push(name),
            Err(_) => found.strangers.push(entry.path()),
        }
    }
    Ok(found)
}

/// Looks at one model. `None` when its directory is not there.
///
/// # Errors
/// When it cannot be read.
pub fn look_at_model(root: &Path, model: &ModelName) -> io::Result<Option<FoundModel>> {
    let dir = root.join(model.as_str());
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut found = FoundModel { settings: read_settings(&dir.join("model.toml")), ..FoundModel::default() };
    for entry in entries {
        let entry = entry?;
        let Some(name) = visible_directory(&entry) else { continue };
        match name.parse::<Version>() {
            Ok(version) => drop(found.versions.insert(version, look_at_version(&entry.path()))),
            Err(_) => found.strangers.push(entry.path()),
        }
    }
    found.strangers.sort();
    Ok(Some(found))
}

/// Looks at one version's directory.
#[must_use]
pub fn look_at_version(dir: &Path) -> Found {
    let mut files = Vec::new();
    let listed = list(dir, "", 0, &mut files);
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hasher = Xxh3Default::new();
    let mut fingerprint = Fingerprint { digest: 0, bytes: 0, changed: SystemTime::UNIX_EPOCH };
    for (name, meta) in &files {
        hasher.update(name.as_bytes());
        for number in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&meta.size().to_le_bytes());
        fingerprint.bytes = fingerprint.bytes.saturating_add(meta.size());
        fingerprint.changed = fingerprint.changed.max(changed(meta));
    }
    fingerprint.digest = hasher.digest128();
    let has_model = files.iter().any(|(name, _)| name == VersionFiles::MODEL);
    Found { fingerprint, has_model, still: false, trouble: listed.err().map(|e| format!("cannot list its files: {e}")) }
}

/// The version's files that make up the artifact, relative to `dir`, in order: all but what stands beside it to check and
/// describe it.
///
/// # Errors
/// When they cannot be listed.
pub fn artifact_files(dir: &Path) -> io::Result<Vec<String>> {
    const BESIDE: [&str; 3] = ["golden.json", "warmup.json", "version.toml"];
    let mut files = Vec::new();
    list(dir, "", 0, &mut files)?;
    let mut names: Vec<String> = files.into_iter().map(|(name, _)| name).collect();
    names.retain(|name| !BESIDE.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

fn visible_directory(entry: &DirEntry) -> Option<String> {
    let name = entry.file_name().to_string_lossy().into_owned();
    // Links to directories count: volumes are mounted so. Names are checked, so that none leads out of its parent.
    let is_directory = || std::fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir());
    (!name.starts_with(HIDDEN) && is_directory()).then_some(name)
}

fn list(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<(String, Metadata)>) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("directories lie more than {MAX_DEPTH} deep")));
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(HIDDEN) {
            continue;
        }
        // Follows links, and a file may go while it is looked at: then it is not there.
        let meta = match std::fs::metadata(entry.path()) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let path = format!("{prefix}{name}");
        if meta.is_dir() {
            list(&entry.path(), &format!("{path}/"), depth + 1, files)?;
        } else {
            files.push((path, meta));
        }
        if files.len() > MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files")));
        }
    }
    Ok(())
}

fn changed(meta: &Metadata) -> SystemTime {
    let seconds = u64::try_from(meta.ctime()).unwrap_or_default();
    let nanos = u32::try_from(meta.ctime_nsec()).unwrap_or_default();
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn read_settings(path: &Path) -> Option<Result<Arc<str>, String>> {
    let read = || -> io::Result<Arc<str>> {
        if std::fs::metadata(path)?.len() > MAX_SETTINGS {
            return Err(io::Error::other(format!("longer than {MAX_SETTINGS} bytes")));
        }
        Ok(std::fs::read_to_string(path)?.into())
    };
    match read() {
        Ok(text) => Some(Ok(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => Some(Err(format!("cannot read model.toml: {e}"))),
    }
}
