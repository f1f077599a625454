//! `sluicegate check`: tries versions on every engine, without a server.

use super::Loader;
use super::batchability;
use super::digest::artifact_digests;
use super::files;
use super::row_outputs;
use super::signed::SIGNATURE_FILE;
use super::verify;
use super::version_toml::VersionToml;
use super::warm;
use crate::backend::{EngineChoice, VersionFiles};
use crate::execute::Runner;
use crate::model::{ModelName, Version};
use crate::model_settings::ModelSettings;
use crate::source;
use serde::Serialize;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// All versions at a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    pub versions: Vec<VersionReport>,
}

/// One version, or one bare `.onnx` file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VersionReport {
    pub path: String,
    pub sha256: Option<String>,
    /// What is wrong with the `model.toml` beside it. No engine was tried in that case.
    pub settings: Option<String>,
    /// `name DATATYPE [dims]`, according to the first engine that loads the model.
    pub inputs: Vec<String>,
    /// Those that a request may leave out.
    pub optional_inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub engines: Vec<EngineReport>,
}

/// The result of one engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineReport {
    pub engine: &'static str,
    /// The stage and reason of the failure. `None` where the version would become ready on this engine.
    pub failure: Option<String>,
    /// A remark. The version would become ready in spite of it.
    pub note: Option<String>,
    pub load_ms: Option<f64>,
    pub golden_cases: usize,
    /// The smallest share of the elements of an output that agree with the golden answers. `None` without any.
    pub golden_agree: Option<f64>,
    /// Median times in microseconds: of a request of one row, and per row of a request of 8 rows where the model takes rows.
    pub us_one_row: Option<f64>,
    pub us_per_row_of_8: Option<f64>,
    /// Whether requests may run together, and why: `on: …` or `off: …`.
    pub batching: Option<String>,
}

impl VersionReport {
    /// Whether the version would become ready on some engine.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.engines.iter().any(|e| e.failure.is_none())
    }
}

impl CheckReport {
    /// Whether there is a version, and every version would become ready on some engine.
    #[must_use]
    pub fn passes(&self) -> bool {
        !self.versions.is_empty() && self.versions.iter().all(VersionReport::passes)
    }
}

/// Limit for the entries of one directory: a larger one is no models directory.
const MAX_ENTRIES: usize = 100_000;
/// Limit for the files beside a bare `.onnx` file. Any of them may hold its weights.
const MAX_SIBLINGS: usize = 10_000;

/// Checks an `.onnx` file, a version, a model, or a directory of models.
///
/// # Errors
/// When the path cannot be read, or is none of these.
pub fn check(engines: &dyn Loader, path: &Path) -> io::Result<CheckReport> {
    let path = std::fs::canonicalize(path)?;
    let kind = std::fs::metadata(&path)?;
    if kind.is_file() {
        let linked = LinkedDir::around(&path)?;
        let mut report = check_version(engines, &linked.dir);
        report.path = path.display().to_string();
        return Ok(CheckReport { versions: vec![report] });
    }
    if !kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a directory"));
    }
    let dirs = find_versions(&path)?;
    if dirs.is_empty() {
        let message = format!(
            "{} holds no version: expected model.onnx, <version>/model.onnx or <model>/<version>/model.onnx",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    Ok(CheckReport { versions: dirs.iter().map(|dir| check_version(engines, dir)).collect() })
}

/// The versions at a path, sorted: the path itself, its versions, or the versions of its models.
fn find_versions(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.join(VersionFiles::MODEL).exists() {
        return Ok(vec![path.to_owned()]);
    }
    let versions = version_dirs(path)?;
    if !versions.is_empty() {
        return Ok(versions.into_iter().map(|(_, dir)| dir).collect());
    }
    let mut models: Vec<ModelName> = source::look_at_root(path).map_err(|e| at(path, &e))?.models;
    models.sort();
    let mut all = Vec::new();
    for model in models {
        all.extend(version_dirs(&path.join(model.as_str()))?.into_iter().map(|(_, dir)| dir));
        if all.len() > MAX_ENTRIES {
            return Err(too_many(path, "versions", MAX_ENTRIES));
        }
    }
    Ok(all)
}

/// The versions in a model's directory, sorted by number.
pub(super) fn version_dirs(dir: &Path) -> io::Result<Vec<(Version, PathBuf)>> {
    let mut versions: Vec<(Version, PathBuf)> = Vec::new();
    for (count, entry) in std::fs::read_dir(dir).map_err(|e| at(dir, &e))?.enumerate() {
        if count == MAX_ENTRIES {
            return Err(too_many(dir, "entries", MAX_ENTRIES));
        }
        let entry = entry.map_err(|e| at(dir, &e))?;
        let version = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(version) = version.filter(|_| entry.path().is_dir()) {
            versions.push((version, entry.path()));
        }
    }
    versions.sort();
    Ok(versions)
}

/// Adds the path to an error. The kind stays.
fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn too_many(dir: &Path, what: impl Display, limit: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} holds more than {limit} {what}", dir.display()))
}

fn check_version(engines: &dyn Loader, dir: &Path) -> VersionReport {
    let mut report = VersionReport {
        path: dir.display().to_string(),
        sha256: None,
        settings: None,
        inputs: Vec::new(),
        optional_inputs: Vec::new(),
        outputs: Vec::new(),
        engines: Vec::new(),
    };
    let digests = artifact_digests(dir);
    if let Ok(digests) = &digests {
        let model = digests.iter().find(|(name, _)| name == VersionFiles::MODEL);
        report.sha256 = model.map(|(_, sha256)| sha256.clone());
    }
    let settings = match read_model_toml(dir) {
        Ok(settings) => settings,
        Err(complaints) => {
            report.settings = Some(complaints);
            return report;
        }
    };
    for choice in [EngineChoice::OnnxRuntime, EngineChoice::Tract] {
        if settings.engine == EngineChoice::Auto || settings.engine == choice {
            let mut result = EngineReport::new(choice);
            match &digests {
                Ok(_) => check_engine(engines, choice, dir, &settings, &mut report, &mut result),
                Err(error) => result.failure = Some(format!("load: cannot read its files: {error}")),
            }
            report.engines.push(result);
        }
    }
    report
}

