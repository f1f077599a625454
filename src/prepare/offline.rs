//! A version taken up without a server, for replay and reproduction: loaded and run, not verified, not warmed.

use super::Loader;
use super::bring_up;
use super::check;
use crate::backend::VersionFiles;
use crate::execute::Runner;
use crate::model::{ModelName, Version};
use std::io;
use std::path::{Path, PathBuf};

/// A version that runs on whichever thread asks it to.
#[derive(Debug)]
pub struct Offline {
    pub runner: Runner,
    /// Of `model.onnx`, lower-case hex.
    pub sha256: String,
    /// `[shadow]` of `model.toml`: how far a number may be from the other side's.
    pub rtol: Option<f64>,
    pub atol: Option<f64>,
}

/// Loads the version in a directory, with the engine that the `model.toml` beside it asks for.
///
/// # Errors
/// Words, when it cannot be read, the `model.toml` is wrong, or the engine does not load it.
pub fn offline(engines: &dyn Loader, dir: &Path) -> Result<Offline, String> {
    let named = |words: String| format!("{}: {words}", dir.display());
    let settings = check::settings(dir).map_err(named)?;
    let sha256 = sha256_of_version(dir).map_err(|e| named(format!("cannot read {}: {e}", VersionFiles::MODEL)))?;
    let model = engines.load(settings.engine, &VersionFiles { dir: dir.to_owned() });
    let model = model.map_err(|e| named(e.to_string()))?;
    Ok(Offline { runner: Runner::new(model), sha256, rtol: settings.shadow_rtol, atol: settings.shadow_atol })
}

/// The sha256 of a version's `model.onnx`, lower-case hex.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of_version(dir: &Path) -> io::Result<String> {
    bring_up::sha256_of(&dir.join(VersionFiles::MODEL))
}

/// Where a version's files lie.
#[must_use]
pub fn version_dir(models: &Path, model: &ModelName, version: Version) -> PathBuf {
    models.join(model.as_str()).join(version.to_string())
}

/// The versions of a model that are there, in order, and where.
///
/// # Errors
/// When the model's directory cannot be read.
pub fn versions_of(models: &Path, model: &ModelName) -> io::Result<Vec<(Version, PathBuf)>> {
    check::numbered(&models.join(model.as_str()))
}
