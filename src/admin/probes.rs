//! For orchestrators and scrapers: live, ready, metrics.

use super::Admin;
use super::answers::{Live, Ready};
use super::refused::Refused;
use super::shapes::Problem;
use crate::model::{Code, Failure};
use crate::registry::{Snapshot, State};
use axum::Json;
use axum::extract::State as Shared;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use std::sync::Arc;

/// Whether the process is up
#[utoipa::path(get, path = "/healthz", tag = "probes", responses((status = 200, description = "It is", body = Live)))]
pub(super) async fn healthz() -> Json<Live> {
    Json(Live { live: true })
}

/// Whether callers should be sent here
///
/// As the data plane's readiness: every version found at start is ready or failed, and every model's document can be served.
#[utoipa::path(
    get, path = "/readyz", tag = "probes",
    responses(
        (status = 200, description = "They should", body = Ready),
        (status = 503, description = "Not yet, or not any more; the details say what is waited for", body = Problem),
    )
)]
pub(super) async fn readyz(Shared(admin): Shared<Arc<Admin>>) -> Result<Json<Ready>, Refused> {
    if (admin.stopping)() {
        return Err(Failure::new(Code::NotReady, "the server is stopping").into());
    }
    let snapshot = admin.reader.snapshot();
    if snapshot.ready {
        return Ok(Json(Ready { ready: true }));
    }
    let mut failure = Failure::new(Code::NotReady, "not every model is ready yet");
    failure.details = waited_for(&snapshot);
    Err(failure.into())
}

fn waited_for(snapshot: &Snapshot) -> Vec<String> {
    let mut waited = Vec::new();
    for entry in snapshot.models() {
        let name = entry.name();
        if !entry.can_serve() && !entry.taken_out() {
            waited.push(format!("model {name} cannot be served yet"));
        }
        for status in entry.versions().values() {
            if matches!(status.state, State::Pending | State::Loading | State::Verifying | State::Warming) {
                waited.push(format!("model {name}, version {}: {}", status.version, status.state));
            }
        }
    }
    waited.sort();
    waited
}

/// Everything that is counted
#[utoipa::path(
    get, path = "/metrics", tag = "probes",
    responses((status = 200, description = "Prometheus text format", content_type = "text/plain", body = String))
)]
pub(super) async fn metrics(Shared(admin): Shared<Arc<Admin>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], admin.telemetry.render())
}
