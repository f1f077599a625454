//! Handlers of models and versions: status, load, unload.

use super::Admin;
use super::body::JsonBody;
use super::caller::Caller;
use super::error::ErrorResponse;
use super::extract::{Operator, Parameters, Target};
use super::requests::{LoadRequest, ReasonRequest};
use super::responses::models::{Changed, InFlight, Model, Models, RetiredModel, VersionDetail, unknown_version};
use super::schemas::Problem;
use super::wait::{self, MAX_WAIT};
use crate::access::Action;
use crate::lifecycle::LoadOutcome;
use crate::model::{ModelName, Version};
use crate::registry;
use crate::settings::parse_duration;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;

/// All models
#[utoipa::path(
    get, path = "/api/v1/models", operation_id = "list_models", tag = "models",
    responses((status = 200, description = "Those that the caller may see, ordered by name", body = Models))
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>, Caller(caller): Caller) -> Json<Models> {
    let snapshot = admin.reader.snapshot();
    let in_flight = InFlight::now(&admin.telemetry);
    let visible = |entry: &&Arc<registry::Entry>| caller.may(Action::View, Some(entry.name().as_str()));
    let mut entries: Vec<_> = snapshot.models().filter(visible).collect();
    entries.sort_by_key(|entry| entry.name());
    Json(Models { models: entries.into_iter().map(|entry| Model::of(entry, &in_flight)).collect() })
}

/// One model
///
/// Its versions with their states, its traffic document with the revision, and the arms that answer now.
#[utoipa::path(
    get, path = "/api/v1/models/{model}", operation_id = "show_model", tag = "models",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<Model>, ErrorResponse> {
    let snapshot = admin.reader.snapshot();
    Ok(Json(Model::of(target.entry(&snapshot)?, &InFlight::now(&admin.telemetry))))
}

/// One version
///
/// Its state and, after it was loaded, its signature, files, engine, times and metadata. With `wait_for`, the answer comes when the version has that
/// state or has passed it (`"waited": "reached"`), when it does not get there by itself any more (`unreachable`: it failed or is unloaded), or after
/// `timeout` (`timed_out`). A version that does not exist yet is waited for.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/versions/{version}", operation_id = "show_version", tag = "models",
    params(
        ("model" = String, Path), ("version" = String, Path),
        ("wait_for" = Option<String>, Query, description = "The name of a state"),
        ("timeout" = Option<String>, Query, description = "With wait_for: such as 30s, at most 60s, which is the default"),
    ),
    responses(
        (status = 200, description = "The version", body = VersionDetail),
        (status = 400, description = "`wait_for` is no state, or `timeout` is no duration", body = Problem),
        (status = 404, description = "The model has no such version", body = Problem),
        (status = 429, description = "Too many requests wait", body = Problem),
    )
)]
pub(super) async fn version(
    State(admin): State<Arc<Admin>>,
    target: Target,
    mut parameters: Parameters,
) -> Result<Json<VersionDetail>, ErrorResponse> {
    let state = parameters.take("wait_for", |text| {
        let names = registry::State::ALL.map(registry::State::as_str).join(", ");
        registry::State::parse(text).ok_or_else(|| format!("a state ({names})"))
    });
    let timeout = parameters.take("timeout", |text| {
        let most = MAX_WAIT.as_secs();
        parse_duration(text)
            .filter(|d| *d <= MAX_WAIT)
            .ok_or_else(|| format!("a duration of at most {most}s, such as 30s"))
    });
    parameters.finish()?;
    let version = target.version()?;
    let waited = match state {
        None => None,
        Some(state) => {
            let find = |snapshot: &registry::Snapshot| {
                snapshot
                    .model(target.model_text())
                    .and_then(|entry| entry.versions().get(&version))
                    .map(|status| status.state)
            };
            Some(wait::until(&admin, state, timeout.unwrap_or(MAX_WAIT), find).await?)
        }
    };
    let snapshot = admin.reader.snapshot();
    let entry = target.entry(&snapshot)?;
    let Some(status) = entry.versions().get(&version) else { return Err(unknown_version(entry, version)) };
    Ok(Json(VersionDetail::of(entry.name(), status, &InFlight::now(&admin.telemetry)).after(waited)))
}

