//! Schemas that exist for the `OpenAPI` document only: types of other rooms, which know nothing of that document, and request bodies
//! whose reader reports all complaints at once. Tests compare them with what is read and answered.

use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The body of every error response.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of http::problem")]
pub(super) struct Problem {
    /// One sentence: what was wrong, what was expected, what was found.
    error: String,
    /// A stable code for programs.
    #[schema(example = "CONFLICT")]
    code: String,
    /// The complaints, if there are several.
    #[schema(required = false)]
    details: Vec<String>,
}

/// The state of a version.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "the schema of registry::State")]
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

/// The stage in which a version failed.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "the schema of registry::Stage")]
pub(super) enum FailedStage {
    Load,
    Verify,
    Warm,
    /// It was ready, and its runs did not end.
    Stuck,
    /// It was ready, and it ended the process.
    Crashed,
}

/// Which version answers a request: the first rule that matches, otherwise the split.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficDocument {
    /// At least one arm, with a positive sum of weights.
    split: Vec<TrafficArm>,
    /// Absent: every request is assigned independently.
    #[schema(required = false)]
    sticky_by: TrafficKey,
    /// Checked before the split; the first match decides.
    #[schema(required = false)]
    rules: Vec<TrafficRule>,
    #[schema(required = false)]
    shadows: Vec<TrafficShadow>,
    /// From label to version.
    #[schema(required = false)]
    labels: BTreeMap<String, String>,
    /// Answers in place of a version whose breaker is open, or that failed after it was ready. Absent: such requests are answered 503.
    #[schema(required = false)]
    fallback: TrafficFallback,
    /// A new salt assigns all keys to arms anew. Absent: the model's name.
    #[schema(required = false)]
    salt: String,
    /// Kept in history and audit trail.
    #[schema(required = false)]
    reason: String,
}

/// The version that answers in place of one that cannot.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficFallback {
    version: String,
}

/// One arm of a split.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficArm {
    version: String,
    /// Relative to the sum of all weights.
    #[schema(minimum = 0)]
    weight: f64,
    /// Unique within the split. Absent: the version.
    #[schema(required = false)]
    arm: String,
}

/// Where the sticky key is read from.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "the schema of route::Key")]
pub(super) enum TrafficKey {
    Header(String),
    Parameter(String),
}

/// Sends requests with a certain header to a version.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficRule {
    header: String,
    equals: String,
    version: String,
}

/// A version that gets copies of requests and answers none.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficShadow {
    version: String,
    /// The share of requests that are copied, above 0 and at most 1. Absent: 1.
    #[schema(required = false, maximum = 1)]
    sample: f64,
}

/// A traffic document to put in force, with options that are not kept.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficProposal {
    #[serde(flatten)]
    document: TrafficDocument,
    /// Accept a version whose signature breaks callers.
    #[schema(required = false)]
    allow_signature_change: bool,
    /// Give traffic to versions that nobody approved. Only for admins; the audit trail, the log and a metric have it.
    #[schema(required = false)]
    break_glass: bool,
    /// Check the document and answer it with the revision that is in force; change nothing. Missing approvals are not reported.
    #[schema(required = false)]
    dry_run: bool,
    /// The share of the gateways of a fleet that must be able to serve it, over 0 and up to 1. Absent: all that should have the model.
    #[schema(required = false, minimum = 0, maximum = 1)]
    quorum: Option<f64>,
}

/// What a version must pass before it is promoted.
#[derive(ToSchema)]
#[schema(as = GatesRequest)]
#[expect(dead_code, reason = "the schema of model_settings::Gates")]
pub(super) struct GatesSchema {
    /// The least share of shadow pairs with the versions of the split that must agree.
    #[schema(required = false, minimum = 0, maximum = 1)]
    shadow_agreement: f64,
    /// The least number of shadow pairs; 1000 if only `shadow_agreement` is given.
    #[schema(required = false, minimum = 1)]
    shadow_pairs: u64,
    /// The largest share of rows of scores whose highest score is another one.
    #[schema(required = false, minimum = 0, maximum = 1)]
    shadow_top1_flipped: f64,
    /// The version has golden answers, and reproduced them when it was loaded.
    #[schema(required = false)]
    golden: bool,
    /// The version's signature is exactly that of the serving versions.
    #[schema(required = false)]
    signature: bool,
}

