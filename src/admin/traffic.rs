//! Handlers of the traffic document, promote and rollback.

use super::Admin;
use super::body::JsonBody;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::{IfMatch, Operator, Parameters, Target};
use super::fleet::check_here;
use super::requests::{PromoteRequest, RollbackRequest, read_proposal};
use super::responses::traffic::{Assignment, EndsRollout, PromotionResponse, RollbackResponse, Traffic};
use super::schemas::{Problem, TrafficProposal};
use crate::access::{Action, Identity};
use crate::lifecycle::{Promote, Rollback};
use crate::model::{Code, Failure, ModelName, VersionId};
use crate::route::{Moves, Router};
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::header::ETAG;
use serde_json::Value;
use std::sync::Arc;

/// The traffic document
///
/// With the configured and the observed share of each arm. The whole response may be sent back with PUT.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/traffic", operation_id = "show_traffic", tag = "traffic",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "The document in force", body = Traffic,
         headers(("etag" = String, description = "The revision, in quotes"))),
        (status = 404, description = "No model has this name, or it has no document yet", body = Problem),
    )
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>, target: Target) -> Result<impl IntoResponse, ErrorResponse> {
    let snapshot = admin.reader.snapshot();
    let entry = target.entry(&snapshot)?;
    let document = entry.document().ok_or_else(|| no_document(entry.name()))?;
    let traffic = Traffic::of(entry.name().clone(), entry.revision(), document.clone(), Some(entry));
    Ok(with_etag(traffic, entry.revision()))
}

/// Replace the traffic document
///
/// In one atomic step: no request sees half of it. Every version it names must be ready or serving. The members that GET adds
/// (`model`, `revision`, `shares`, `sample_ratio`, …) are ignored; other unknown members are refused. A change ends an active rollout of the
/// model, which `ends_rollout` then names. `moves` says how many keys get another version, and warns of arms that are renamed.
#[utoipa::path(
    put, path = "/api/v1/models/{model}/traffic", operation_id = "replace_traffic", tag = "traffic",
    params(
        ("model" = String, Path),
        ("if-match" = Option<String>, Header, description = "The etag of the document to be replaced, several of them, or *"),
    ),
    request_body = TrafficProposal,
    responses(
        (status = 200, description = "The new document is in force; for a dry run, the one that would be", body = Traffic,
         headers(("etag" = String, description = "The new revision, in quotes"))),
        (status = 400, description = "Not a traffic document; all complaints at once", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "A version it names is not ready, or its signature would break callers", body = Problem),
        (status = 412, description = "The document in force is not one of those in if-match", body = Problem),
    )
)]
pub(super) async fn replace(
    State(admin): State<Arc<Admin>>,
    target: Target,
    if_match: IfMatch,
    Caller(caller): Caller,
    Operator(actor): Operator,
    JsonBody { value, complaints: duplicates }: JsonBody,
) -> Result<impl IntoResponse, ErrorResponse> {
    let model = target.model()?;
    let Some(mut value) = value else {
        return Err(Failure::new(Code::InvalidRequest, "the body is empty: expected a traffic document").into());
    };
    if let Value::Object(members) = &mut value {
        members.retain(|name, _| !Traffic::READ_ONLY.contains(&name.as_str()));
    }
    let proposal = read_proposal(&value, duplicates)?;
    check_break_glass(proposal.break_glass, &caller, &model)?;
    let if_match = revisions(&admin, &target, if_match)?;
    check_here(&admin, &model)?;
    let rollout = active_rollout(&admin, &model).await;
    let before = target.entry(&admin.reader.snapshot()).ok().and_then(|entry| entry.document().cloned());
    let dry_run = proposal.dry_run;
    let published = admin.handle.put_traffic(model.clone(), proposal, if_match, actor).await?;
    let snapshot = admin.reader.snapshot();
    let entry = snapshot.model(model.as_str()).map(Arc::as_ref);
    let moves = before.map(|before| Moves::between(&model, &before, &published.document).into());
    // The counts of a dry run would be those of the document in force.
    let mut traffic = Traffic::of(model, published.revision, published.document, entry.filter(|_| !dry_run));
    traffic.moves = moves;
    traffic.ends_rollout = rollout.filter(|rollout| dry_run || rollout.is_ended_by(published.revision));
    Ok(with_etag(traffic, published.revision))
}