/// Load a version
///
/// Loads a version that was unloaded or has failed. Returns when it is ready. Loading a loaded version is 200.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/versions/{version}:load", operation_id = "load_version", tag = "models",
    params(
        ("model" = String, Path), ("version" = String, Path),
        ("wait" = Option<bool>, Query, description = "false: return at once, with 202"),
    ),
    request_body = Option<LoadRequest>,
    responses(
        (status = 200, description = "The version is loaded", body = Changed),
        (status = 202, description = "The version is being loaded", body = Changed),
        (status = 400, description = "`wait` is neither true nor false, or given twice", body = Problem),
        (status = 404, description = "The models directory has no such version", body = Problem),
        (status = 409, description = "The version failed; the error says in which stage and why", body = Problem),
    )
)]
pub(super) async fn load(
    State(admin): State<Arc<Admin>>,
    target: Target,
    parameters: Parameters,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<(StatusCode, Json<Changed>), ErrorResponse> {
    let (model, version, wait, reason) = read(&target, parameters, body)?;
    let outcome = admin.handle.load(model.clone(), version, wait, reason, actor).await?;
    Ok(changed(&admin, model, version, outcome))
}

/// Unload a version
///
/// It stays unloaded until it is loaded again. Returns when its memory is freed. Unloading an unloaded version is 200.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/versions/{version}:unload", operation_id = "unload_version", tag = "models",
    params(
        ("model" = String, Path), ("version" = String, Path),
        ("wait" = Option<bool>, Query, description = "false: return at once, with 202"),
    ),
    request_body = Option<LoadRequest>,
    responses(
        (status = 200, description = "The version is unloaded", body = Changed),
        (status = 202, description = "The version is being unloaded", body = Changed),
        (status = 400, description = "`wait` is neither true nor false, or given twice", body = Problem),
        (status = 404, description = "No such model or version", body = Problem),
        (status = 409, description = "The traffic document names it", body = Problem),
    )
)]
pub(super) async fn unload(
    State(admin): State<Arc<Admin>>,
    target: Target,
    parameters: Parameters,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<(StatusCode, Json<Changed>), ErrorResponse> {
    let (model, version, wait, reason) = read(&target, parameters, body)?;
    let outcome = admin.handle.unload(model.clone(), version, wait, reason, actor).await?;
    Ok(changed(&admin, model, version, outcome))
}

/// Retire a model
///
/// Its versions are unloaded and stay unloaded, also after a restart. Its requests are answered 404 with the time and the reason. Its
/// files, its traffic document and its history stay; promoting a version brings it back. Retiring a retired model is 200.
#[utoipa::path(
    delete, path = "/api/v1/models/{model}", operation_id = "retire_model", tag = "models",
    params(("model" = String, Path)),
    request_body = ReasonRequest,
    responses(
        (status = 200, description = "The model is retired", body = RetiredModel),
        (status = 400, description = "The body is wrong", body = Problem),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn retire(
    State(admin): State<Arc<Admin>>,
    target: Target,
    Operator(actor): Operator,
    body: JsonBody,
) -> Result<Json<RetiredModel>, ErrorResponse> {
    let model = target.model()?;
    let ReasonRequest { reason } = ReasonRequest::read(body)?;
    Ok(Json(admin.handle.retire(model, reason, actor).await?.into()))
}

/// The model, the version and whether to wait.
fn read(
    target: &Target,
    mut parameters: Parameters,
    body: JsonBody,
) -> Result<(ModelName, Version, bool, Option<String>), ErrorResponse> {
    let (model, version) = (target.model()?, target.version()?);
    let wait = parameters.take("wait", |text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false".to_owned()),
    });
    parameters.finish()?;
    let LoadRequest { reason } = LoadRequest::read(body)?;
    Ok((model, version, wait.unwrap_or(true), reason))
}

fn changed(admin: &Admin, model: ModelName, version: Version, outcome: LoadOutcome) -> (StatusCode, Json<Changed>) {
    let status = match outcome {
        LoadOutcome::Done => StatusCode::OK,
        LoadOutcome::Accepted => StatusCode::ACCEPTED,
    };
    let state = state_of(admin, &model, version);
    (status, Json(Changed { model, version, state, next: None, files: None }))
}

/// The published state. A version that is not published yet is pending.
pub(super) fn state_of(admin: &Admin, model: &ModelName, version: Version) -> registry::State {
    let snapshot = admin.reader.snapshot();
    let status = snapshot.model(model.as_str()).and_then(|entry| entry.versions().get(&version));
    status.map_or(registry::State::Pending, |status| status.state)
}
