//! Moving traffic to a version step by step.

use super::Admin;
use super::ask::{Operator, Target};
use super::body::{Json as Body, Members};
use super::refused::Refused;
use super::shapes::{Problem, RollbackRequest, RolloutRequest};
use crate::ledger::rfc3339;
use crate::lifecycle::Actor;
use crate::model::{Code, Failure, ModelName, Version};
use crate::rollout::{Compared, Counts, Evidence, Plan, Step, StepEvidence, View, p99_us};
use crate::settings::show_duration;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// A rollout as it stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rollout {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = String)]
    to: Version,
    /// The versions it is held against.
    #[schema(value_type = Vec<String>)]
    from: Vec<Version>,
    /// The candidate's arm.
    arm: String,
    /// `shadowing`, `running`, `paused`, `finished`, `taken_back`, `aborted` or `stopped` (somebody else changed the traffic).
    state: &'static str,
    /// Why it moved last, stands or ended.
    why: String,
    /// A move that could not be made yet, and why; it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    /// The candidate's share, in percent.
    percent: f64,
    /// The place among `steps`, from 0; null while it is a shadow.
    step: Option<usize>,
    steps: Vec<f64>,
    /// For each step, at least.
    #[schema(example = "10m")]
    hold: String,
    /// This step, so far, or until it ended; from nothing after a restart.
    held: String,
    /// Of the candidate, in each step, at least.
    min_requests: u64,
    reason: String,
    /// Who began it.
    by: String,
    #[schema(format = DateTime)]
    started_at: String,
    #[schema(format = DateTime)]
    step_started_at: String,
    /// Of the document it put in force last.
    revision: u64,
    /// What this step has shown; once it has ended, what the last one that was held did. Null while it is a shadow.
    candidate: Option<Side>,
    control: Option<Side>,
    guardrails: Vec<Guardrail>,
    /// The share of rollouts without any difference that are taken back at most.
    false_alarm_rate: f64,
    /// Oldest first.
    moves: Vec<Move>,
}

/// One side, since the step began.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Side {
    /// Answered, without those whose client went away.
    requests: u64,
    failed: u64,
    nonfinite: u64,
    /// To an eighth; null before the hundredth request.
    p99_us: Option<u64>,
}

/// One guardrail and how it stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Guardrail {
    name: &'static str,
    limit: f64,
    /// What is counted: requests that failed, had non-finite outputs, were slow; or pairs that disagree.
    candidate: Observed,
    /// Null where the candidate is held against a limit alone.
    control: Option<Observed>,
    /// Where the ratio (or the share) lies for sure, however often one has looked: the confidence sequence, from and to; a null end
    /// is open.
    interval: (f64, Option<f64>),
    /// At the level each comparison is made at.
    level: f64,
    broken: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Observed {
    requests: u64,
    bad: u64,
    /// Of 1; null before the first.
    share: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Move {
    #[schema(format = DateTime)]
    ts: String,
    /// As the audit trail has it: `rollout_start`, `rollout_step`, …
    action: String,
    /// The candidate's share afterwards.
    percent: f64,
    reason: String,
}

/// Begin a rollout
///
/// The first step is in force when this answers; the others follow by themselves.
#[utoipa::path(
    post, path = "/api/v1/models/{model}:rollout", operation_id = "begin_rollout", tag = "traffic",
    params(("model" = String, Path)),
    request_body = RolloutRequest,
    responses(
        (status = 200, description = "Begun", body = Rollout),
        (status = 400, description = "Not a plan: every complaint at once", body = Problem),
        (status = 404, description = "No such model or version", body = Problem),
        (status = 409, description = "Another is under way, the version is not ready, or its signature would break callers", body = Problem),
    )
)]
pub(super) async fn begin(
    admin: State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    Body { value, complaints: twice }: Body,
) -> Result<Json<Rollout>, Refused> {
    let model = target.model()?;
    let plan = match Plan::parse(&value.unwrap_or(Value::Null)) {
        Ok(plan) if twice.is_empty() => plan,
        parsed => {
            let complaints = [twice, parsed.err().unwrap_or_default()].concat();
            return Err(Failure::several(Code::InvalidRequest, complaints).into());
        }
    };
    Ok(Json(Rollout::of(&admin.rollouts.begin(model, plan, actor).await?)))
}

/// A model's last rollout
///
/// Where it stands, why it moved or stopped, and the evidence of its step.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/rollout", operation_id = "show_rollout", tag = "traffic",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "The one under way, or the last", body = Rollout),
        (status = 404, description = "No such model, or it has had none", body = Problem),
    )
)]
pub(super) async fn show(admin: State<Arc<Admin>>, target: Target) -> Result<Json<Rollout>, Refused> {
    target.entry(&admin.reader.snapshot())?;
    Ok(Json(Rollout::of(&admin.rollouts.view(&target.model()?).await?)))
}

/// Hold a rollout at its step
///
/// Guardrails go on watching. Pausing what is paused changes nothing.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/rollout:pause", operation_id = "pause_rollout", tag = "traffic",
    params(("model" = String, Path)),
    request_body = RollbackRequest,
    responses(
        (status = 200, description = "Paused", body = Rollout),
        (status = 404, description = "No such model, or it has had none", body = Problem),
        (status = 409, description = "It has ended", body = Problem),
    )
)]
pub(super) async fn pause(
    admin: State<Arc<Admin>>,
    target: Target,
    operator: Operator,
    body: Body,
) -> Result<Json<Rollout>, Refused> {
    let (model, reason, actor) = asked(&target, operator, body)?;
    Ok(Json(Rollout::of(&admin.rollouts.pause(&model, &reason, actor).await?)))
}

