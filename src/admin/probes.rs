//! Handlers for orchestrators and scrapers: liveness, readiness, metrics.

use super::Admin;
use super::error::ErrorResponse;
use super::schemas::Problem;
use crate::model::{Code, Failure};
use crate::registry::{Snapshot, State};
use axum::Json;
use axum::extract::State as Shared;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Live {
    live: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ready {
    ready: bool,
}

/// Liveness: whether the process is up
#[utoipa::path(get, path = "/healthz", tag = "probes", responses((status = 200, description = "The process is up", body = Live)))]
pub(super) async fn healthz() -> Json<Live> {
    Json(Live { live: true })
}

/// Readiness: whether callers should be sent here
///
/// The same as the data plane's readiness: every version found at start is ready or failed, and every model's traffic document can be
/// served.
#[utoipa::path(
    get, path = "/readyz", tag = "probes",
    responses(
        (status = 200, description = "Ready", body = Ready),
        (status = 503, description = "Starting or stopping; the details say what is missing", body = Problem),
    )
)]
pub(super) async fn readyz(Shared(admin): Shared<Arc<Admin>>) -> Result<Json<Ready>, ErrorResponse> {
    if (admin.stopping)() {
        return Err(Failure::new(Code::NotReady, "the server is stopping").into());
    }
    let snapshot = admin.reader.snapshot();
    if snapshot.ready {
        return Ok(Json(Ready { ready: true }));
    }
    let mut failure = Failure::new(Code::NotReady, "not every model is ready yet");
    failure.details = not_ready(&snapshot);
    Err(failure.into())
}

/// What readiness waits for.
fn not_ready(snapshot: &Snapshot) -> Vec<String> {
    let mut missing = Vec::new();
    for entry in snapshot.models() {
        let name = entry.name();
        if !entry.can_serve() && !entry.taken_out() {
            missing.push(format!("model {name} cannot serve yet"));
        }
        for status in entry.versions().values() {
            if matches!(status.state, State::Pending | State::Loading | State::Verifying | State::Warming) {
                missing.push(format!("model {name}, version {}: {}", status.version, status.state));
            }
        }
    }
    missing.sort();
    missing
}

/// Metrics
#[utoipa::path(
    get, path = "/metrics", tag = "probes",
    responses((status = 200, description = "Prometheus text format", content_type = "text/plain", body = String))
)]
pub(super) async fn metrics(Shared(admin): Shared<Arc<Admin>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], admin.telemetry.render())
}
