//! Models and their versions: what is so, load and unload.

use super::Admin;
use super::answers::{Changed, InFlight, Model, Models, VersionDetail, no_version};
use super::ask::{Operator, Parameters, Target};
use super::body::{Json as Body, Members};
use super::refused::Refused;
use super::shapes::Problem;
use crate::lifecycle::LoadOutcome;
use crate::model::{ModelName, Version};
use crate::registry;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;

/// Every model
#[utoipa::path(
    get, path = "/api/v1/models", operation_id = "list_models", tag = "models",
    responses((status = 200, description = "In order of name", body = Models))
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Json<Models> {
    let snapshot = admin.reader.snapshot();
    let in_flight = InFlight::now(&admin.telemetry);
    let mut entries: Vec<_> = snapshot.models().collect();
    entries.sort_by_key(|entry| entry.name());
    Json(Models { models: entries.into_iter().map(|entry| Model::of(entry, &in_flight)).collect() })
}

/// One model
///
/// Its versions with their states, its traffic document with its revision, and what answers now.
#[utoipa::path(
    get, path = "/api/v1/models/{model}", operation_id = "show_model", tag = "models",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<Model>, Refused> {
    let snapshot = admin.reader.snapshot();
    Ok(Json(Model::of(target.entry(&snapshot)?, &InFlight::now(&admin.telemetry))))
}

/// One version
///
/// Its state and, once it was loaded, its signature, files, engine, times and metadata.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/versions/{version}", operation_id = "show_version", tag = "models",
    params(("model" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, description = "The version", body = VersionDetail),
        (status = 404, description = "The model has no such version", body = Problem),
    )
)]
pub(super) async fn version(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<VersionDetail>, Refused> {
    let snapshot = admin.reader.snapshot();
    let entry = target.entry(&snapshot)?;
    let version = target.version()?;
    let Some(status) = entry.versions().get(&version) else { return Err(no_version(entry, version)) };
    Ok(Json(VersionDetail::of(entry.name(), status, &InFlight::now(&admin.telemetry))))
}

/// Load a version
///
/// That was unloaded or has failed. Answers when it is ready. Loading what is loaded is 200.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/versions/{version}:load", operation_id = "load_version", tag = "models",
    params(
        ("model" = String, Path), ("version" = String, Path),
        ("wait" = Option<bool>, Query, description = "false: answer at once, with 202"),
    ),
    responses(
        (status = 200, description = "It is loaded", body = Changed),
        (status = 202, description = "It is being loaded", body = Changed),
        (status = 404, description = "The models directory has no such version", body = Problem),
        (status = 409, description = "It failed: the sentence says in which stage and why", body = Problem),
    )
)]
pub(super) async fn load(
    State(admin): State<Arc<Admin>>,
    target: Target,
    parameters: Parameters,
    Operator(actor): Operator,
    body: Body,
) -> Result<(StatusCode, Json<Changed>), Refused> {
    let (model, version, wait) = which(&target, parameters, body)?;
    let outcome = admin.handle.load(model.clone(), version, wait, actor).await?;
    Ok(changed(&admin, model, version, outcome))
}

/// Unload a version
///
/// It stays unloaded until it is loaded again. Answers when its memory is given back. Unloading what is unloaded is 200.
#[utoipa::path(
    post, path = "/api/v1/models/{model}/versions/{version}:unload", operation_id = "unload_version", tag = "models",
    params(
        ("model" = String, Path), ("version" = String, Path),
        ("wait" = Option<bool>, Query, description = "false: answer at once, with 202"),
    ),
    responses(
        (status = 200, description = "It is unloaded", body = Changed),
        (status = 202, description = "It is being unloaded", body = Changed),
        (status = 404, description = "There is no such version", body = Problem),
        (status = 409, description = "The traffic document names it", body = Problem),
    )
)]
pub(super) async fn unload(
    State(admin): State<Arc<Admin>>,
    target: Target,
    parameters: Parameters,
    Operator(actor): Operator,
    body: Body,
) -> Result<(StatusCode, Json<Changed>), Refused> {
    let (model, version, wait) = which(&target, parameters, body)?;
    let outcome = admin.handle.unload(model.clone(), version, wait, actor).await?;
    Ok(changed(&admin, model, version, outcome))
}

fn which(target: &Target, mut parameters: Parameters, body: Body) -> Result<(ModelName, Version, bool), Refused> {
    let (model, version) = (target.model()?, target.version()?);
    let wait = parameters.take("wait", |text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false".to_owned()),
    });
    parameters.finish()?;
    Members::of(body, "{}")?.finish()?;
    Ok((model, version, wait.unwrap_or(true)))
}

fn changed(admin: &Admin, model: ModelName, version: Version, outcome: LoadOutcome) -> (StatusCode, Json<Changed>) {
    let status = match outcome {
        LoadOutcome::Done => StatusCode::OK,
        LoadOutcome::Accepted => StatusCode::ACCEPTED,
    };
    let state = state_of(admin, &model, version);
    (status, Json(Changed { model, version, state, next: None }))
}

/// As it is published; a version that is not there yet is pending.
pub(super) fn state_of(admin: &Admin, model: &ModelName, version: Version) -> registry::State {
    let snapshot = admin.reader.snapshot();
    let status = snapshot.model(model.as_str()).and_then(|entry| entry.versions().get(&version));
    status.map_or(registry::State::Pending, |status| status.state)
}
