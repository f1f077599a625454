//! Versions: their states, what is known about them, and a loaded version in the role it serves in.

use super::breaker::Breaker;
use super::origin::Origin;
use crate::execute::Runner;
use crate::model::{ModelName, Role, Signature, Version};
use crate::profile::Profile;
use crate::telemetry::{ArmMetrics, Unit, VersionMetrics};
use bytestring::ByteString;
use jiff::Timestamp;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// The state of a version, as the admin API spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Pending,
    Loading,
    Verifying,
    Warming,
    Ready,
    Serving,
    Draining,
    Unloaded,
    Failed,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Pending,
        State::Loading,
        State::Verifying,
        State::Warming,
        State::Ready,
        State::Serving,
        State::Draining,
        State::Unloaded,
        State::Failed,
    ];

    /// The state with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.as_str() == name)
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Loading => "loading",
            State::Verifying => "verifying",
            State::Warming => "warming",
            State::Ready => "ready",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Unloaded => "unloaded",
            State::Failed => "failed",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The stage in which a version failed. After `Warm` come the failures of a version that was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Load,
    Verify,
    Warm,
    /// It was ready, and its runs did not end.
    Stuck,
    /// It was ready, and it ended the process.
    Crashed,
}

impl Stage {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Load => "load",
            Stage::Verify => "verify",
            Stage::Warm => "warm",
            Stage::Stuck => "stuck",
            Stage::Crashed => "crashed",
        }
    }
}

/// What is known about a version after it was loaded. Kept after it is unloaded.
#[derive(Debug, Clone)]
pub struct Facts {
    pub signature: Signature,
    /// SHA-256 of `model.onnx`, in lower-case hex.
    pub sha256: String,
    /// `onnxruntime` or `tract`.
    pub engine: &'static str,
    /// The size of the version's files.
    pub bytes: u64,
    pub load: Duration,
    pub verify: Duration,
    pub warm: Duration,
    /// The number of golden cases that were checked.
    pub golden_cases: usize,
    /// The contents of `version.toml` as JSON; `null` where there is none.
    pub metadata: serde_json::Value,
    /// Its files, who signed them, and what its author says about its training.
    pub origin: Origin,
    /// What its columns looked like in training, where there is a `profile.json` that can be used.
    pub profile: Option<Arc<Profile>>,
}

/// How old a version may be, from `model.toml`. Absent: any age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Staleness {
    /// `max_age`: since `trained_at` in `version.toml`.
    pub max_age: Option<Duration>,
    /// `max_data_age`: since the last row of its profile, or of the training data in `version.toml`.
    pub max_data_age: Option<Duration>,
}

/// The limits on requests to a version, read from `model.toml` when the version was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests in flight on this version. One more is refused with `TOO_MANY_REQUESTS`.
    pub max_in_flight: Option<u64>,
    /// Rows of one request. A request with more is refused with `INVALID_TENSOR`.
    pub max_rows: Option<usize>,
    /// Bytes of the tensors of one answer. A larger one is refused with `BODY_TOO_LARGE`.
    pub max_answer: Option<usize>,
}

/// A version in memory.
///
/// The manager holds the last reference while the version drains, so its memory is not freed on a request's thread.
#[derive(Debug)]
pub struct Loaded {
    pub model: ModelName,
    pub version: Version,
    pub runner: Arc<Runner>,
    pub metrics: Arc<VersionMetrics>,
    pub facts: Arc<Facts>,
    pub limits: Limits,
    /// Refuses requests while its engine fails.
    pub breaker: Breaker,
}

/// Which version answers a request, in which role and arm. It does not keep the version loaded, so work that is done after the
/// answer may hold it.
#[derive(Debug)]
pub struct Identity {
    pub model: ModelName,
    pub version: Version,
    pub role: Role,
    /// The arm's name; `rule`, `pinned` or `label` where the split did not decide.
    pub arm: ByteString,
    pub facts: Arc<Facts>,
}

/// A loaded version in one role and arm: the result of routing. Holding it keeps the version loaded.
#[derive(Debug)]
pub struct Served {
    pub loaded: Arc<Loaded>,
    pub identity: Arc<Identity>,
    /// The version as text, for headers and answers.
    pub version_text: ByteString,
    pub metrics: ArmMetrics,
}

impl Served {
    #[must_use]
    pub fn new(loaded: Arc<Loaded>, role: Role, arm: &str) -> Arc<Served> {
        Served::with_metrics(ArmMetrics::new(Arc::clone(&loaded.metrics), arm), loaded, role, arm)
    }

    /// An arm of a split. It counts its requests since this revision of the document, and with `Unit::Key` its sticky keys.
    pub(super) fn on_arm(loaded: Arc<Loaded>, arm: &str, revision: u64, unit: Unit) -> Arc<Served> {
        let metrics = ArmMetrics::of_revision(Arc::clone(&loaded.metrics), arm, revision, unit);
        Served::with_metrics(metrics, loaded, Role::Primary, arm)
    }

    fn with_metrics(metrics: ArmMetrics, loaded: Arc<Loaded>, role: Role, arm: &str) -> Arc<Served> {
        let Loaded { model, version, facts, .. } = &*loaded;
        let identity =
            Identity { model: model.clone(), version: *version, role, arm: arm.into(), facts: Arc::clone(facts) };
        Arc::new(Served { identity: Arc::new(identity), version_text: version.to_string().into(), metrics, loaded })
    }

    #[must_use]
    pub fn role(&self) -> Role {
        self.identity.role
    }

    #[must_use]
    pub fn arm(&self) -> &ByteString {
        &self.identity.arm
    }
}

/// A loaded shadow and the share of requests that are copied to it.
#[derive(Debug)]
pub struct ShadowRoute {
    /// Above 0 and at most 1.
    pub sample: f64,
    pub served: Arc<Served>,
}

/// When a model was retired, by whom and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    pub at: Timestamp,
    pub by: String,
    pub reason: String,
}

/// The status of one version, for operators.
#[derive(Debug, Clone)]
pub struct VersionStatus {
    pub version: Version,
    pub state: State,
    /// The stage that failed; present where `state` is failed.
    pub stage: Option<Stage>,
    /// Why the version failed, or why it is pending or unloaded.
    pub reason: Option<String>,
    /// Warnings that do not stop the version: for example a generated warm-up that was refused, or files that changed on disk.
    pub notes: Vec<String>,
    pub facts: Option<Arc<Facts>>,
    /// Present in the states ready and serving, and in no other.
    pub loaded: Option<Arc<Loaded>>,
}
