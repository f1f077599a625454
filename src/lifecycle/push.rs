//! A version that an operator pushes: it lands whole or not at all.
//!
//! The order: write and sync a staging directory, rename it to the version's name, sync the parent directory, write the audit event.
//! A push that is refused, or fails before the rename, leaves nothing behind.

use super::handle::Actor;
use super::model_record::conflict;
use super::shared_push::PushReply;
use crate::backend::{EngineChoice, EngineOptions, LoadError, VersionFiles};
use crate::marks::{Kind, VersionMark};
use crate::model::{Code, Failure, Version, VersionId};
use crate::prepare::{Loader, SIGNATURE_FILE, TrustedKeys, artifact_digests};
use crate::source;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file, or a directory of files, that an operator wants to add as a version.
#[derive(Debug)]
pub(super) struct Push {
    /// With a number that was free when the push arrived, where the operator named none.
    pub id: VersionId,
    /// Whether the operator named no number. The version then gets the next free one when it lands.
    pub next_free: bool,
    pub root: PathBuf,
    /// Moved or removed, whatever the result is.
    pub file: PathBuf,
    pub bytes: u64,
    pub engine: EngineChoice,
    pub engine_options: Arc<EngineOptions>,
    /// The content of its `model.sig`.
    pub signature: Option<String>,
    /// It must be signed by one of these, where there are any.
    pub trusted_keys: TrustedKeys,
    /// Whether an engine loads it first. Not where it does not fit into the memory budget.
    pub try_it: bool,
    pub actor: Actor,
    /// `None` while a thread works on it: the manager then keeps the reply, to answer when that takes too long.
    pub reply: Option<PushReply>,
}

/// A version's directory under a hidden name. Removed unless it lands.
#[derive(Debug)]
pub(super) struct Staged {
    dir: PathBuf,
    pub place: PathBuf,
    landed: bool,
}

/// A version that has its name.
#[derive(Debug)]
pub(super) struct Landed {
    pub place: PathBuf,
    /// The model's directory was made for it.
    new_model: bool,
    /// Why the directory could not be synced. The version is there, but a power loss may remove it.
    pub not_synced: Option<io::Error>,
}

impl Push {
    /// Moves the file into a staging directory, syncs it, and checks that it is a model.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when no engine can load it, `CONFLICT` when its directory is not in the models directory, `INTERNAL` when
    /// the disk fails.
    pub(super) fn stage(&self, engines: &dyn Loader) -> Result<Staged, Failure> {
        let staged = self.move_to_staging().inspect_err(|_| {
            // It may have been moved already.
            remove(&self.file);
        })?;
        // Before any engine reads the file.
        let digests = if self.trusted_keys.is_empty() {
            Vec::new()
        } else {
            artifact_digests(&staged.dir).map_err(|e| self.io(&e))?
        };
        self.trusted_keys
            .check(&staged.dir, &digests)
            .map_err(|why| Failure::new(Code::InvalidRequest, format!("the file is not pushed: {why}")))?;
        if self.try_it {
            let files = VersionFiles { dir: staged.dir.clone(), options: Arc::clone(&self.engine_options) };
            let mark = VersionMark::register(&self.id.model, self.id.version, "");
            let _inside = mark.enter(Kind::Load);
            match engines.load(self.engine, &files, None) {
                Ok(model) => drop(model),
                Err(LoadError::Io { what, source }) => {
                    return Err(Failure::new(Code::Internal, "the file could not be read back")
                        .with_internal(format!("push of {}: cannot read {what}: {source}", self.id)));
                }
                Err(error) => {
                    let words = format!("the file is not a model that can be served: {error}");
                    return Err(Failure::new(Code::InvalidRequest, words));
                }
            }
        }
        Ok(staged)
    }

    fn move_to_staging(&self) -> Result<Staged, Failure> {
        let model = self.root.join(self.id.model.as_str());
        source::check_link(&self.root, &model)
            .map_err(|why| conflict(format!("the directory of model {} {why}", self.id.model)))?;
        self.write_staging(&model).map_err(|e| self.io(&e))
    }

    fn io(&self, error: &io::Error) -> Failure {
        Failure::new(Code::Internal, "the file could not be written into the models directory")
            .with_internal(format!("push of {}: {error}", self.id))
    }

