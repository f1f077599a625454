//! Reads the models directory: which versions it holds, and a fingerprint of each version's files.
//!
//! Nothing here has state. `watch.rs` compares one reading with the next.

use super::links::check_link;
use super::told::Told;
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

/// Identifies one state of a version's files without reading their content: a hash of names, sizes and times of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    digest: u128,
    /// The size of all files together.
    pub bytes: u64,
    /// The newest change of any file. This is the status time (ctime), which a copy cannot set back.
    pub changed: SystemTime,
}

/// A version's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub dir: PathBuf,
    pub fingerprint: Fingerprint,
    /// Whether `model.onnx` exists.
    pub has_model: bool,
    /// A model file with another name, where there is no `model.onnx`.
    pub misnamed: Option<String>,
    /// Whether the files have been unchanged for the settle time. Set by `watch.rs`.
    pub still: bool,
    /// Why the files cannot be listed or must not be read.
    pub trouble: Option<String>,
    /// What operators should know about files that can be read.
    pub note: Option<String>,
}

/// A model's directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundModel {
    /// The text of `model.toml`, or why it cannot be read. `None` where there is none.
    pub settings: Option<Result<Arc<str>, String>>,
    pub versions: BTreeMap<Version, Found>,
    /// Directories whose names are not versions, and model files in the wrong place.
    pub ignored: Vec<Ignored>,
}

/// Something in the models directory that is not read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ignored {
    pub path: PathBuf,
    /// What it is, or what would be right. It completes "PATH is ignored: ".
    pub why: String,
}

/// The models directory.
#[derive(Debug, Default)]
pub(crate) struct FoundRoot {
    pub models: Vec<ModelName>,
    /// Directories whose names are not model names, and model files in the wrong place.
    pub ignored: Vec<Ignored>,
}

/// Directories whose names begin with this are skipped: versions being pushed, `.git`, the data directories of volumes.
const HIDDEN: char = '.';
/// A version with more files or deeper directories is refused.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 8;
/// A longer `model.toml` is refused.
const MAX_SETTINGS: u64 = 1 << 20;

/// Lists the models.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn look_at_root(root: &Path) -> io::Result<FoundRoot> {
    let mut found = FoundRoot::default();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let Some(name) = visible_directory(&entry) else {
            found.ignored.extend(misplaced(&entry, |name| {
                let model = name.split('.').next().unwrap_or_default();
                format!(
                    "a model file has to be in the directory of a version: move it to {model}/1/{}",
                    VersionFiles::MODEL
                )
            }));
            continue;
        };
        match name.parse::<ModelName>() {
            Ok(name) => found.models.push(name),
            Err(_) => found.ignored.push(Ignored {
                path: entry.path(),
                why: "not a model name (a letter or digit, then letters, digits, '.', '_' or '-')".to_owned(),
            }),
        }
    }
    Ok(found)
}

/// Reads one model's directory. `None` where it does not exist.
///
/// # Errors
/// When it cannot be read.
pub(super) fn look_at_model(root: &Path, model: &ModelName) -> io::Result<Option<FoundModel>> {
    let dir = root.join(model.as_str());
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e),
    };
    // Versions of a refused directory are listed with the reason, so that operators see why they are not loaded.
    let refused = if is_link(&dir) { check_link(root, &dir).err() } else { None };
    let refused = refused.map(|why| format!("the model's directory {why}"));
    let settings = match &refused {
        Some(why) => Some(Err(format!("cannot read model.toml: {why}"))),
        None => read_settings(root, &dir.join("model.toml")),
    };
    let mut found = FoundModel { settings, ..FoundModel::default() };
    for entry in entries {
        let entry = entry?;
        let Some(name) = visible_directory(&entry) else {
            found.ignored.extend(misplaced(&entry, |_| {
                format!("a model file has to be in the directory of a version: move it to 1/{}", VersionFiles::MODEL)
            }));
            continue;
        };
        match name.parse::<Version>() {
            Ok(version) => {
                let seen = match &refused {
                    Some(why) => Found::refused(entry.path(), why.clone()),
                    None => look_inside(root, &entry.path()),
                };
                found.versions.insert(version, seen);
            }
            Err(_) => found.ignored.push(Ignored {
                path: entry.path(),
                why: "not a version (a positive integer without leading zeros)".to_owned(),
            }),
        }
    }
    found.ignored.sort();
    Ok(Some(found))
}

