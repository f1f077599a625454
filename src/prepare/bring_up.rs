//! Bringing a version up: load, verify, warm. On a background thread, and without a look at anything but its files.

use super::Loader;
use super::batchability;
use super::verify::{self, About};
use super::warm;
use crate::backend::{EngineChoice, VersionFiles};
use crate::execute::Runner;
use crate::model::VersionId;
use crate::model_settings::ExecutionSettings;
use crate::registry::{Facts, Limits, Loaded, Stage, State};
use crate::source::{Fingerprint, artifact_files, look_at_version};
use crate::telemetry::{Telemetry, VersionMetrics};
use sha2::{Digest as _, Sha256};
use std::cell::Cell;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A version to bring up.
#[derive(Debug)]
pub struct Job {
    pub id: VersionId,
    pub files: VersionFiles,
    /// The files as they were when it was decided to load them.
    pub fingerprint: Fingerprint,
    pub engine: EngineChoice,
    pub limits: Limits,
    pub execution: ExecutionSettings,
    /// What `model.toml` says about all versions.
    pub about: serde_json::Map<String, serde_json::Value>,
}

/// How it went.
#[derive(Debug)]
pub enum Outcome {
    Up(Box<Up>),
    /// The files changed while they were read: whatever was found is of no use.
    Changed,
    Failed(Trouble),
}

/// A version that is ready.
#[derive(Debug)]
pub struct Up {
    pub loaded: Arc<Loaded>,
    pub digests: Digests,
    /// Remarks that stop nothing.
    pub note: Option<String>,
}

/// Why a version is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub stage: Stage,
    pub reason: String,
    /// Whether the same files may come ready another time: true for what the disk or the network did.
    pub again: bool,
}

/// The sha256 of each of the artifact's files, by name in order: lower-case hex.
pub type Digests = Vec<(String, String)>;

/// Brings a version up; `say` is told each state it comes to on the way. Never panics.
pub fn bring_up(job: &Job, engines: &dyn Loader, telemetry: &Telemetry, say: &dyn Fn(State)) -> Outcome {
    let stage = Cell::new(Stage::Load);
    let tell = |state| {
        stage.set(if state == State::Verifying { Stage::Verify } else { Stage::Warm });
        say(state);
    };
    // Unwind safety: what a panic passed through is dropped on the way, and nothing outlives the call but atomics that count.
    let result = catch_unwind(AssertUnwindSafe(|| try_to(job, engines, telemetry, &tell)));
    let now = look_at_version(&job.files.dir);
    if now.fingerprint != job.fingerprint && now.trouble.is_none() {
        return Outcome::Changed;
    }
    match result {
        Ok(Ok(up)) => Outcome::Up(Box::new(up)),
        Ok(Err(trouble)) => Outcome::Failed(trouble),
        Err(panic) => {
            let reason = format!("panicked: {}", crate::model::panic_message(&*panic));
            Outcome::Failed(Trouble { stage: stage.get(), reason, again: false })
        }
    }
}

fn try_to(job: &Job, engines: &dyn Loader, telemetry: &Telemetry, tell: &dyn Fn(State)) -> Result<Up, Trouble> {
    let begun = Instant::now();
    let digests = digest(&job.files.dir).map_err(|e| Trouble::io(Stage::Load, "read its files", &e))?;
    let sha256 = digests.iter().find(|(name, _)| name == VersionFiles::MODEL).map(|(_, d)| d.clone());
    let sha256 = sha256.unwrap_or_default();
    let model = engines.load(job.engine, &job.files).map_err(|error| {
        let again = error.is_worth_retrying();
        let mut reason = error.to_string();
        // A file that arrived damaged fails here first; that it is damaged helps more than what the engine made of it.
        if let Ok(About { sha256: Some(expected), .. }) = verify::about(&job.files.dir)
            && expected != sha256
        {
            let _ = write!(reason, "; its sha256 is {sha256}, where version.toml says {expected}");
        }
        Trouble { stage: Stage::Load, reason, again }
    })?;
    let runner = Runner::new(model);
    let load = begun.elapsed();

    tell(State::Verifying);
    let begun = Instant::now();
    let about = verify::about(&job.files.dir)?;
    let golden_cases = verify::verify(&job.files.dir, &about, &sha256, &runner)?;
    let batching = batchability::verdict(&job.files.dir, &runner, job.execution.batching);
    let runner = Arc::new(runner.with_batching(batching).with_place(job.execution.place));
    let verify = begun.elapsed();

    tell(State::Warming);
    let begun = Instant::now();
    let note = warm::warm(&job.files.dir, &runner)?;
    let remarks: Vec<String> = [about.remark, note].into_iter().flatten().collect();
    let note = (!remarks.is_empty()).then(|| remarks.join("; "));
    let warm = begun.elapsed();

    let bytes = job.fingerprint.bytes;
    let VersionId { model, version } = job.id.clone();
    let metrics = VersionMetrics::new(telemetry.scope(), model.clone(), version);
    metrics.bytes(bytes);
    let facts = Arc::new(Facts {
        signature: runner.signature().clone(),
        sha256,
        engine: runner.engine(),
        bytes,
        load,
        verify,
        warm,
        golden_cases,
        metadata: metadata(about.metadata, &job.about),
    });
    Ok(Up { loaded: Arc::new(Loaded { model, version, runner, metrics, facts, limits: job.limits }), digests, note })
}

/// `version.toml` as it was written; what `model.toml` says about every version is beside it, under that file's name.
fn metadata(version: serde_json::Value, model: &serde_json::Map<String, serde_json::Value>) -> serde_json::Value {
    match version {
        version if model.is_empty() => version,
        serde_json::Value::Object(mut members) => {
            members.insert("model.toml".to_owned(), model.clone().into());
            members.into()
        }
        _ => serde_json::json!({ "model.toml": model }),
    }
}

/// Hashes the artifact's files.
///
/// # Errors
/// When one cannot be read.
pub fn digest(dir: &Path) -> io::Result<Digests> {
    let one = |name: String| sha256_of(&dir.join(&name)).map(|d| (name, d));
    artifact_files(dir)?.into_iter().map(one).collect()
}

pub(super) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(hasher.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

impl Trouble {
    /// The same files give the same answer.
    #[must_use]
    pub fn final_(stage: Stage, reason: impl Into<String>) -> Trouble {
        Trouble { stage, reason: reason.into(), again: false }
    }

    /// The disk or the network failed: worth another try.
    #[must_use]
    pub fn io(stage: Stage, doing: &str, error: &io::Error) -> Trouble {
        Trouble { stage, reason: format!("cannot {doing}: {error}"), again: true }
    }
}

/// How long to wait after so many failures in a row: 1 s, 2 s, 4 s, … 60 s.
#[must_use]
pub fn backoff(attempts: u32) -> Duration {
    Duration::from_secs(60.min(1 << attempts.saturating_sub(1).min(6)))
}