/// The plan of a rollout. Only `to` and `reason` are required.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of rollout::Plan")]
pub(super) struct RolloutRequest {
    #[schema(example = "4")]
    to: String,
    /// Ascending percentages, at most 100 of them; absent: 1, 5, 25, 50, 100.
    #[schema(max_items = 100)]
    steps: Option<Vec<f64>>,
    /// The shortest time that each step is held; absent: 10m.
    #[schema(example = "10m")]
    hold: Option<String>,
    /// Requests that the candidate needs in each step; absent: 100.
    min_requests: Option<u64>,
    /// Pairs that are needed before the first step if `shadow_disagreement` is a guardrail; absent: 1000.
    min_shadow_pairs: Option<u64>,
    /// The share of requests that are copied before the first step; absent: 1.
    shadow_sample: Option<f64>,
    guardrails: Option<GuardrailsRequest>,
    require: Option<RequireRequest>,
    goal: Option<GoalRequest>,
    allow_signature_change: Option<bool>,
    /// Move traffic to the version although nobody approved it. Only for admins; the audit trail, the log and a metric have it.
    break_glass: Option<bool>,
    /// Answer `would_be`, the traffic document of the first step; change nothing. Missing approvals are not reported.
    dry_run: Option<bool>,
    reason: String,
}

/// The business metric that ends a rollout early, at its last step, once it is better beyond doubt.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of rollout::Plan")]
pub(super) struct GoalRequest {
    /// A metric of model.toml.
    metric: String,
}

/// The limit of a business metric.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of rollout::Plan")]
pub(super) struct MetricLimit {
    /// The least difference to the control that is allowed, where more is better; 0 or less. A rollout goes on once the difference is above it
    /// beyond doubt, and is taken back once it is below it beyond doubt.
    not_worse_than: f64,
}

/// What must be shown before the next step: the upper end of each interval is at most this, with 95 % confidence.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of rollout::Require")]
pub(super) struct RequireRequest {
    /// The candidate's rate of failed requests divided by the control's; above 1.
    error_rate_ratio: Option<f64>,
    /// The candidate's rate of failed requests less the control's.
    error_rate_difference: Option<f64>,
    /// The candidate's rate of failed requests.
    max_error_rate: Option<f64>,
}

/// Limits that move the traffic back when they are violated. Absent: the default. `null`: off.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of rollout::Guardrails")]
pub(super) struct GuardrailsRequest {
    /// The candidate's rate of failed requests divided by the control's; default 1.0.
    error_rate_ratio: Option<f64>,
    /// The same for requests with NaN or infinite outputs; default 1.0.
    nonfinite_ratio: Option<f64>,
    /// The candidate's 99th percentile of the latency divided by the control's; default 1.5.
    p99_latency_ratio: Option<f64>,
    /// The candidate's median engine time per row divided by the control's, for as many rows; default 1.5.
    engine_time_ratio: Option<f64>,
    /// How many times as often the control's answers may differ from the answer before as the candidate's; default 10.
    constant_output_ratio: Option<f64>,
    /// The share of the candidate's requests that may fail; default off.
    max_error_rate: Option<f64>,
    /// The largest 99th percentile of the candidate's latency, in milliseconds; default off.
    max_p99_ms: Option<f64>,
    /// The 99th percentile of the latency of both sides divided by that from before the rollout; default off.
    p99_before_ratio: Option<f64>,
    /// The share of shadow pairs that may disagree before the first step; default off.
    shadow_disagreement: Option<f64>,
    /// The largest share of rollouts that are moved back although the candidate is no worse; default 0.05.
    false_alarm_rate: Option<f64>,
    /// Metrics of model.toml, by name.
    metrics: Option<BTreeMap<String, MetricLimit>>,
}
