//! A version that comes over the admin plane: it lands whole or not at all.

use super::handle::{Actor, Reply};
use crate::backend::{EngineChoice, LoadError, VersionFiles};
use crate::model::{Code, Failure, VersionId};
use crate::prepare::Loader;
use crate::source;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// A file somebody wants to be a version.
#[derive(Debug)]
pub struct Push {
    pub id: VersionId,
    pub root: PathBuf,
    /// Moved away, whatever becomes of it.
    pub file: PathBuf,
    pub engine: EngineChoice,
    /// Whether an engine is to load it first: not where it does not fit into the memory budget.
    pub try_it: bool,
    pub actor: Actor,
    pub reply: Reply<()>,
}

/// A version's directory under a name that nobody looks at; removed unless it lands.
#[derive(Debug)]
pub struct Staged {
    dir: PathBuf,
    pub place: PathBuf,
    landed: bool,
}

impl Push {
    /// Puts the file beside its place, on the disk, and looks whether it is a model.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when no engine can load it, `CONFLICT` when the version is there, `INTERNAL` when the disk fails.
    pub fn stage(&self, engines: &dyn Loader) -> Result<Staged, Failure> {
        let staged = self.put_aside().map_err(|e| {
            let _ = std::fs::remove_file(&self.file);
            Failure::new(Code::Internal, "the file could not be written into the models directory")
                .with_internal(format!("push of {}: {e}", self.id))
        })?;
        if self.try_it {
            let files = VersionFiles { dir: staged.dir.clone() };
            match engines.load(self.engine, &files) {
                Ok(model) => drop(model),
                Err(LoadError::Io { what, source }) => {
                    return Err(Failure::new(Code::Internal, "the file could not be read back")
                        .with_internal(format!("push of {}: cannot read {what}: {source}", self.id)));
                }
                Err(error) => {
                    let words = format!("the file is no model that can be served: {error}");
                    return Err(Failure::new(Code::InvalidRequest, words));
                }
            }
        }
        Ok(staged)
    }

    fn put_aside(&self) -> io::Result<Staged> {
        let model = self.root.join(self.id.model.as_str());
        std::fs::create_dir_all(&model)?;
        let dir = model.join(source::staging_name(self.id.version));
        std::fs::create_dir(&dir)?;
        let staged = Staged { dir, place: model.join(self.id.version.to_string()), landed: false };
        let file = staged.dir.join(VersionFiles::MODEL);
        match std::fs::rename(&self.file, &file) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                std::fs::copy(&self.file, &file)?;
                std::fs::remove_file(&self.file)?;
            }
            other => other?,
        }
        File::open(&file)?.sync_all()?;
        File::open(&staged.dir)?.sync_all()?;
        Ok(staged)
    }
}

impl Staged {
    /// Gives the version its name.
    ///
    /// # Errors
    /// When there is one of that name, or the disk fails; nothing is there then.
    pub fn land(mut self) -> io::Result<()> {
        match renameat_with(CWD, &self.dir, CWD, &self.place, RenameFlags::NOREPLACE) {
            // Not every file system knows how; there, a directory that holds something is not replaced either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => std::fs::rename(&self.dir, &self.place)?,
            other => other?,
        }
        self.landed = true;
        let model = self.place.parent().unwrap_or(&self.place);
        File::open(model)?.sync_all()?;
        // The model's own directory may be new.
        model.parent().map_or(Ok(()), |root| File::open(root)?.sync_all())
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
