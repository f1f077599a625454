//! Loads a version without a server, for replay and reproduction. It is not verified and not warmed up.

use super::Loader;
use super::check;
use super::digest::model_sha256;
use super::row_outputs;
use crate::backend::VersionFiles;
use crate::columns::ElementNames;
use crate::execute::Runner;
use crate::model::{ModelName, Version};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A version that runs on the calling thread.
#[derive(Debug)]
pub struct OfflineVersion {
    pub runner: Runner,
    /// Of `model.onnx`, in lower-case hex.
    pub sha256: String,
    /// `[shadow] rtol` and `atol` of `model.toml`.
    pub rtol: Option<f64>,
    pub atol: Option<f64>,
    /// The names of elements in `model.toml`.
    pub features: ElementNames,
}

/// The directories with versions of models: the models directory, and what the server keeps of other sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDirs {
    first: PathBuf,
    others: Vec<PathBuf>,
}

/// Loads the version in a directory, with the engine that the `model.toml` beside it chooses.
///
/// # Errors
/// In words, when it cannot be read, the `model.toml` is wrong, or the engine does not load it.
pub fn load_offline(engines: &dyn Loader, dir: &Path) -> Result<OfflineVersion, String> {
    let at_dir = |message: String| format!("{}: {message}", dir.display());
    let settings = check::read_model_toml(dir).map_err(at_dir)?;
    let sha256 = model_sha256(dir).map_err(|e| at_dir(format!("cannot read {}: {e}", VersionFiles::MODEL)))?;
    let files = VersionFiles { dir: dir.to_owned(), options: settings.engine_options };
    let model = engines.load(settings.engine, &files, None);
    let model = model.map_err(|e| at_dir(e.to_string()))?;
    Ok(OfflineVersion {
        runner: Runner::new(model),
        sha256,
        rtol: settings.shadow_rtol,
        atol: settings.shadow_atol,
        features: settings.features,
    })
}

impl OfflineVersion {
    /// The same with a signature that trial runs have corrected: an output that is declared with a fixed first dimension may have one element per row.
    #[must_use]
    pub fn with_corrected_rows(self) -> OfflineVersion {
        OfflineVersion { runner: row_outputs::corrected(self.runner).0, ..self }
    }
}

/// The directory of a version.
#[must_use]
pub fn version_dir(models: &Path, model: &ModelName, version: Version) -> PathBuf {
    models.join(model.as_str()).join(version.to_string())
}

// === impl ModelDirs ===

impl ModelDirs {
    /// `first` has precedence.
    #[must_use]
    pub fn new(first: &Path, others: impl IntoIterator<Item = PathBuf>) -> ModelDirs {
        ModelDirs { first: first.to_owned(), others: others.into_iter().collect() }
    }

    /// The directory of a version: the first one that exists, else where it would be in the first models directory.
    #[must_use]
    pub fn version(&self, model: &ModelName, version: Version) -> PathBuf {
        let found = self.all().map(|dir| version_dir(dir, model, version)).find(|dir| dir.is_dir());
        found.unwrap_or_else(|| version_dir(&self.first, model, version))
    }

    /// The versions of a model, those of the first directory first. What cannot be read has none.
    #[must_use]
    pub fn versions(&self, model: &ModelName) -> Vec<(Version, PathBuf)> {
        self.all().flat_map(|dir| check::version_dirs(&dir.join(model.as_str())).unwrap_or_default()).collect()
    }

    /// The models with a directory.
    #[must_use]
    pub fn models(&self) -> BTreeSet<ModelName> {
        let entries = self.all().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
        entries
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.first).chain(&self.others)
    }
}