/// Reads the `model.toml` beside a version. Returns the defaults where there is none.
pub(super) fn read_model_toml(version: &Path) -> Result<ModelSettings, String> {
    let Some(model) = version.parent() else { return Ok(ModelSettings::default()) };
    match files::read_limited(&model.join("model.toml"), files::MAX_SETTINGS_BYTES) {
        Ok(Some(text)) => {
            let text = String::from_utf8(text).map_err(|_| "model.toml: not UTF-8".to_owned())?;
            ModelSettings::parse("model.toml", &text)
        }
        Ok(None) => Ok(ModelSettings::default()),
        Err(error) => Err(format!("model.toml: {error}")),
    }
}

impl EngineReport {
    fn new(engine: EngineChoice) -> EngineReport {
        EngineReport {
            engine: if engine == EngineChoice::Tract { "tract" } else { "onnxruntime" },
            failure: None,
            note: None,
            load_ms: None,
            golden_cases: 0,
            golden_agree: None,
            us_one_row: None,
            us_per_row_of_8: None,
            batching: None,
        }
    }
}

/// Does what [`bring_up`](fn@super::bring_up) does, on one engine, and times the model.
fn check_engine(
    engines: &dyn Loader,
    choice: EngineChoice,
    dir: &Path,
    settings: &ModelSettings,
    report: &mut VersionReport,
    result: &mut EngineReport,
) {
    let begun = Instant::now();
    let files = VersionFiles { dir: dir.to_owned(), options: Arc::clone(&settings.engine_options) };
    let runner = match engines.load(choice, &files, None) {
        Ok(model) => Runner::new(model),
        Err(error) => {
            result.failure = Some(format!("load: {error}"));
            return;
        }
    };
    result.load_ms = Some(begun.elapsed().as_secs_f64() * 1e3);
    let (runner, correction) = row_outputs::corrected(runner);
    let signature = runner.signature();
    if report.outputs.is_empty() {
        let shown = |specs: &[crate::model::TensorSpec]| specs.iter().map(ToString::to_string).collect();
        report.inputs = shown(signature.inputs());
        report.optional_inputs = shown(signature.optional_inputs());
        report.outputs = shown(signature.outputs());
    }
    let sha256 = report.sha256.as_deref().unwrap_or_default();
    let checked = VersionToml::read(dir)
        .and_then(|version_toml| verify::verify(dir, &version_toml, sha256, &runner))
        .and_then(|golden| warm::warm(dir, &runner).map(|warmed| (golden, warmed.note)));
    match checked {
        Ok((golden, note)) => {
            result.golden_cases = golden.cases;
            result.golden_agree = golden.agreement();
            let notes: Vec<String> = golden.remark().into_iter().chain(correction).chain(note).collect();
            result.note = (!notes.is_empty()).then(|| notes.join("; "));
            let batching = batchability::decide(dir, &runner, settings.execution.batching);
            result.batching = Some(batching.to_string());
        }
        Err(failure) => result.failure = Some(format!("{}: {}", failure.stage.as_str(), failure.reason)),
    }
    result.us_one_row = warm::median_us(&runner, 1);
    if signature.has_rows() {
        result.us_per_row_of_8 = warm::median_us(&runner, 8).map(|us| us / 8.0);
    }
}

/// A temporary directory that looks like a version's: links to a bare `.onnx` file and to the files beside it, which may hold its
/// weights. Removed when dropped.
struct LinkedDir {
    dir: PathBuf,
}

impl LinkedDir {
    fn around(file: &Path) -> io::Result<LinkedDir> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("sluicegate-check-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let linked = LinkedDir { dir: create_new_dir(&std::env::temp_dir().join(name))? };
        std::os::unix::fs::symlink(file, linked.dir.join(VersionFiles::MODEL))?;
        let Some(parent) = file.parent() else { return Ok(linked) };
        for (count, entry) in std::fs::read_dir(parent).map_err(|e| at(parent, &e))?.enumerate() {
            if count == MAX_SIBLINGS {
                return Err(too_many(parent, "entries beside the model", MAX_SIBLINGS));
            }
            let entry = entry.map_err(|e| at(parent, &e))?;
            let target = linked.dir.join(entry.file_name());
            // These would be checked against the model, and may belong to another one.
            let skipped = ["golden.json", "warmup.json", "version.toml", SIGNATURE_FILE, VersionFiles::MODEL];
            if entry.path().is_file() && !skipped.iter().any(|name| entry.file_name() == *name) {
                std::os::unix::fs::symlink(entry.path(), target)?;
            }
        }
        Ok(linked)
    }
}

/// Creates a directory that did not exist. A killed process may have left some behind, so other names are tried too.
fn create_new_dir(path: &Path) -> io::Result<PathBuf> {
    const ATTEMPTS: u32 = 1000;
    let mut attempt = 0;
    loop {
        let dir = path.with_extension(attempt.to_string());
        match std::fs::create_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => attempt += 1,
            created => return created.map(|()| dir),
        }
    }
}

impl Drop for LinkedDir {
    fn drop(&mut self) {
        // A few links left in the temporary directory do no harm.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
