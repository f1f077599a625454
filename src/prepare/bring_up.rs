//! Runs the stages load, verify and warm for one version, from its files alone. It is slow, so it runs on a background thread.

use super::Loader;
use super::batchability;
use super::digest::{Digests, artifact_digests, artifact_sha256};
use super::failure::StageFailure;
use super::limits::{StageClock, TimeLimits};
use super::profile;
use super::repeat;
use super::row_outputs;
use super::signed::TrustedKeys;
use super::verify;
use super::version_toml::VersionToml;
use super::warm::{self, Warmed};
use crate::backend::{EngineChoice, VersionFiles};
use crate::execute::Runner;
use crate::marks::{Kind, VersionMark};
use crate::model::VersionId;
use crate::model_settings::ExecutionSettings;
use crate::registry::{Breaker, Facts, Limits, Loaded, Origin, Stage, State};
use crate::source::{Fingerprint, look_at_version};
use crate::telemetry::{Telemetry, VersionMetrics};
use std::cell::Cell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// A version to bring up.
#[derive(Debug)]
pub struct Job {
    pub id: VersionId,
    pub files: VersionFiles,
    /// The state of the files when the decision to load them was made.
    pub fingerprint: Fingerprint,
    pub engine: EngineChoice,
    pub limits: Limits,
    pub time_limits: TimeLimits,
    pub execution: ExecutionSettings,
    /// A version must be signed by one of these, where there are any.
    pub trusted_keys: TrustedKeys,
    /// Metadata in `model.toml` for all versions.
    pub model_metadata: serde_json::Map<String, serde_json::Value>,
}

/// The result of [`bring_up`].
#[derive(Debug)]
pub enum Outcome {
    Ready(Box<ReadyVersion>),
    /// The files changed while they were read, so the result is worthless.
    FilesChanged,
    Failed(StageFailure),
}

/// A version that is ready to serve.
#[derive(Debug)]
pub struct ReadyVersion {
    pub loaded: Arc<Loaded>,
    pub digests: Digests,
    /// Remarks for operators. The version is ready in spite of them.
    pub note: Option<String>,
}

/// Makes a version ready. Calls `report_state` for each state on the way. Never panics.
pub fn bring_up(job: &Job, engines: &dyn Loader, telemetry: &Telemetry, report_state: &dyn Fn(State)) -> Outcome {
    let stage = Cell::new(Stage::Load);
    let enter = |state| {
        stage.set(if state == State::Verifying { Stage::Verify } else { Stage::Warm });
        report_state(state);
    };
    // Unwind safety: a panic drops everything that was made here. Only atomic counters outlive the call.
    let result = catch_unwind(AssertUnwindSafe(|| run_stages(job, engines, telemetry, &enter)));
    let now = look_at_version(&job.files.dir);
    if now.fingerprint != job.fingerprint && now.trouble.is_none() {
        return Outcome::FilesChanged;
    }
    match result {
        Ok(Ok(ready)) => Outcome::Ready(Box::new(ready)),
        Ok(Err(failure)) => Outcome::Failed(failure),
        Err(panic) => {
            let reason = format!("panicked: {}", crate::model::panic_message(&*panic));
            Outcome::Failed(StageFailure::permanent(stage.get(), reason))
        }
    }
}

fn run_stages(
    job: &Job,
    engines: &dyn Loader,
    telemetry: &Telemetry,
    enter: &dyn Fn(State),
) -> Result<ReadyVersion, StageFailure> {
    let dir = &job.files.dir;
    let start_clock = |stage| StageClock::start(job.time_limits, stage, job.fingerprint.bytes);
    let clock = start_clock(Stage::Load);
    let begun = Instant::now();
    let digests = artifact_digests(dir).map_err(|e| StageFailure::io(Stage::Load, "read its files", &e))?;
    let sha256 = digests.iter().find(|(name, _)| name == VersionFiles::MODEL).map(|(_, d)| d.clone());
    let sha256 = sha256.unwrap_or_default();
    // Before any engine reads the files.
    let signed_by = job.trusted_keys.check(dir, &digests);
    let signed_by = signed_by.map_err(|reason| StageFailure::permanent(Stage::Verify, reason))?;
    let artifact = artifact_sha256(&digests);
    let mark = VersionMark::register(&job.id.model, job.id.version, &artifact);
    let loading = mark.enter(Kind::Load);
    let model = engines.load(job.engine, &job.files, Some(&artifact)).map_err(|error| {
        let retryable = error.is_worth_retrying();
        let mut reason = error.to_string();
        // A damaged file fails here first. The wrong digest explains more than the message of the engine.
        if let Ok(VersionToml { sha256: Some(expected), .. }) = VersionToml::read(dir)
            && expected != sha256
        {
            let _ = write!(reason, "; its sha256 is {sha256}, but version.toml gives {expected}");
        }
        StageFailure { stage: Stage::Load, reason, retryable }
    })?;
    drop(loading);
    let most = job.limits.max_answer.unwrap_or(usize::MAX);
    let runner = Runner::new(model).with_mark(mark.clone()).with_max_answer(most);
    clock.finish()?;
    let load = begun.elapsed();

    enter(State::Verifying);
    let verifying = mark.enter(Kind::Verify);
    let clock = start_clock(Stage::Verify);
    let begun = Instant::now();
    let version_toml = VersionToml::read(dir)?;
    let golden = clock.explain(verify::verify(dir, &version_toml, &sha256, &runner))?;
    let (runner, correction) = row_outputs::corrected(runner);
    let batching = batchability::decide(dir, &runner, job.execution.batching);
    let runner = Arc::new(runner.with_batching(batching).with_placement(job.execution.place));
    let repeats = repeat::remark(&runner);
    clock.finish()?;
    let verify = begun.elapsed();

    drop(verifying);
    enter(State::Warming);
    let warming = mark.enter(Kind::Warm);
    let clock = start_clock(Stage::Warm);
    let begun = Instant::now();
    let Warmed { note, known_good } = clock.explain(warm::warm(dir, &runner))?;
    clock.finish()?;
    drop(warming);
    let (profile, wrong_profile) = profile::read(dir);
    let remarks: Vec<String> = [version_toml.remark, golden.remark(), correction, repeats, note, wrong_profile]
        .into_iter()
        .flatten()
        .map(|remark| shortened(&remark))
        .collect();
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
        golden_cases: golden.cases,
        metadata: metadata(version_toml.metadata, &job.model_metadata),
        origin: Origin { files: digests.clone(), digest: artifact, signed_by, lineage: version_toml.lineage },
        profile,
    });
    Ok(ReadyVersion {
        loaded: Arc::new(Loaded {
            model,
            version,
            runner,
            metrics,
            facts,
            limits: job.limits,
            breaker: Breaker::new(known_good),
        }),
        digests,
        note,
    })
}

/// The content of `version.toml`, with the metadata of `model.toml` under the key `model.toml`.
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

/// A remark may quote a file.
fn shortened(remark: &str) -> String {
    const MOST: usize = 2000;
    match remark.char_indices().nth(MOST) {
        None => remark.to_owned(),
        Some((end, _)) => format!("{}…", &remark[..end]),
    }
}