    fn write_staging(&self, model: &Path) -> io::Result<Staged> {
        // A model's directory may be a mount of its own, and a rename works only within one file system. The directory of a new
        // model is not made before the version lands, so that a refused push leaves none behind.
        let parent = if model.is_dir() { model } else { self.root.as_path() };
        let dir = parent.join(source::staging_name(self.id.version));
        let place = model.join(self.id.version.to_string());
        if self.file.is_dir() {
            let staged = Staged { dir, place, landed: false };
            match std::fs::rename(&self.file, &staged.dir) {
                Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                    copy_directory(&self.file, &staged.dir)?;
                    std::fs::remove_dir_all(&self.file)?;
                }
                other => other?,
            }
            return self.finish_staging(staged);
        }
        std::fs::create_dir(&dir)?;
        let staged = Staged { dir, place, landed: false };
        let file = staged.dir.join(VersionFiles::MODEL);
        match std::fs::rename(&self.file, &file) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                std::fs::copy(&self.file, &file)?;
                std::fs::remove_file(&self.file)?;
            }
            other => other?,
        }
        File::open(&file)?.sync_all()?;
        self.finish_staging(staged)
    }

    fn finish_staging(&self, staged: Staged) -> io::Result<Staged> {
        if let Some(signature) = &self.signature {
            let mut file = File::create_new(staged.dir.join(SIGNATURE_FILE))?;
            file.write_all(signature.as_bytes())?;
            file.sync_all()?;
        }
        if let Some(parent) = staged.dir.parent() {
            readable_as(parent, &staged.dir)?;
        }
        sync_directory(&staged.dir)?;
        Ok(staged)
    }
}

/// Lets the users read a version, or the directory of a model, that may read the directory in which it is. The server's own files are private
/// ([`crate::machine::keep_files_private`]), and models are not.
fn readable_as(parent: &Path, path: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(parent)?.permissions().mode() & 0o755;
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    set(path, mode | 0o700)?;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => readable_as(path, &entry.path())?,
            kind if kind.is_file() => set(&entry.path(), mode & 0o644 | 0o600)?,
            _ => {}
        }
    }
    Ok(())
}

/// Removes a file or a directory. What cannot be removed now is removed by a later push or at the next start.
pub(super) fn remove(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// The size of a file, or of all files of a directory.
pub(super) fn bytes_of(path: &Path) -> u64 {
    source::look_at_version(path).fingerprint.bytes.max(std::fs::metadata(path).map_or(0, |meta| meta.len()))
}

/// The number after all that the model has, or had under this name: `known`, and the directories in `dir`. A number is not used twice, since records,
/// approvals and the audit trail name versions by it.
///
/// # Errors
/// `CONFLICT` when the largest number is taken.
pub(super) fn next_free(known: impl Iterator<Item = Version>, dir: &Path) -> Result<Version, Failure> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<Version>().ok());
    match known.chain(found).max() {
        None => Ok(Version::FIRST),
        Some(last) => {
            last.next().ok_or_else(|| conflict(format!("version {last} is taken, and no larger number is possible")))
        }
    }
}

/// Copies a directory to another file system, and syncs what it copies.
fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_directory(&path, &copy)?;
        } else {
            std::fs::copy(&path, &copy)?;
            File::open(&copy)?.sync_all()?;
        }
    }
    sync_directory(to)
}

impl Staged {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives the version its name. `sync` makes a directory durable.
    ///
    /// # Errors
    /// When the name exists, or the rename fails. Nothing is left behind then. A failed sync after the rename is no error here: the
    /// version is there, and [`Landed::not_synced`] says so.
    pub(super) fn land(mut self, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<Landed> {
        let place = self.place.clone();
        let model = place.parent().unwrap_or(&place);
        let new_model = match std::fs::create_dir(model) {
            Ok(()) => {
                model.parent().map_or(Ok(()), |root| readable_as(root, model))?;
                true
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(e),
        };
        let renamed = match renameat_with(CWD, &self.dir, CWD, &place, RenameFlags::NOREPLACE) {
            // Not every file system supports this. A plain rename does not replace a directory that has files.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => std::fs::rename(&self.dir, &place),
            other => other.map_err(io::Error::from),
        };
        if let Err(error) = renamed {
            if new_model {
                // Fails when it is no longer empty, and then it has to stay.
                let _ = std::fs::remove_dir(model);
            }
            return Err(error);
        }
        self.landed = true;
        // The parent of the model's directory too, as that directory may be new.
        let synced = sync(model).and_then(|()| model.parent().map_or(Ok(()), sync));
        Ok(Landed { not_synced: synced.err(), new_model, place })
    }
}

impl Landed {
    /// Removes the version again.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(super) fn take_back(&self) -> io::Result<()> {
        std::fs::remove_dir_all(&self.place)?;
        if let Some(model) = self.place.parent().filter(|_| self.new_model) {
            // Fails when it is no longer empty, and then it has to stay.
            let _ = std::fs::remove_dir(model);
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.landed {
            // What cannot be removed now is removed at the next start.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Makes new and renamed entries of a directory durable.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
impl Staged {
    /// A staged version of a new model.
    pub(super) fn fixture(root: &Path, model: &str, version: &str) -> Staged {
        let dir = root.join(".1.tmp-0-0");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(VersionFiles::MODEL), "x").unwrap();
        Staged { dir, place: root.join(model).join(version), landed: false }
    }
}