/// Go on with a paused rollout
#[utoipa::path(
    post, path = "/api/v1/models/{model}/rollout:resume", operation_id = "resume_rollout", tag = "traffic",
    params(("model" = String, Path)),
    request_body = RollbackRequest,
    responses(
        (status = 200, description = "Going on", body = Rollout),
        (status = 404, description = "No such model, or it has had none", body = Problem),
        (status = 409, description = "It has ended", body = Problem),
    )
)]
pub(super) async fn resume(
    admin: State<Arc<Admin>>,
    target: Target,
    operator: Operator,
    body: Body,
) -> Result<Json<Rollout>, Refused> {
    let (model, reason, actor) = asked(&target, operator, body)?;
    Ok(Json(Rollout::of(&admin.rollouts.resume(&model, &reason, actor).await?)))
}

/// End a rollout
///
/// And put back the document of before it.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/rollout:abort", operation_id = "abort_rollout", tag = "traffic",
    params(("model" = String, Path)),
    request_body = RollbackRequest,
    responses(
        (status = 200, description = "Ended", body = Rollout),
        (status = 404, description = "No such model, or it has had none", body = Problem),
        (status = 409, description = "It has ended already", body = Problem),
    )
)]
pub(super) async fn abort(
    admin: State<Arc<Admin>>,
    target: Target,
    operator: Operator,
    body: Body,
) -> Result<Json<Rollout>, Refused> {
    let (model, reason, actor) = asked(&target, operator, body)?;
    Ok(Json(Rollout::of(&admin.rollouts.abort(&model, &reason, actor).await?)))
}

fn asked(target: &Target, Operator(actor): Operator, body: Body) -> Result<(ModelName, String, Actor), Refused> {
    let model = target.model()?;
    let mut members = Members::of(body, "{\"reason\":\"…\"}")?;
    let reason = members.reason();
    members.finish()?;
    let reason = reason.ok_or_else(|| Failure::new(Code::InvalidRequest, "reason is required"))?;
    Ok((model, reason, actor))
}

impl Rollout {
    fn of(view: &View) -> Rollout {
        let View { model, state, held, evidence, trouble } = view;
        let plan = &state.plan;
        let step = match evidence {
            Evidence::Step(step) => Some(&**step),
            Evidence::Shadow(_) => None,
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
            arm: state.candidate().to_string(),
            state: state.name(),
            why: state.why.clone(),
            trouble: trouble.clone(),
            percent: state.percent(),
            step: match state.step {
                Step::Shadow => None,
                Step::At(place) => Some(place),
            },
            steps: plan.steps.clone(),
            hold: show_duration(plan.hold),
            held: show_duration(Duration::from_secs(held.as_secs())),
            min_requests: plan.min_requests,
            reason: plan.reason.clone(),
            by: state.by.clone(),
            started_at: rfc3339(state.started_at),
            step_started_at: rfc3339(state.step_started_at),
            revision: state.revision,
            candidate: step.map(|step| Side::of(&step.candidate)),
            control: step.map(|step| Side::of(&step.control)),
            guardrails: guardrails(plan, evidence),
            false_alarm_rate: plan.guardrails.false_alarm_rate,
            moves: moves.collect(),
        }
    }
}

fn guardrails(plan: &Plan, evidence: &Evidence) -> Vec<Guardrail> {
    let level = plan.guardrails.level(&plan.steps);
    match evidence {
        Evidence::Step(step) => {
            let StepEvidence { errors, nonfinite, latency, .. } = &**step;
            let of = |name, compared: &Option<Compared>, limit: Option<f64>| {
                compared.as_ref().zip(limit).map(|(compared, limit)| Guardrail::ratio(name, compared, limit, level))
            };
            let limits = &plan.guardrails;
            [
                of("error_rate_ratio", errors, limits.error_rate_ratio),
                of("nonfinite_ratio", nonfinite, limits.nonfinite_ratio),
                of("p99_latency_ratio", latency, limits.p99_latency_ratio),
            ]
            .into_iter()
            .flatten()
            .collect()
        }
        Evidence::Shadow(shadow) => {
            let limit = plan.guardrails.shadow_disagreement.unwrap_or(1.0);
            let (low, high) = shadow.disagreements.interval(level);
            vec![Guardrail {
                name: "shadow_disagreement",
                limit,
                candidate: Observed::of(shadow.disagreements.seen()),
                control: None,
                interval: (low, Some(high)),
                level,
                broken: shadow.disagreements.is_surely_above(limit, level),
            }]
        }
    }
}

impl Guardrail {
    fn ratio(name: &'static str, compared: &Compared, limit: f64, level: f64) -> Guardrail {
        let (low, high) = compared.ratio.interval(level);
        Guardrail {
            name,
            limit,
            candidate: Observed::of(compared.candidate),
            control: Some(Observed::of(compared.control)),
            interval: (low, high.is_finite().then_some(high)),
            level,
            broken: compared.ratio.is_surely_above(level),
        }
    }
}

impl Observed {
    fn of(Counts { requests, bad }: Counts) -> Observed {
        Observed { requests, bad, share: (requests > 0).then(|| bad as f64 / requests as f64) }
    }
}

impl Side {
    fn of(evidence: &crate::telemetry::ArmEvidence) -> Side {
        let (requests, failed, nonfinite) = (evidence.requests, evidence.failed, evidence.nonfinite);
        Side { requests, failed, nonfinite, p99_us: p99_us(evidence) }
    }
}