/// Reads a version's directory in the models directory. Links that leave the models directory are trouble.
fn look_inside(root: &Path, dir: &Path) -> Found {
    if is_link(dir)
        && let Err(why) = check_link(root, dir)
    {
        return Found::refused(dir.to_owned(), format!("the version's directory {why}"));
    }
    look(Some(root), dir)
}

/// Reads one version's directory, which may be anywhere. Links are followed without a check.
#[must_use]
pub(crate) fn look_at_version(dir: &Path) -> Found {
    look(None, dir)
}

fn look(root: Option<&Path>, dir: &Path) -> Found {
    let mut listing = Listing { root, files: Vec::new() };
    let listed = listing.add(dir, "", 0);
    let mut files = listing.files;
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hasher = Xxh3Default::new();
    let mut fingerprint = Fingerprint::EMPTY;
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
    let (waits, note) = Told::read(dir).map_or((None, None), Told::split);
    let trouble = listed.err().map(|e| format!("cannot list its files: {e}")).or(waits);
    let misnamed = files.iter().find(|(name, _)| !has_model && is_model_file(name)).map(|(name, _)| name.clone());
    Found { dir: dir.to_owned(), fingerprint, has_model, misnamed, still: false, trouble, note }
}

/// The files that make up the artifact, relative to `dir`, sorted: all except those that check, describe or sign the version.
///
/// # Errors
/// When they cannot be listed.
pub(crate) fn artifact_files(dir: &Path) -> io::Result<Vec<String>> {
    const NOT_PART: [&str; 4] = ["golden.json", "warmup.json", "version.toml", "model.sig"];
    let mut listing = Listing { root: None, files: Vec::new() };
    listing.add(dir, "", 0)?;
    let mut names: Vec<String> = listing.files.into_iter().map(|(name, _)| name).collect();
    names.retain(|name| !NOT_PART.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

// === impl Fingerprint, Found ===

impl Fingerprint {
    const EMPTY: Fingerprint = Fingerprint { digest: 0, bytes: 0, changed: SystemTime::UNIX_EPOCH };
}

impl Found {
    fn refused(dir: PathBuf, why: String) -> Found {
        let fingerprint = Fingerprint::EMPTY;
        Found { dir, fingerprint, has_model: false, misnamed: None, still: false, trouble: Some(why), note: None }
    }
}

// === impl Listing ===

/// The files under a directory.
struct Listing<'a> {
    /// Links that resolve outside this directory are refused.
    root: Option<&'a Path>,
    /// Paths relative to the directory, with what the system says about each file.
    files: Vec<(String, Metadata)>,
}

impl Listing<'_> {
    fn add(&mut self, dir: &Path, prefix: &str, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("directories are nested more than {MAX_DEPTH} deep")));
        }
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(HIDDEN) {
                continue;
            }
            let path = format!("{prefix}{name}");
            if let Some(root) = self.root
                && entry.file_type()?.is_symlink()
            {
                check_link(root, &entry.path()).map_err(|why| io::Error::other(format!("{path} {why}")))?;
            }
            // Follows links. A file that was just removed is skipped.
            let meta = match std::fs::metadata(entry.path()) {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if meta.is_dir() {
                self.add(&entry.path(), &format!("{path}/"), depth + 1)?;
            } else {
                self.files.push((path, meta));
            }
            if self.files.len() > MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files")));
            }
        }
        Ok(())
    }
}

// === helpers ===

fn visible_directory(entry: &DirEntry) -> Option<String> {
    let name = entry.file_name().to_string_lossy().into_owned();
    // A link to a directory counts: Kubernetes mounts volumes as links.
    let is_directory = || std::fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir());
    (!name.starts_with(HIDDEN) && is_directory()).then_some(name)
}

fn is_model_file(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

/// A model file where only directories belong. `advice` gets its name.
fn misplaced(entry: &DirEntry, advice: impl FnOnce(&str) -> String) -> Option<Ignored> {
    let name = entry.file_name().to_string_lossy().into_owned();
    let is_misplaced = !name.starts_with(HIDDEN) && is_model_file(&name);
    is_misplaced.then(|| Ignored { path: entry.path(), why: advice(&name) })
}

fn is_link(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())
}

fn changed(meta: &Metadata) -> SystemTime {
    let seconds = u64::try_from(meta.ctime()).unwrap_or_default();
    let nanos = u32::try_from(meta.ctime_nsec()).unwrap_or_default();
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn read_settings(root: &Path, path: &Path) -> Option<Result<Arc<str>, String>> {
    let read = || -> io::Result<Arc<str>> {
        let meta = std::fs::metadata(path)?;
        check_link(root, path).map_err(io::Error::other)?;
        if meta.len() > MAX_SETTINGS {
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
