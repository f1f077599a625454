//! Triton's model repository extension, for clients that speak it.

use super::Admin;
use super::answers::IndexEntry;
use super::ask::{Operator, Target};
use super::body::Json as Body;
use super::refused::Refused;
use super::shapes::{IndexRequest, Problem, RepositoryRequest};
use crate::model::{Code, Failure};
use crate::registry::{Entry, State, VersionStatus};
use axum::Json;
use axum::extract::State as Shared;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Every version there is
#[utoipa::path(
    post, path = "/v2/repository/index", operation_id = "repository_index", tag = "triton",
    request_body(content = Option<IndexRequest>, description = "May be empty"),
    responses(
        (status = 200, description = "In order of name and version", body = Vec<IndexEntry>),
        (status = 400, description = "The body is not right", body = Problem),
    )
)]
pub(super) async fn index(
    Shared(admin): Shared<Arc<Admin>>,
    Body { value: body, .. }: Body,
) -> Result<Json<Vec<IndexEntry>>, Refused> {
    // Members that Triton may add are no business of ours.
    let ready_only = match object(body)?.get("ready") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(ready)) => *ready,
        Some(other) => {
            return Err(
                Failure::new(Code::InvalidRequest, format!("ready: expected true or false, got {other}")).into()
            );
        }
    };
    let snapshot = admin.reader.snapshot();
    let mut entries: Vec<_> = snapshot.models().collect();
    entries.sort_by_key(|entry| entry.name());
    let mut index: Vec<IndexEntry> = entries.into_iter().flat_map(|entry| versions(entry)).collect();
    index.retain(|version| !ready_only || version.state == "READY");
    Ok(Json(index))
}

fn versions(entry: &Entry) -> Vec<IndexEntry> {
    let name = entry.name();
    if entry.versions().is_empty() {
        let reason = "no version of it was found".to_owned();
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

/// Bring a whole model back
///
/// Loads what its document names, and the rest; loading what is loaded is 200.
#[utoipa::path(
    post, path = "/v2/repository/models/{model}/load", operation_id = "repository_load", tag = "triton",
    params(("model" = String, Path)),
    request_body(content = Option<RepositoryRequest>, description = "May be empty"),
    responses(
        (status = 200, description = "It answers again"),
        (status = 400, description = "A parameter is not taken here", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
        (status = 409, description = "A version its document names cannot be made ready", body = Problem),
    )
)]
pub(super) async fn load(
    Shared(admin): Shared<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    Body { value: body, .. }: Body,
) -> Result<(), Refused> {
    let model = target.model()?;
    if let Some(name) = parameters(body)?.keys().next() {
        let words = if name == "config" || name.starts_with("file:") {
            format!(
                "parameter {name:?}: a version here is its files and cannot be overridden while it is loaded; settings stand in \
                 the model's model.toml, and other bytes are a new version"
            )
        } else {
            format!("parameter {name:?} is not known here")
        };
        return Err(Failure::new(Code::InvalidRequest, words).into());
    }
    Ok(admin.handle.load_model(model, actor).await?)
}

/// Take a whole model out
///
/// Its requests are answered 503 until it is loaded again; its document is kept.
#[utoipa::path(
    post, path = "/v2/repository/models/{model}/unload", operation_id = "repository_unload", tag = "triton",
    params(("model" = String, Path)),
    request_body(content = Option<RepositoryRequest>, description = "May be empty"),
    responses(
        (status = 200, description = "It is out"),
        (status = 400, description = "A parameter is not taken here", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn unload(
    Shared(admin): Shared<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    Body { value: body, .. }: Body,
) -> Result<(), Refused> {
    let model = target.model()?;
    // Triton's clients always send this one. Models here have no dependents, so both of its values mean the same.
    if let Some(name) = parameters(body)?.keys().find(|name| *name != "unload_dependents") {
        return Err(Failure::new(Code::InvalidRequest, format!("parameter {name:?} is not known here")).into());
    }
    Ok(admin.handle.unload_model(model, actor).await?)
}

fn object(body: Option<Value>) -> Result<Map<String, Value>, Failure> {
    match body {
        None => Ok(Map::new()),
        Some(Value::Object(members)) => Ok(members),
        Some(_) => Err(Failure::new(Code::InvalidRequest, "expected a JSON object or an empty body")),
    }
}

fn parameters(body: Option<Value>) -> Result<Map<String, Value>, Failure> {
    match object(body)?.remove("parameters") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(parameters)) => Ok(parameters),
        Some(_) => Err(Failure::new(Code::InvalidRequest, "parameters: expected a JSON object")),
    }
}
