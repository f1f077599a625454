//! Handlers of rollouts.

use super::Admin;
use super::body::JsonBody;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::{Operator, Target};
use super::requests::{ReasonRequest, read_plan};
use super::schemas::{Problem, RolloutRequest, TrafficDocument};
use super::traffic::check_break_glass;
use crate::ledger::rfc3339;
use crate::lifecycle::Actor;
use crate::model::{ModelName, Version};
use crate::outcomes::sides::Cuped;
use crate::rollout::{
    self, Counted, Counts, Driving, Evidence, MetricEvidence, Plan, Require, Step, Verdict, View, p99_us,
};
use crate::route::{Document, Proposal};
use crate::settings::show_duration;
use crate::telemetry::{ArmEvidence, KeyEvidence, Unit};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// The state of a rollout.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rollout {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = String)]
    to: Version,
    /// The versions that the candidate is compared with.
    #[schema(value_type = Vec<String>)]
    from: Vec<Version>,
    /// The candidate's arm.
    arm: String,
    /// `shadowing`, `running`, `paused`, `finished`, `taken_back`, `aborted` or `stopped` (somebody else changed the traffic document).
    state: &'static str,
    /// Why it moved last, waits or ended.
    why: String,
    /// The last change that failed, and why; it is retried.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    /// The candidate's share, in percent.
    percent: f64,
    /// The index in `steps`, from 0; null while the candidate is a shadow.
    step: Option<usize>,
    steps: Vec<f64>,
    /// The shortest time that each step is held.
    #[schema(example = "10m")]
    hold: String,
    /// How long this step has been held; a restart begins again at 0.
    held: String,
    /// Requests that the candidate needs in each step.
    min_requests: u64,
    reason: String,
    /// The operator who began it.
    by: String,
    #[schema(format = DateTime)]
    started_at: String,
    #[schema(format = DateTime)]
    step_started_at: String,
    /// The revision of the traffic document that it put in force last.
    revision: u64,
    /// The 99th percentile of the latency of the versions that served before the rollout, rounded up by at most an eighth; null where they
    /// had fewer than 100 requests under that document.
    p99_before_us: Option<u64>,
    /// What must be shown before the next step; absent members are not asked for.
    require: RequireResponse,
    /// The evidence of this step; after the end, of the last step that was held. Null while the candidate is a shadow. In a fleet it is the sum
    /// of all gateways, and only the driver shows it.
    candidate: Option<Side>,
    control: Option<Side>,
    guardrails: Vec<Guardrail>,
    /// Who drives it, in a fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<RolloutFleet>,
    /// The business metrics of the plan in this step: first those of the guardrails, then the goal.
    metrics: Vec<MetricState>,
    /// The largest share of rollouts that are moved back although the candidate is no worse.
    false_alarm_rate: f64,
    /// Oldest first.
    moves: Vec<Move>,
    /// The traffic document from before it, which an abort and a take-back restore.
    #[schema(value_type = TrafficDocument)]
    before: Document,
    /// Of a dry run: the traffic document of the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TrafficDocument>)]
    would_be: Option<Document>,
}

/// A rollout of a fleet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RolloutFleet {
    /// The gateway that drives it.
    driver: String,
    /// Whether that is the gateway that answers.
    here: bool,
    /// Seconds since its lease was renewed, as this gateway saw it; null where it was not seen. After about 5 another gateway takes over.
    lease_age: Option<f64>,
    /// The gateways whose counts are in the sum.
    counted: Vec<CountedGateway>,
    /// Gateways that are there, or were in the sum, and whose counts have not come for 6 seconds. What a gateway that ended had not told is lost.
    silent: Vec<String>,
    /// Why this gateway does not know the fleet's state now.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_off: Option<String>,
}

/// A gateway whose counts are in the sum.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CountedGateway {
    node: String,
    /// Requests of both sides, or pairs of a shadow.
    requests: u64,
    /// Seconds since its last counts came.
    age: f64,
}

/// The requests of one side since the step began.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Side {
    /// Answered requests, without those whose client disconnected.
    requests: u64,
    failed: u64,
    nonfinite: u64,
    /// Rounded up by at most an eighth; null before the hundredth request.
    p99_us: Option<u64>,
    /// Distinct sticky keys, each keyless request as one; null where requests are counted.
    keys: Option<u64>,
}