/// The revisions of which one must be in force. `None`: any.
fn revisions(admin: &Admin, target: &Target, if_match: IfMatch) -> Result<Option<Vec<u64>>, ErrorResponse> {
    match if_match {
        IfMatch::Absent => Ok(None),
        IfMatch::Revisions(revisions) => Ok(Some(revisions)),
        // A model that has a document keeps one, so the manager need not check this again.
        IfMatch::Any => {
            let snapshot = admin.reader.snapshot();
            let entry = target.entry(&snapshot)?;
            if entry.document().is_none() {
                let model = entry.name();
                let message =
                    format!("if-match: * requires an existing traffic document, and model {model} has none yet");
                return Err(Failure::new(Code::PreconditionFailed, message).into());
            }
            Ok(None)
        }
    }
}

/// Only an admin of the model may override a missing approval.
pub(super) fn check_break_glass(break_glass: bool, caller: &Identity, model: &ModelName) -> Result<(), Failure> {
    if break_glass { caller.check(Action::Administer, Some(model.as_str())) } else { Ok(()) }
}

/// The arm of a key
///
/// Which arm of the split a sticky key gets, and why: the draw and the score of each arm. Rules come before the split and are not looked at.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/assignment", operation_id = "show_assignment", tag = "traffic",
    params(
        ("model" = String, Path),
        ("key" = String, Query, description = "The value of the header or parameter that sticky_by names; without sticky_by, a request id"),
    ),
    responses(
        (status = 200, description = "The arm that the document in force gives this key", body = Assignment),
        (status = 400, description = "The query is wrong", body = Problem),
        (status = 404, description = "No model has this name, or it has no document yet", body = Problem),
    )
)]
pub(super) async fn assignment(
    State(admin): State<Arc<Admin>>,
    target: Target,
    mut parameters: Parameters,
) -> Result<Json<Assignment>, ErrorResponse> {
    let key = parameters.take("key", |key| Ok(key.to_owned()));
    parameters.finish()?;
    let key = key.ok_or_else(|| {
        Failure::new(Code::InvalidRequest, "key: expected the value of a sticky key, such as ?key=u1, got nothing")
    })?;
    let snapshot = admin.reader.snapshot();
    let entry = target.entry(&snapshot)?;
    let document = entry.document().ok_or_else(|| no_document(entry.name()))?;
    let router = Router::new(entry.name(), document.clone());
    Ok(Json(Assignment::of(entry.name().clone(), entry.revision(), &router, key)?))
}

fn no_document(model: &ModelName) -> Failure {
    let message = format!("model {model} has no traffic document yet: none of its versions has become ready");
    Failure::new(Code::NotFound, message)
}

/// The rollout that a change of the traffic would end.
async fn active_rollout(admin: &Admin, model: &ModelName) -> Option<EndsRollout> {
    // A model without a rollout is an error here. A rollout that cannot be read is not active.
    let view = admin.rollouts.view(model.clone()).await.ok()?;
    view.state.is_active().then(|| EndsRollout::of(&view))
}

fn with_etag(traffic: Traffic, revision: u64) -> impl IntoResponse {
    ([(ETAG, format!("\"{revision}\""))], Json(traffic))
}

