//! Handlers of approvals: what there is to look at, approve, reject.

use super::Admin;
use super::body::{JsonBody, Members};
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::Target;
use super::quality::quality_of;
use super::responses::models::{InFlight, VersionDetail, unknown_version};
use super::schemas::Problem;
use super::shadows::Shadow;
use crate::access::{Identity, Via};
use crate::ledger::{self, rfc3339};
use crate::lifecycle::{Actor, ApprovalState, ReviewRequest};
use crate::model::{Code, Failure, ModelName, Version};
use crate::registry::Entry;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::ToSchema;

/// The most bytes of everything that a reviewer attaches.
const MAX_ATTACHMENTS: usize = 256 << 10;
/// The most bytes of the evidence that is kept with a review. Beyond it, the worst pairs of shadows and the quality are left out.
const MAX_EVIDENCE: usize = 1 << 20;

/// The approval of a version, and what there is to look at.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Approval {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = String)]
    version: Version,
    /// Whether it gets un-pinned traffic only with an approval.
    required: bool,
    /// `approved`, `rejected`, `outdated` (other files were looked at) or `none`.
    status: &'static str,
    /// Identifies the files that are loaded now; null while it is not loaded.
    artifact: Option<String>,
    /// The newest review.
    review: Option<ReviewView>,
    /// Those who pushed it or asked for its traffic; none of them may approve it.
    proposers: BTreeSet<String>,
    /// What a reviewer looks at: `version` (files, signature, engine, golden cases, times, metadata with metrics and lineage), `shadow`
    /// and `quality`.
    evidence: Value,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReviewView {
    approved: bool,
    by: String,
    #[schema(format = DateTime)]
    at: String,
    reason: String,
    /// Identifies the files that were looked at.
    artifact: String,
}

/// The body of a review.
#[derive(ToSchema)]
#[schema(as = ReviewRequest)]
#[expect(dead_code, reason = "the schema of what `read` reads")]
pub(super) struct ReviewBody {
    /// Kept in the audit trail.
    reason: String,
    /// The `artifact` that was looked at. With other files it is 409. Absent: those that are loaded now.
    #[schema(required = false)]
    artifact: String,
    /// More that was looked at, such as the report of a replay. Kept with the review, 256 KiB at most.
    #[schema(required = false, value_type = Object)]
    attachments: Map<String, Value>,
}

/// What is to be decided.
struct Asked {
    reason: String,
    artifact: Option<String>,
    attachments: Map<String, Value>,
}

impl Asked {
    fn read(body: JsonBody) -> Result<Asked, Failure> {
        let mut members = Members::of(body, "{\"reason\":\"…\"}")?;
        let reason = members.reason();
        let artifact = members.parse("artifact", |value| {
            let is_digest = |text: &&str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
            let text = value.as_str().filter(is_digest).map(str::to_lowercase);
            text.ok_or_else(|| vec!["artifact: expected 64 hexadecimal digits".to_owned()])
        });
        let attachments = members.object("attachments");
        members.finish()?;
        let bytes = serde_json::to_vec(&attachments).map_or(usize::MAX, |text| text.len());
        if bytes > MAX_ATTACHMENTS {
            let message = format!("attachments: expected at most {MAX_ATTACHMENTS} bytes, got {bytes}");
            return Err(Failure::new(Code::InvalidRequest, message));
        }
        let reason = reason.ok_or_else(|| Failure::new(Code::InvalidRequest, "reason is required"))?;
        Ok(Asked { reason, artifact, attachments })
    }
}

/// The approval of a version
///
/// Who approved or rejected it, who may not, and what there is to look at first.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/versions/{version}/approval", operation_id = "show_approval", tag = "access",
    params(("model" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, description = "The approval", body = Approval),
        (status = 404, description = "The model has no such version", body = Problem),
    )
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<Approval>, ErrorResponse> {
    let version = target.version()?;
    let model = target.model()?;
    let evidence = {
        let snapshot = admin.reader.snapshot();
        evidence(&admin, target.entry(&snapshot)?, version)?
    };
    let ApprovalState { required, artifact, review, proposers } = admin.handle.approval(model.clone(), version).await?;
    let status = match &review {
        None => "none",
        Some(review) if artifact.as_ref().is_some_and(|artifact| *artifact != review.artifact) => "outdated",
        Some(review) if review.approved => "approved",
        Some(_) => "rejected",
    };
    let review = review.map(ReviewView::from);
    Ok(Json(Approval { model, version, required, status, artifact, review, proposers, evidence }))
}