/// The state of one guardrail.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Guardrail {
    name: &'static str,
    limit: f64,
    /// What is counted: `request`, `key` (sticky keys) or `pair` (shadow pairs).
    unit: &'static str,
    /// Requests that failed, had non-finite outputs or were slow; keys that had such a request; or shadow pairs that disagree. For
    /// `constant_output_ratio` answers that differ from the one before; for `p99_before_ratio` requests of both sides.
    candidate: Observed,
    /// Null if the candidate is compared with the limit only.
    control: Option<Observed>,
    /// The confidence interval of the ratio (or share), valid however often it is checked; null means unbounded. For `p99_latency_ratio`
    /// and `engine_time_ratio` it is the ratio of the shares of slow requests, which may be 1; for `max_p99_ms` and `p99_before_ratio` the
    /// share of slow requests, which may be 0.01.
    interval: (f64, Option<f64>),
    /// The error probability α of the interval.
    level: f64,
    /// Whether the whole interval lies above the limit.
    broken: bool,
}

/// A business metric of a rollout.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MetricState {
    metric: String,
    /// `higher` or `lower`; null where model.toml does not have the metric any more.
    better: Option<&'static str>,
    /// The least difference that is allowed, where more is better; null for the goal.
    not_worse_than: Option<f64>,
    /// Units with an outcome that are old enough.
    candidate_units: u64,
    control_units: u64,
    candidate_mean: Option<f64>,
    control_mean: Option<f64>,
    /// The candidate's mean less the control's, with an interval that holds at every look; null while there are too few units.
    difference: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    /// What values of the same units from before the step explain. The difference and its interval are without it, so the difference is not that of
    /// the two means. Null where too few units have such values.
    cuped: Option<Cuped>,
}

/// The largest upper end of each interval with which the next step begins.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RequireResponse {
    #[serde(skip_serializing_if = "Option::is_none")]
    error_rate_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_rate_difference: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_error_rate: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Observed {
    /// Requests, keys or pairs, as `unit` says.
    requests: u64,
    bad: u64,
    /// From 0 to 1; null before the first request.
    share: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Move {
    #[schema(format = DateTime)]
    ts: String,
    /// As in the audit trail: `rollout_start`, `rollout_step`, …
    action: String,
    /// The candidate's share after it.
    percent: f64,
    reason: String,
}

/// Begin a rollout
///
/// Returns when the first step is in force. The other steps follow automatically.
#[utoipa::path(
    post, path = "/api/v1/models/{model}:rollout", operation_id = "begin_rollout", tag = "traffic",
    params(("model" = String, Path)),
    request_body = RolloutRequest,
    responses(
        (status = 200, description = "The rollout has begun; for a dry run, how it would begin", body = Rollout),
        (status = 400, description = "Not a plan; all complaints at once", body = Problem),
        (status = 404, description = "No such model or version", body = Problem),
        (status = 409, description = "Another rollout is active, the version is not ready, needs an approval, or its signature would break callers", body = Problem),
    )
)]
pub(super) async fn begin(
    admin: State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    Caller(caller): Caller,
    body: JsonBody,
) -> Result<Json<Rollout>, ErrorResponse> {
    let model = target.model()?;
    let (plan, dry_run) = read_plan(body)?;
    check_break_glass(plan.break_glass, &caller, &model)?;
    if dry_run {
        let allow_signature_change = plan.allow_signature_change;
        let view = admin.rollouts.preview(model.clone(), plan, Actor(actor.0.clone())).await?;
        let document = view.state.document(view.state.step);
        let proposal = Proposal { document, allow_signature_change, break_glass: false, dry_run, quorum: None };
        // The manager knows whether the version can serve.
        let published = admin.handle.put_traffic(model, proposal, None, actor).await?;
        return Ok(Json(Rollout { would_be: Some(published.document), ..Rollout::of(&view) }));
    }
    Ok(Json(Rollout::of(&admin.rollouts.begin(model, plan, actor).await?)))
}

/// A model's last rollout
///
/// Its state, why it moved or ended, and the evidence of its step.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/rollout", operation_id = "show_rollout", tag = "traffic",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "The active or the last rollout", body = Rollout),
        (status = 404, description = "No such model, or it has never had a rollout", body = Problem),
    )
)]
pub(super) async fn show(admin: State<Arc<Admin>>, target: Target) -> Result<Json<Rollout>, ErrorResponse> {
    target.entry(&admin.reader.snapshot())?;
    Ok(Json(Rollout::of(&admin.rollouts.view(target.model()?).await?)))
}