/// Send all requests that name no version to one version
///
/// Replaces the split by this version alone and removes it from the shadows; keeps everything else. Promoting a version that already
/// serves alone changes nothing. A version that fails a gate is not promoted; the gates are those of the request, otherwise those of
/// `model.toml`.
#[utoipa::path(
    post, path = "/api/v1/models/{model}:promote", tag = "traffic",
    params(
        ("model" = String, Path),
        ("if-match" = Option<String>, Header, description = "The etag of the traffic document that was looked at, several of them, or *"),
    ),
    request_body = PromoteRequest,
    responses(
        (status = 200, description = "Promoted; for a dry run, what would change", body = PromotionResponse),
        (status = 400, description = "The body is wrong; all complaints at once", body = Problem),
        (status = 404, description = "No such model or version", body = Problem),
        (status = 409, description = "The version is not ready, its signature would break callers, or it fails a gate (a dry run with a \
                                      failed gate is 200)", body = Problem),
        (status = 412, description = "The document in force is not one of those in if-match", body = Problem),
    )
)]
pub(super) async fn promote(
    State(admin): State<Arc<Admin>>,
    target: Target,
    if_match: IfMatch,
    Caller(caller): Caller,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<Json<PromotionResponse>, ErrorResponse> {
    let model = target.model()?;
    let PromoteRequest { version, reason, dry_run, allow_signature_change, gates, break_glass, quorum } =
        PromoteRequest::read(body)?;
    check_break_glass(break_glass, &caller, &model)?;
    let if_match = revisions(&admin, &target, if_match)?;
    check_here(&admin, &model)?;
    let rollout = active_rollout(&admin, &model).await;
    let label = None;
    let promote = Promote {
        version,
        reason,
        dry_run,
        allow_signature_change,
        gates,
        break_glass,
        if_match,
        label,
        quorum,
        actor,
    };
    let id = VersionId { model: model.clone(), version };
    let promoted = admin.handle.promote(model, promote).await;
    let promotion = promoted.map_err(|mut failure| {
        if failure.code == Code::VersionNotFound
            && let Some(words) = admin.fleet.as_ref().and_then(|fleet| fleet.comes(&id))
        {
            failure.message = format!("{}; {words}", failure.message);
        }
        failure
    })?;
    Ok(Json(PromotionResponse::of(promotion, dry_run, rollout)))
}

/// Restore an earlier traffic document
///
/// Without `to_revision`, the one from before the last change. A rollback is a change itself, so a second one undoes the first. All steps of
/// a rollout are one change. A rollout that was taken back or aborted is undone already: then `to_revision` is required. Versions that are not
/// loaded are loaded first; the response lists them.
#[utoipa::path(
    post, path = "/api/v1/models/{model}:rollback", tag = "traffic",
    params(
        ("model" = String, Path),
        ("if-match" = Option<String>, Header, description = "The etag of the traffic document that was looked at, several of them, or *"),
    ),
    request_body = RollbackRequest,
    responses(
        (status = 200, description = "Rolled back; for a dry run, what would change", body = RollbackResponse),
        (status = 400, description = "The body is wrong", body = Problem),
        (status = 404, description = "No model has this name, or it has no such revision", body = Problem),
        (status = 409, description = "There is no earlier document, the last change is already undone, the document is in force, a \
                                      version it names cannot be made ready, or one needs an approval", body = Problem),
        (status = 412, description = "The document in force is not one of those in if-match", body = Problem),
    )
)]
pub(super) async fn rollback(
    State(admin): State<Arc<Admin>>,
    target: Target,
    if_match: IfMatch,
    Operator(actor): Operator,
    Caller(caller): Caller,
    body: JsonBody,
) -> Result<Json<RollbackResponse>, ErrorResponse> {
    let model = target.model()?;
    let RollbackRequest { reason, to_revision, dry_run, break_glass } = RollbackRequest::read(body)?;
    check_break_glass(break_glass, &caller, &model)?;
    let if_match = revisions(&admin, &target, if_match)?;
    check_here(&admin, &model)?;
    let rollout = active_rollout(&admin, &model).await;
    let request = Rollback { to_revision, reason, dry_run, break_glass, if_match, actor };
    let rolled_back = admin.handle.rollback(model, request).await?;
    Ok(Json(RollbackResponse::of(rolled_back, dry_run, rollout)))
}
