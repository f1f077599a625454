//! What would become of a version, without a server: for `sluicegate check`.

use super::batchability;
use super::bring_up;
use super::verify;
use super::warm;
use crate::backend::{EngineChoice, Engines, VersionFiles};
use crate::execute::Runner;
use crate::model::{ModelName, Version};
use crate::model_settings::ModelSettings;
use crate::source;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Everything that was found at a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    pub versions: Vec<VersionReport>,
}

/// One version, or one bare `.onnx` file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VersionReport {
    pub path: String,
    pub sha256: Option<String>,
    /// What is wrong with the `model.toml` beside it; then no engine was tried.
    pub settings: Option<String>,
    /// `name DATATYPE [dims]`, by the first engine that loads it.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub engines: Vec<EngineReport>,
}

/// What one engine makes of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineReport {
    pub engine: &'static str,
    /// The stage and words it failed with; `None` where the version would come ready on this engine.
    pub failure: Option<String>,
    /// A remark that stops nothing.
    pub note: Option<String>,
    pub load_ms: Option<f64>,
    pub golden_cases: usize,
    /// For a request of one row, and per row of a request of 8, where the model takes rows; medians, in microseconds.
    pub us_one_row: Option<f64>,
    pub us_per_row_of_8: Option<f64>,
    /// Whether requests would run together, and why: `on: …` or `off: …`.
    pub batching: Option<String>,
}

impl VersionReport {
    /// Whether some engine would serve it.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.engines.iter().any(|e| e.failure.is_none())
    }
}

impl CheckReport {
    /// Whether there was something, and each version would be served by some engine.
    #[must_use]
    pub fn passes(&self) -> bool {
        !self.versions.is_empty() && self.versions.iter().all(VersionReport::passes)
    }
}

/// Checks an `.onnx` file, a version, a model, or a directory of models.
///
/// # Errors
/// When the path cannot be read, or is none of these.
pub fn check(engines: &Engines, path: &Path) -> io::Result<CheckReport> {
    let path = std::fs::canonicalize(path)?;
    if path.is_file() {
        let aside = Aside::of(&path)?;
        let mut report = check_version(engines, &aside.dir);
        report.path = path.display().to_string();
        return Ok(CheckReport { versions: vec![report] });
    }
    let dirs = version_dirs(&path)?;
    if dirs.is_empty() {
        let words = format!(
            "{} holds no version: expected model.onnx, <version>/model.onnx or <model>/<version>/model.onnx",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::NotFound, words));
    }
    Ok(CheckReport { versions: dirs.iter().map(|dir| check_version(engines, dir)).collect() })
}

/// The versions at a path: itself, or its versions, or the versions of its models; in order.
fn version_dirs(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.join(VersionFiles::MODEL).exists() {
        return Ok(vec![path.to_owned()]);
    }
    let versions = numbered(path)?;
    if !versions.is_empty() {
        return Ok(versions.into_iter().map(|(_, dir)| dir).collect());
    }
    let mut models: Vec<ModelName> = source::look_at_root(path)?.models;
    models.sort();
    let mut all = Vec::new();
    for model in models {
        all.extend(numbered(&path.join(model.as_str()))?.into_iter().map(|(_, dir)| dir));
    }
    Ok(all)
}

/// The versions in a model's directory, in order.
pub(super) fn numbered(dir: &Path) -> io::Result<Vec<(Version, PathBuf)>> {
    let mut versions: Vec<(Version, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let version = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(version) = version.filter(|_| entry.path().is_dir()) {
            versions.push((version, entry.path()));
        }
    }
    versions.sort();
    Ok(versions)
}