/// Hold a rollout at its step
///
/// Guardrails are still checked. Pausing a paused rollout with another reason replaces the reason.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/rollout:pause", operation_id = "pause_rollout", tag = "traffic",
    params(("model" = String, Path)),
    request_body = ReasonRequest,
    responses(
        (status = 200, description = "The rollout is paused", body = Rollout),
        (status = 400, description = "The body is not valid", body = Problem),
        (status = 404, description = "No such model, or it has never had a rollout", body = Problem),
        (status = 409, description = "The rollout has ended", body = Problem),
    )
)]
pub(super) async fn pause(
    admin: State<Arc<Admin>>,
    target: Target,
    operator: Operator,
    body: JsonBody,
) -> Result<Json<Rollout>, ErrorResponse> {
    let (model, reason, actor) = read(&target, operator, body)?;
    Ok(Json(Rollout::of(&admin.rollouts.pause(model, reason, actor).await?)))
}

/// Continue a paused rollout
#[utoipa::path(
    post, path = "/api/v1/models/{model}/rollout:resume", operation_id = "resume_rollout", tag = "traffic",
    params(("model" = String, Path)),
    request_body = ReasonRequest,
    responses(
        (status = 200, description = "The rollout continues", body = Rollout),
        (status = 400, description = "The body is not valid", body = Problem),
        (status = 404, description = "No such model, or it has never had a rollout", body = Problem),
        (status = 409, description = "The rollout has ended", body = Problem),
    )
)]
pub(super) async fn resume(
    admin: State<Arc<Admin>>,
    target: Target,
    operator: Operator,
    body: JsonBody,
) -> Result<Json<Rollout>, ErrorResponse> {
    let (model, reason, actor) = read(&target, operator, body)?;
    Ok(Json(Rollout::of(&admin.rollouts.resume(model, reason, actor).await?)))
}

/// Abort a rollout
///
/// Restores the traffic document from before it.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/rollout:abort", operation_id = "abort_rollout", tag = "traffic",
    params(("model" = String, Path)),
    request_body = ReasonRequest,
    responses(
        (status = 200, description = "The rollout has ended", body = Rollout),
        (status = 400, description = "The body is not valid", body = Problem),
        (status = 404, description = "No such model, or it has never had a rollout", body = Problem),
        (status = 409, description = "The rollout had already ended", body = Problem),
    )
)]
pub(super) async fn abort(
    admin: State<Arc<Admin>>,
    target: Target,
    operator: Operator,
    body: JsonBody,
) -> Result<Json<Rollout>, ErrorResponse> {
    let (model, reason, actor) = read(&target, operator, body)?;
    Ok(Json(Rollout::of(&admin.rollouts.abort(model, reason, actor).await?)))
}

