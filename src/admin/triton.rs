//! Triton's model repository extension.

use super::Admin;
use super::body::JsonBody;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::{Operator, Target};
use super::requests::{IndexRequest, RepositoryRequest};
use super::schemas::Problem;
use crate::access::Action;
use crate::model::{Code, Failure, ModelName, Version};
use crate::registry::{Entry, State, VersionStatus};
use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// One entry of the repository index.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IndexEntry {
    #[schema(value_type = String)]
    name: ModelName,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    version: Option<Version>,
    /// READY, LOADING, UNLOADING or UNAVAILABLE.
    state: &'static str,
    reason: String,
}

/// All versions of all models
#[utoipa::path(
    post, path = "/v2/repository/index", operation_id = "repository_index", tag = "triton",
    request_body(content = Option<IndexRequest>, description = "May be empty"),
    responses(
        (status = 200, description = "Ordered by name and version", body = Vec<IndexEntry>),
        (status = 400, description = "The body is wrong", body = Problem),
    )
)]
pub(super) async fn index(
    Shared(admin): Shared<Arc<Admin>>,
    Caller(caller): Caller,
    body: JsonBody,
) -> Result<Json<Vec<IndexEntry>>, ErrorResponse> {
    let IndexRequest { ready } = IndexRequest::read(body)?;
    let snapshot = admin.reader.snapshot();
    let visible = |entry: &&Arc<Entry>| caller.may(Action::View, Some(entry.name().as_str()));
    let mut entries: Vec<_> = snapshot.models().filter(visible).collect();
    entries.sort_by_key(|entry| entry.name());
    let mut index: Vec<IndexEntry> = entries.into_iter().flat_map(|entry| versions(entry)).collect();
    index.retain(|version| !ready || version.state == "READY");
    Ok(Json(index))
}

fn versions(entry: &Entry) -> Vec<IndexEntry> {
    let name = entry.name();
    if entry.versions().is_empty() {
        let reason = "no version was found".to_owned();
        return vec![IndexEntry { name: name.clone(), version: None, state: "UNAVAILABLE", reason }];
    }
    let version = |status: &VersionStatus| {
        let (state, reason) = match status.state {
            State::Ready | State::Serving if entry.taken_out() => ("UNAVAILABLE", Some("unloaded".to_owned())),
            State::Ready | State::Serving => ("READY", None),
            State::Pending | State::Loading | State::Verifying | State::Warming => ("LOADING", status.reason.clone()),
            State::Draining => ("UNLOADING", status.reason.clone()),
            State::Unloaded => ("UNAVAILABLE", status.reason.clone().or(Some("unloaded".to_owned()))),
            State::Failed => ("UNAVAILABLE", status.reason.clone().or(Some("failed".to_owned()))),
        };
        IndexEntry { name: name.clone(), version: Some(status.version), state, reason: reason.unwrap_or_default() }
    };
    entry.versions().values().map(version).collect()
}

/// Load a whole model
///
/// Loads the versions that its traffic document names, and the others. Loading a loaded model is 200.
#[utoipa::path(
    post, path = "/v2/repository/models/{model}/load", operation_id = "repository_load", tag = "triton",
    params(("model" = String, Path)),
    request_body(content = Option<RepositoryRequest>, description = "May be empty"),
    responses(
        (status = 200, description = "The model serves again"),
        (status = 400, description = "A parameter is not supported", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "A version that its traffic document names cannot be made ready", body = Problem),
    )
)]
pub(super) async fn load(
    Shared(admin): Shared<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<(), ErrorResponse> {
    let model = target.model()?;
    if let Some(name) = RepositoryRequest::read(body)?.parameters.keys().next() {
        let message = if name == "config" || name.starts_with("file:") {
            format!(
                "parameter {name:?} is not supported: the files of a version cannot be overridden while it is loaded; change settings \
                 in the model's model.toml, and push other bytes as a new version"
            )
        } else {
            format!("parameter {name:?} is unknown")
        };
        return Err(Failure::new(Code::InvalidRequest, message).into());
    }
    Ok(admin.handle.load_model(model, actor).await?)
}

/// Unload a whole model
///
/// Its requests are answered 503 until it is loaded again. Its traffic document is kept.
#[utoipa::path(
    post, path = "/v2/repository/models/{model}/unload", operation_id = "repository_unload", tag = "triton",
    params(("model" = String, Path)),
    request_body(content = Option<RepositoryRequest>, description = "May be empty"),
    responses(
        (status = 200, description = "The model is unloaded"),
        (status = 400, description = "A parameter is not supported", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn unload(
    Shared(admin): Shared<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<(), ErrorResponse> {
    let model = target.model()?;
    // Triton's clients always send unload_dependents. Models have no dependents here, so both values mean the same.
    if let Some(name) = RepositoryRequest::read(body)?.parameters.keys().find(|name| *name != "unload_dependents") {
        return Err(Failure::new(Code::InvalidRequest, format!("parameter {name:?} is unknown")).into());
    }
    Ok(admin.handle.unload_model(model, actor).await?)
}