fn check_version(engines: &Engines, dir: &Path) -> VersionReport {
    let digests = bring_up::digest(dir).unwrap_or_default();
    let sha256 = digests.into_iter().find(|(name, _)| name == VersionFiles::MODEL).map(|(_, digest)| digest);
    let mut report = VersionReport {
        path: dir.display().to_string(),
        sha256,
        settings: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        engines: Vec::new(),
    };
    let settings = match settings(dir) {
        Ok(settings) => settings,
        Err(complaints) => {
            report.settings = Some(complaints);
            return report;
        }
    };
    for choice in [EngineChoice::OnnxRuntime, EngineChoice::Tract] {
        if settings.engine == EngineChoice::Auto || settings.engine == choice {
            check_engine(engines, choice, dir, &settings, &mut report);
        }
    }
    report
}

/// What the `model.toml` beside a version says; the defaults where there is none.
pub(super) fn settings(version: &Path) -> Result<ModelSettings, String> {
    match version.parent().map(|model| std::fs::read_to_string(model.join("model.toml"))) {
        Some(Ok(text)) => ModelSettings::parse("model.toml", &text),
        Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => Err(format!("model.toml: {e}")),
        _ => Ok(ModelSettings::default()),
    }
}

fn check_engine(
    engines: &Engines,
    choice: EngineChoice,
    dir: &Path,
    settings: &ModelSettings,
    report: &mut VersionReport,
) {
    let mut found = EngineReport {
        engine: if choice == EngineChoice::Tract { "tract" } else { "onnxruntime" },
        failure: None,
        note: None,
        load_ms: None,
        golden_cases: 0,
        us_one_row: None,
        us_per_row_of_8: None,
        batching: None,
    };
    let begun = Instant::now();
    let runner = match engines.load(choice, &VersionFiles { dir: dir.to_owned() }) {
        Ok(model) => Runner::new(model),
        Err(error) => {
            found.failure = Some(format!("load: {error}"));
            report.engines.push(found);
            return;
        }
    };
    found.load_ms = Some(begun.elapsed().as_secs_f64() * 1e3);
    if report.outputs.is_empty() {
        let shown = |specs: &[crate::model::TensorSpec]| specs.iter().map(ToString::to_string).collect();
        report.inputs = shown(runner.signature().inputs());
        report.outputs = shown(runner.signature().outputs());
    }
    let checked = verify::about(dir)
        .and_then(|about| verify::verify(dir, &about, report.sha256.as_deref().unwrap_or_default(), &runner))
        .and_then(|cases| warm::warm(dir, &runner).map(|note| (cases, note)));
    match checked {
        Ok((cases, note)) => (found.golden_cases, found.note) = (cases, note),
        Err(trouble) => found.failure = Some(format!("{}: {}", trouble.stage.as_str(), trouble.reason)),
    }
    found.batching =
        found.failure.is_none().then(|| batchability::verdict(dir, &runner, settings.execution.batching).to_string());
    found.us_one_row = warm::time(&runner, 1);
    if runner.signature().has_rows() {
        found.us_per_row_of_8 = warm::time(&runner, 8).map(|us| us / 8.0);
    }
    report.engines.push(found);
}

/// A directory that looks like a version's, around a bare file: links to it and to all that lies beside it, as external weights
/// may. Removed when dropped.
struct Aside {
    dir: PathBuf,
}

impl Aside {
    fn of(file: &Path) -> io::Result<Aside> {
        let unique = format!(
            "sluicegate-check-{}-{:x}",
            std::process::id(),
            xxhash_rust::xxh3::xxh3_64(file.as_os_str().as_encoded_bytes())
        );
        let aside = Aside { dir: std::env::temp_dir().join(unique) };
        std::fs::create_dir(&aside.dir)?;
        std::os::unix::fs::symlink(file, aside.dir.join(VersionFiles::MODEL))?;
        for entry in file.parent().map(std::fs::read_dir).into_iter().flatten().flatten().flatten() {
            let target = aside.dir.join(entry.file_name());
            // What a version would be checked against is not what happens to lie beside a bare file.
            let beside = ["golden.json", "warmup.json", "version.toml", VersionFiles::MODEL];
            if entry.path().is_file() && !beside.iter().any(|name| entry.file_name() == *name) {
                std::os::unix::fs::symlink(entry.path(), target)?;
            }
        }
        Ok(aside)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // A few links left in the temporary directory harm nobody.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