fn read(
    target: &Target,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<(ModelName, String, Actor), ErrorResponse> {
    let model = target.model()?;
    let ReasonRequest { reason } = ReasonRequest::read(body)?;
    Ok((model, reason, actor))
}

impl Rollout {
    fn of(view: &View) -> Rollout {
        let View { model, state, held, evidence, metrics, trouble, driving } = view;
        let plan = &state.plan;
        // Another gateway has the sums.
        let is_elsewhere = driving.as_ref().is_some_and(|driving| !driving.here);
        let step = match evidence {
            Evidence::Step(step) if !is_elsewhere => Some(&**step),
            Evidence::Step(_) | Evidence::Shadow(_) => None,
        };
        let moves = state.moves.iter().map(|m| Move {
            ts: rfc3339(m.ts),
            action: m.action.clone(),
            percent: m.percent,
            reason: m.reason.clone(),
        });
        Rollout {
            model: model.clone(),
            to: plan.to,
            from: state.control_versions().into_iter().collect(),
            arm: state.candidate_arm().to_string(),
            state: state.name(),
            why: state.why.clone(),
            trouble: trouble.clone(),
            percent: state.percent(),
            step: match state.step {
                Step::Shadow => None,
                Step::At(index) => Some(index),
            },
            steps: plan.steps.clone(),
            hold: show_duration(plan.hold),
            held: show_duration(Duration::from_secs(held.as_secs())),
            min_requests: plan.min_requests,
            reason: plan.reason.clone(),
            by: state.started_by.clone(),
            started_at: rfc3339(state.started_at),
            step_started_at: rfc3339(state.step_started_at),
            revision: state.revision,
            p99_before_us: state.p99_before_us,
            require: RequireResponse::of(plan.require),
            candidate: step.map(|step| Side::of(&step.candidate)),
            control: step.map(|step| Side::of(&step.control)),
            guardrails: if is_elsewhere { Vec::new() } else { guardrails(plan, evidence) },
            fleet: driving.as_ref().map(RolloutFleet::of),
            metrics: metrics.iter().map(|found| MetricState::of(found, plan.level())).collect(),
            false_alarm_rate: plan.guardrails.false_alarm_rate,
            moves: moves.collect(),
            before: state.before.clone(),
            would_be: None,
        }
    }
}

impl RolloutFleet {
    fn of(driving: &Driving) -> RolloutFleet {
        let Driving { driver, here, lease, counted, silent, cut_off } = driving;
        let of = |of: &Counted| CountedGateway {
            node: of.node.clone(),
            requests: of.requests,
            age: seconds(Duration::from_millis(of.age_ms)),
        };
        RolloutFleet {
            driver: driver.clone(),
            here: *here,
            lease_age: lease.map(seconds),
            counted: counted.iter().map(of).collect(),
            silent: silent.clone(),
            cut_off: cut_off.clone(),
        }
    }
}

/// In seconds, to a tenth.
pub(super) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

fn guardrails(plan: &Plan, evidence: &Evidence) -> Vec<Guardrail> {
    let level = plan.level();
    match evidence {
        Evidence::Step(step) => {
            let of = |guardrail: &rollout::Guardrail| {
                let Verdict { interval: (low, high), exceeds, .. } = guardrail.test.verdict(level);
                let (candidate, control) = guardrail.test.counts();
                Guardrail {
                    name: guardrail.kind.name(),
                    limit: guardrail.limit,
                    unit: unit(step.unit()),
                    candidate: Observed::of(candidate),
                    control: control.map(Observed::of),
                    interval: (low, high.is_finite().then_some(high)),
                    level,
                    broken: exceeds,
                }
            };
            step.guardrails.iter().map(of).collect()
        }
        Evidence::Shadow(shadow) => {
            let limit = plan.guardrails.shadow_disagreement.unwrap_or(1.0);
            let (low, high) = shadow.disagreements.interval(level);
            vec![Guardrail {
                name: "shadow_disagreement",
                limit,
                unit: "pair",
                candidate: Observed::of(shadow.disagreements.counts()),
                control: None,
                interval: (low, Some(high)),
                level,
                broken: shadow.disagreements.exceeds(limit, level),
            }]
        }
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Request => "request",
        Unit::Key => "key",
    }
}

impl MetricState {
    fn of(found: &MetricEvidence, level: f64) -> MetricState {
        let (candidate, control) = found.sides();
        let difference = found.difference(level);
        MetricState {
            metric: found.name.clone(),
            better: found.metric.as_ref().map(|metric| metric.better.as_str()),
            not_worse_than: found.not_worse_than,
            candidate_units: candidate.units,
            control_units: control.units,
            candidate_mean: candidate.mean,
            control_mean: control.mean,
            difference: difference.map(|found| found.value),
            low: difference.map(|found| found.low),
            high: difference.map(|found| found.high),
            cuped: found.cuped(),
        }
    }
}

impl RequireResponse {
    fn of(require: Require) -> RequireResponse {
        let Require { error_rate_ratio, error_rate_difference, max_error_rate } = require;
        RequireResponse { error_rate_ratio, error_rate_difference, max_error_rate }
    }
}

impl Observed {
    fn of(Counts { requests, bad }: Counts) -> Observed {
        Observed { requests, bad, share: (requests > 0).then(|| bad as f64 / requests as f64) }
    }
}

impl Side {
    fn of(evidence: &ArmEvidence) -> Side {
        let (requests, failed, nonfinite) = (evidence.requests, evidence.failed, evidence.nonfinite);
        let keys = evidence.keys.as_ref().map(KeyEvidence::keys);
        Side { requests, failed, nonfinite, p99_us: p99_us(evidence), keys }
    }
}
