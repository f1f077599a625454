//! Loads a version without a server, for replay and reproduction. It is not verified and not warmed up.

use super::Loader;
use super::check;
use super::digest::model_sha256;
use crate::backend::VersionFiles;
use crate::columns::ElementNames;
use crate::execute::Runner;
use crate::model::{ModelName, Version};
use std::io;
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
    /// `feature_names` of `model.toml`: the names of the elements of its only input. Empty without any.
    pub feature_names: Vec<String>,
    /// Names for the elements of tensors, from `model.toml`.
    pub features: ElementNames,
}

/// Loads the version in a directory, with the engine that the `model.toml` beside it chooses.
///
/// # Errors
/// In words, when it cannot be read, the `model.toml` is wrong, or the engine does not load it.
pub fn load_offline(engines: &dyn Loader, dir: &Path) -> Result<OfflineVersion, String> {
    let at_dir = |message: String| format!("{}: {message}", dir.display());
    let settings = check::read_model_toml(dir).map_err(at_dir)?;
    let sha256 = model_sha256(dir).map_err(|e| at_dir(format!("cannot read {}: {e}", VersionFiles::MODEL)))?;
    let model = engines.load(settings.engine, &VersionFiles { dir: dir.to_owned() }, None);
    let model = model.map_err(|e| at_dir(e.to_string()))?;
    Ok(OfflineVersion {
        runner: Runner::new(model),
        sha256,
        rtol: settings.shadow_rtol,
        atol: settings.shadow_atol,
        feature_names: settings.features.of_only_input.clone(),
        features: settings.features,
    })
}

/// The directory of a version.
#[must_use]
pub fn version_dir(models: &Path, model: &ModelName, version: Version) -> PathBuf {
    models.join(model.as_str()).join(version.to_string())
}

/// The versions of a model with their directories, sorted by number.
///
/// # Errors
/// When the model's directory cannot be read.
pub fn versions_of(models: &Path, model: &ModelName) -> io::Result<Vec<(Version, PathBuf)>> {
    check::version_dirs(&models.join(model.as_str()))
}
