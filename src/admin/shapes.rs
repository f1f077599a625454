//! Shapes that stand in `openapi.rs` alone: of bodies that are read member by member, so that every complaint comes at once, and
//! of other rooms' nouns, which know nothing of that. Tests hold them to what is really read and answered.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// How every error is answered.
#[derive(Serialize, ToSchema)]
pub(super) struct Problem {
    /// One sentence: what was wrong, what was expected, what was found.
    error: String,
    /// Stable; for programs.
    #[schema(example = "CONFLICT")]
    code: String,
    /// Each complaint on its own, where there are several.
    #[schema(required = false)]
    details: Vec<String>,
}

/// What a version is doing.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "the shape of `registry::State`, which a test compares it with")]
pub(super) enum VersionState {
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

/// The stage a version failed in.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "the shape of `registry::Stage`")]
pub(super) enum FailedStage {
    Load,
    Verify,
    Warm,
}

/// Which version answers whom: the first rule that matches, else the split.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficDocument {
    /// At least one arm, with a positive sum of weights.
    split: Vec<TrafficArm>,
    /// Absent: each request on its own.
    #[schema(required = false)]
    sticky_by: TrafficKey,
    /// The first match wins, before the split.
    #[schema(required = false)]
    rules: Vec<TrafficRule>,
    #[schema(required = false)]
    shadows: Vec<TrafficShadow>,
    /// Name to version.
    #[schema(required = false)]
    labels: BTreeMap<String, String>,
    /// Changing it reshuffles who gets which arm; absent: the model's name.
    #[schema(required = false)]
    salt: String,
    /// Kept in history and audit.
    #[schema(required = false)]
    reason: String,
}

/// One side of a split.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficArm {
    version: String,
    /// Relative.
    #[schema(minimum = 0)]
    weight: f64,
    /// Unique within the split; absent, it is the version.
    #[schema(required = false)]
    arm: String,
}

/// What the sticky key is read from.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "the shape of `route::Key`")]
pub(super) enum TrafficKey {
    Header(String),
    Parameter(String),
}

/// Requests whose header equals a text go to a version.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficRule {
    header: String,
    equals: String,
    version: String,
}

/// A version that gets copies and answers nobody.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficShadow {
    version: String,
    /// Above 0 and at most 1, which it is when absent.
    #[schema(required = false, maximum = 1)]
    sample: f64,
}

/// A traffic document to put, with what is said about it and not kept.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficProposal {
    #[serde(flatten)]
    document: TrafficDocument,
    /// Take a version whose signature no longer fits what callers use.
    #[schema(required = false)]
    allow_signature_change: bool,
}

/// What a promote takes.
#[derive(Serialize, ToSchema)]
pub(super) struct PromoteRequest {
    version: String,
    /// Kept in history and audit.
    reason: String,
    /// Answer what would change, and change nothing.
    #[schema(required = false)]
    dry_run: bool,
    /// Take a version whose signature no longer fits what callers use.
    #[schema(required = false)]
    allow_signature_change: bool,
    /// What the version has to show; absent: the gates of model.toml, and `{}`: none.
    #[schema(required = false)]
    gates: GatesRequest,
}

/// What a version has to show before it is promoted.
#[derive(Serialize, ToSchema)]
pub(super) struct GatesRequest {
    /// Of its pairs, as a shadow, with the versions of the split, at least this share agreed.
    #[schema(required = false, minimum = 0, maximum = 1)]
    shadow_agreement: f64,
    /// At least so many pairs were compared; 1000 where only the share is asked for.
    #[schema(required = false, minimum = 1)]
    shadow_pairs: u64,
    /// It has golden answers, which it gave when it was loaded.
    #[schema(required = false)]
    golden: bool,
    /// Its signature is that of the versions that serve, exactly.
    #[schema(required = false)]
    signature: bool,
}

/// A rollout to begin. Only `to` and `reason` are required.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the document alone; `rollout::Plan` reads it")]
pub(super) struct RolloutRequest {
    #[schema(example = "4")]
    to: String,
    /// Percentages that rise; [1,5,25,50,100] where absent.
    steps: Option<Vec<f64>>,
    /// For each step, at least; 10m where absent.
    #[schema(example = "10m")]
    hold: Option<String>,
    /// Of the candidate, in each step, at least; 100 where absent.
    min_requests: Option<u64>,
    /// Before the first step, where `shadow_disagreement` is a guardrail; 1000 where absent.
    min_shadow_pairs: Option<u64>,
    /// The share of requests copied then; 1 where absent.
    shadow_sample: Option<f64>,
    guardrails: Option<GuardrailsRequest>,
    allow_signature_change: Option<bool>,
    reason: String,
}

/// What takes the traffic back. What is absent has its default, and null switches it off.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the document alone; `rollout::Plan` reads it")]
pub(super) struct GuardrailsRequest {
    /// 1.0: the candidate's share of failed requests may be this many times the control's.
    error_rate_ratio: Option<f64>,
    /// 1.0: the same for requests with outputs that are NaN or infinite.
    nonfinite_ratio: Option<f64>,
    /// 1.5: the candidate's 99th percentile may be this many times the control's.
    p99_latency_ratio: Option<f64>,
    /// Off: the share of shadow pairs that may disagree before the first step.
    shadow_disagreement: Option<f64>,
    /// 0.05: the share of rollouts without any difference that are taken back at most.
    false_alarm_rate: Option<f64>,
}

/// What a rollback takes.
#[derive(Serialize, ToSchema)]
pub(super) struct RollbackRequest {
    /// Kept in history and audit.
    reason: String,
}

/// What the repository index takes.
#[derive(Serialize, ToSchema)]
pub(super) struct IndexRequest {
    /// Only what is ready.
    #[schema(required = false)]
    ready: bool,
}

/// What the repository's load and unload take.
#[derive(Serialize, ToSchema)]
pub(super) struct RepositoryRequest {
    /// Triton's overrides (`config`, `file:…`) are refused: a version is immutable.
    #[schema(required = false)]
    parameters: Value,
}