/// Approve a version
///
/// Its files, as they are loaded now. What the server knows about it is kept with the approval in the audit trail. Who pushed it or asked
/// for its traffic may not approve it (403).
#[utoipa::path(
    post, path = "/api/v1/models/{model}/versions/{version}:approve", operation_id = "approve_version", tag = "access",
    params(("model" = String, Path), ("version" = String, Path)),
    request_body = ReviewBody,
    responses(
        (status = 200, description = "Approved", body = ReviewView),
        (status = 400, description = "The body is wrong; all complaints at once", body = Problem),
        (status = 404, description = "The model has no such version", body = Problem),
        (status = 409, description = "It is not loaded, or has other files than those that were looked at", body = Problem),
    )
)]
pub(super) async fn approve(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Caller(caller): Caller,
    body: JsonBody,
) -> Result<Json<ReviewView>, ErrorResponse> {
    review(&admin, &target, &caller, body, true).await
}

/// Reject a version
///
/// It gets no un-pinned traffic until somebody approves it. Traffic that it has already stays: roll back.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/versions/{version}:reject", operation_id = "reject_version", tag = "access",
    params(("model" = String, Path), ("version" = String, Path)),
    request_body = ReviewBody,
    responses(
        (status = 200, description = "Rejected", body = ReviewView),
        (status = 400, description = "The body is wrong; all complaints at once", body = Problem),
        (status = 404, description = "The model has no such version", body = Problem),
        (status = 409, description = "It is not loaded, or has other files than those that were looked at", body = Problem),
    )
)]
pub(super) async fn reject(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Caller(caller): Caller,
    body: JsonBody,
) -> Result<Json<ReviewView>, ErrorResponse> {
    review(&admin, &target, &caller, body, false).await
}

async fn review(
    admin: &Admin,
    target: &Target,
    caller: &Identity,
    body: JsonBody,
    approved: bool,
) -> Result<Json<ReviewView>, ErrorResponse> {
    if caller.via == Via::Unproven {
        let message = "a review needs credentials: without them nobody can tell two people apart (sluicegate token create --role approver)";
        return Err(Failure::new(Code::Forbidden, message).into());
    }
    let Asked { reason, artifact, attachments } = Asked::read(body)?;
    let (model, version) = (target.model()?, target.version()?);
    let evidence = {
        let snapshot = admin.reader.snapshot();
        let mut evidence = evidence(admin, target.entry(&snapshot)?, version)?;
        shorten(&mut evidence);
        if !attachments.is_empty() {
            evidence["attachments"] = attachments.into();
        }
        evidence
    };
    let actor = Actor(caller.name.clone());
    let request = ReviewRequest { version, artifact, approved, reason, evidence, actor };
    Ok(Json(admin.handle.review(model, request).await?.review.into()))
}

/// What the server knows about a version.
fn evidence(admin: &Admin, entry: &Entry, version: Version) -> Result<Value, ErrorResponse> {
    let Some(status) = entry.versions().get(&version) else { return Err(unknown_version(entry, version)) };
    let detail = VersionDetail::of(entry.name(), status, &InFlight::now(&admin.telemetry));
    let shadow = Shadow::of(&admin.log, entry, version, &admin.figures.of(entry.name()));
    // The worst pairs hold whole requests' answers, which may be personal data.
    let shadow = shadow.without_contents("not shown here");
    let text = |e: serde_json::Error| {
        Failure::new(Code::Internal, "the evidence cannot be written").with_internal(e.to_string())
    };
    let mut quality = serde_json::to_value(quality_of(admin, entry.name())).map_err(text)?;
    if let Some(arms) = quality["arms"].as_array_mut() {
        arms.retain(|arm| arm["version"] == version.to_string());
    }
    let version = serde_json::to_value(detail).map_err(text)?;
    Ok(json!({"version": version, "shadow": serde_json::to_value(shadow).map_err(text)?, "quality": quality}))
}

/// Keeps the evidence small enough for the audit trail.
fn shorten(evidence: &mut Value) {
    // They hold whole requests' answers, which may be personal data.
    for pair in evidence["shadow"]["primaries"].as_array_mut().into_iter().flatten() {
        pair["worst"] = json!([]);
    }
    let bytes = |value: &Value| serde_json::to_vec(value).map_or(usize::MAX, |text| text.len());
    for part in ["quality", "shadow"] {
        if bytes(evidence) > MAX_EVIDENCE {
            evidence[part] = Value::Null;
        }
    }
}

impl From<ledger::Review> for ReviewView {
    fn from(review: ledger::Review) -> ReviewView {
        let ledger::Review { artifact, approved, actor, ts, reason } = review;
        ReviewView { approved, by: actor, at: rfc3339(ts), reason, artifact }
    }
}
