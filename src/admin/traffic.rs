//! Which version answers whom: the document, promote, rollback.

use super::Admin;
use super::answers::{PromotionAnswer, RollbackAnswer, Traffic};
use super::ask::{IfMatch, Operator, Target};
use super::body::{Json as Body, Members};
use super::refused::Refused;
use super::shapes::{Problem, PromoteRequest, RollbackRequest, TrafficProposal};
use crate::lifecycle::Promote;
use crate::model::{Code, Failure};
use crate::model_settings::Gates;
use crate::route::Proposal;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::header::ETAG;
use serde_json::Value;
use std::sync::Arc;

/// The traffic document
///
/// With configured and observed shares side by side. The whole answer may be put back.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/traffic", operation_id = "show_traffic", tag = "traffic",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "In force now", body = Traffic,
         headers(("etag" = String, description = "The revision, in quotes"))),
        (status = 404, description = "No such model, or it has no document yet", body = Problem),
    )
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>, target: Target) -> Result<impl IntoResponse, Refused> {
    let snapshot = admin.reader.snapshot();
    let entry = target.entry(&snapshot)?;
    let Some(document) = entry.document() else {
        let words = format!("model {} has no traffic document yet: no version of it has come ready", entry.name());
        return Err(Failure::new(Code::NotFound, words).into());
    };
    Ok(tagged(Traffic::of(entry.name().clone(), entry.revision(), document.clone(), Some(entry)), entry.revision()))
}

/// Replace the traffic document
///
/// In one atomic step: no request sees half of it. Every version it names must be ready or serving. The members that the GET
/// adds (`model`, `revision`, `shares`, `sample_ratio`) are ignored; any other unknown member is refused.
#[utoipa::path(
    put, path = "/api/v1/models/{model}/traffic", operation_id = "replace_traffic", tag = "traffic",
    params(
        ("model" = String, Path),
        ("if-match" = Option<String>, Header, description = "The etag of the document that is to be replaced, several, or *"),
    ),
    request_body = TrafficProposal,
    responses(
        (status = 200, description = "In force now", body = Traffic,
         headers(("etag" = String, description = "The new revision, in quotes"))),
        (status = 400, description = "Not a traffic document: every complaint at once", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "A version named is not ready, or its signature would break callers", body = Problem),
        (status = 412, description = "Another document is in force than if-match says", body = Problem),
    )
)]
pub(super) async fn replace(
    State(admin): State<Arc<Admin>>,
    target: Target,
    if_match: IfMatch,
    Operator(actor): Operator,
    Body { value: body, complaints: twice }: Body,
) -> Result<impl IntoResponse, Refused> {
    let model = target.model()?;
    let Some(mut body) = body else {
        return Err(Failure::new(Code::InvalidRequest, "the body is empty: expected a traffic document").into());
    };
    if let Value::Object(members) = &mut body {
        members.retain(|name, _| !Traffic::READ_ONLY.contains(&name.as_str()));
    }
    let proposal = match Proposal::parse(&body) {
        Ok(proposal) if twice.is_empty() => proposal,
        parsed => {
            let complaints = [twice, parsed.err().unwrap_or_default()].concat();
            return Err(Failure::several(Code::InvalidRequest, complaints).into());
        }
    };
    let if_match = match if_match {
        IfMatch::Absent => None,
        IfMatch::Revisions(revisions) => Some(revisions),
        // A document never goes away again, so there is nothing to compare once there is one.
        IfMatch::Any => {
            if target.entry(&admin.reader.snapshot())?.document().is_none() {
                let words =
                    format!("if-match: * asks for a traffic document that is there, and model {model} has none yet");
                return Err(Failure::new(Code::PreconditionFailed, words).into());
            }
            None
        }
    };
    let published = admin.handle.put_traffic(model.clone(), proposal, if_match, actor).await?;
    let snapshot = admin.reader.snapshot();
    let entry = snapshot.model(model.as_str()).map(Arc::as_ref);
    Ok(tagged(Traffic::of(model, published.revision, published.document, entry), published.revision))
}

fn tagged(traffic: Traffic, revision: u64) -> impl IntoResponse {
    ([(ETAG, format!("\"{revision}\""))], Json(traffic))
}

/// Send all un-pinned requests to one version
///
/// Replaces the split by that version alone and takes it out of the shadows; keeps rules, labels and all else. Promoting what
/// already serves alone changes nothing. A version that does not pass the gates that are asked for, else those of `model.toml`, is
/// not promoted.
#[utoipa::path(
    post, path = "/api/v1/models/{model}:promote", tag = "traffic",
    params(("model" = String, Path)),
    request_body = PromoteRequest,
    responses(
        (status = 200, description = "Done, or what would be done", body = PromotionAnswer),
        (status = 400, description = "The body is not right: every complaint at once", body = Problem),
        (status = 404, description = "No such model or version", body = Problem),
        (status = 409, description = "The version is not ready, its signature would break callers, or it does not pass a gate; for a \
                                      dry run, gates that fail are 200", body = Problem),
    )
)]
pub(super) async fn promote(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    body: Body,
) -> Result<Json<PromotionAnswer>, Refused> {
    let model = target.model()?;
    let mut members = Members::of(body, "{\"version\":\"2\",\"reason\":\"…\"}")?;
    let (version, reason) = (members.version(), members.reason());
    let (dry_run, allowed) = (members.flag("dry_run"), members.flag("allow_signature_change"));
    let gates = members.read("gates", Gates::parse);
    members.finish()?;
    // What is missing was complained of.
    let (Some(version), Some(reason)) = (version, reason) else {
        return Err(Failure::new(Code::InvalidRequest, "version and reason are required").into());
    };
    let ask = Promote { version, reason, dry_run, allow_signature_change: allowed, gates, actor };
    let promotion = admin.handle.promote(model, ask).await?;
    Ok(Json(PromotionAnswer::of(promotion, dry_run)))
}

/// Put back the document before the last change
///
/// Itself a change: twice returns to where you were. Versions that are not loaded are loaded first, and the answer says which.
#[utoipa::path(
    post, path = "/api/v1/models/{model}:rollback", tag = "traffic",
    params(("model" = String, Path)),
    request_body = RollbackRequest,
    responses(
        (status = 200, description = "Done", body = RollbackAnswer),
        (status = 400, description = "The body is not right", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "There is no document before, or a version it names cannot be made ready", body = Problem),
    )
)]
pub(super) async fn rollback(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    body: Body,
) -> Result<Json<RollbackAnswer>, Refused> {
    let model = target.model()?;
    let mut members = Members::of(body, "{\"reason\":\"…\"}")?;
    let reason = members.reason();
    members.finish()?;
    let Some(reason) = reason else {
        return Err(Failure::new(Code::InvalidRequest, "reason is required").into());
    };
    Ok(Json(admin.handle.rollback(model, reason, actor).await?.into()))
}
