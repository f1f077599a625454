//! Request bodies: each type is read from a body and is the schema in the `OpenAPI` document.

use super::body::{JsonBody, Members};
use super::error::ErrorResponse;
use super::schemas::GatesSchema;
use crate::model::{Code, Failure, Version};
use crate::model_settings::Gates;
use crate::rollout::Plan;
use crate::route::Proposal;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The body of a promote.
#[derive(ToSchema)]
pub(super) struct PromoteRequest {
    #[schema(value_type = String)]
    pub(super) version: Version,
    /// Kept in history and audit trail.
    pub(super) reason: String,
    /// Return what would change, and change nothing.
    #[schema(required = false)]
    pub(super) dry_run: bool,
    /// Accept a version whose signature breaks callers.
    #[schema(required = false)]
    pub(super) allow_signature_change: bool,
    /// What the version must pass. Absent: the gates of model.toml. `{}`: none.
    #[schema(required = false, value_type = GatesSchema)]
    pub(super) gates: Option<Gates>,
    /// Promote although nobody approved the version. Only for admins; the audit trail, the log and a metric have it.
    #[schema(required = false)]
    pub(super) break_glass: bool,
    /// The share of the gateways of a fleet that must have the version ready, over 0 and up to 1. Absent: all that should have the model.
    #[schema(required = false, minimum = 0, maximum = 1)]
    pub(super) quorum: Option<f64>,
}

/// The body of a rollback.
#[derive(ToSchema)]
pub(super) struct RollbackRequest {
    /// Kept in history and audit trail.
    pub(super) reason: String,
    /// The revision whose traffic document is put in force. Absent: the document before the last change; after a rollout that was taken
    /// back or aborted, it has to be given.
    #[schema(required = false, minimum = 1)]
    pub(super) to_revision: Option<u64>,
    /// Return what would change, and change nothing.
    #[schema(required = false)]
    pub(super) dry_run: bool,
    /// Go back although nobody approved a version that would answer again. Only for admins; the audit trail, the log and a metric have it.
    #[schema(required = false)]
    pub(super) break_glass: bool,
}

/// The body of a request that needs nothing but a reason.
#[derive(ToSchema)]
pub(super) struct ReasonRequest {
    /// Kept in history and audit trail.
    pub(super) reason: String,
}

/// The body of a load or an unload.
#[derive(ToSchema)]
pub(super) struct LoadRequest {
    /// Kept in the audit trail.
    #[schema(required = false)]
    pub(super) reason: Option<String>,
}

/// The body of a repository index.
#[derive(ToSchema)]
pub(super) struct IndexRequest {
    /// List ready versions only.
    #[schema(required = false)]
    pub(super) ready: bool,
}

/// The body of a repository load or unload.
#[derive(ToSchema)]
pub(super) struct RepositoryRequest {
    /// Triton's overrides (`config`, `file:…`) are refused: a version is immutable.
    #[schema(required = false, value_type = Value)]
    pub(super) parameters: Map<String, Value>,
}

impl PromoteRequest {
    pub(super) fn read(body: JsonBody) -> Result<PromoteRequest, Failure> {
        let mut members = Members::of(body, "{\"version\":\"2\",\"reason\":\"…\"}")?;
        let (version, reason) = (members.version(), members.reason());
        let (dry_run, allow_signature_change) = (members.flag("dry_run"), members.flag("allow_signature_change"));
        let gates = members.parse("gates", Gates::parse);
        let break_glass = members.flag("break_glass");
        let quorum = members.quorum();
        members.finish()?;
        let (version, reason) = (required(version, "version")?, required(reason, "reason")?);
        Ok(PromoteRequest { version, reason, dry_run, allow_signature_change, gates, break_glass, quorum })
    }
}

impl RollbackRequest {
    pub(super) fn read(body: JsonBody) -> Result<RollbackRequest, Failure> {
        let mut members = Members::of(body, "{\"reason\":\"…\"}")?;
        let (reason, dry_run, break_glass) = (members.reason(), members.flag("dry_run"), members.flag("break_glass"));
        let to_revision = members.take("to_revision");
        let revision = to_revision.as_ref().and_then(Value::as_u64).filter(|revision| *revision > 0);
        if to_revision.is_some() && revision.is_none() {
            members.complain("to_revision", "a revision of the history, such as 3", to_revision.as_ref());
        }
        members.finish()?;
        Ok(RollbackRequest { reason: required(reason, "reason")?, to_revision: revision, dry_run, break_glass })
    }
}

impl ReasonRequest {
    pub(super) fn read(body: JsonBody) -> Result<ReasonRequest, Failure> {
        let mut members = Members::of(body, "{\"reason\":\"…\"}")?;
        let reason = members.reason();
        members.finish()?;
        Ok(ReasonRequest { reason: required(reason, "reason")? })
    }
}

impl LoadRequest {
    pub(super) fn read(body: JsonBody) -> Result<LoadRequest, Failure> {
        let mut members = Members::of(body, "{}")?;
        let reason = members.reason_if_given();
        members.finish()?;
        Ok(LoadRequest { reason })
    }
}

impl IndexRequest {
    /// Unknown members are ignored, because newer clients of Triton may send more.
    pub(super) fn read(body: JsonBody) -> Result<IndexRequest, Failure> {
        let mut members = Members::of(body, "{\"ready\":true}")?;
        let ready = members.flag("ready");
        members.finish_without_unknown()?;
        Ok(IndexRequest { ready })
    }
}

impl RepositoryRequest {
    /// Unknown members are ignored, because newer clients of Triton may send more. Parameters of `null` count as absent.
    pub(super) fn read(body: JsonBody) -> Result<RepositoryRequest, Failure> {
        let mut members = Members::of(body, "{\"parameters\":{}}")?;
        let mut parameters = members.object("parameters");
        members.finish_without_unknown()?;
        parameters.retain(|_, value| !value.is_null());
        Ok(RepositoryRequest { parameters })
    }
}

/// Reads a plan, with duplicate members among the complaints, and whether its first step is only to be shown.
pub(super) fn read_plan(JsonBody { value, mut complaints }: JsonBody) -> Result<(Plan, bool), ErrorResponse> {
    let mut value = value.unwrap_or(Value::Null);
    let dry_run = match value.as_object_mut().and_then(|members| members.remove("dry_run")) {
        None | Some(Value::Null) => false,
        Some(Value::Bool(dry_run)) => dry_run,
        Some(other) => {
            let other: String = other.to_string().chars().take(80).collect();
            complaints.push(format!("dry_run: expected true or false, got {other}"));
            false
        }
    };
    Ok((with_duplicates(complaints, Plan::parse(&value))?, dry_run))
}

/// Reads a traffic document, with duplicate members among the complaints.
pub(super) fn read_proposal(value: &Value, duplicates: Vec<String>) -> Result<Proposal, ErrorResponse> {
    with_duplicates(duplicates, Proposal::parse(value))
}

fn with_duplicates<T>(mut duplicates: Vec<String>, parsed: Result<T, Vec<String>>) -> Result<T, ErrorResponse> {
    match parsed {
        Ok(value) if duplicates.is_empty() => Ok(value),
        parsed => {
            duplicates.extend(parsed.err().unwrap_or_default());
            Err(Failure::several(Code::InvalidRequest, duplicates).into())
        }
    }
}

/// An absent required member is among the complaints already, so this fails only by mistake.
fn required<T>(value: Option<T>, name: &str) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::new(Code::InvalidRequest, format!("{name} is required")))
}
