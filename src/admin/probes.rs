//! Handlers for orchestrators and scrapers: liveness, readiness, metrics.

use super::error::ErrorResponse;
use super::schemas::Problem;
use super::{Admin, Memory, Threads};
use crate::model::{Code, Failure, ModelName, Version};
use crate::registry::{Snapshot, State, Unserved};
use crate::telemetry::OPENMETRICS;
use axum::Json;
use axum::extract::State as Shared;
use axum::response::IntoResponse;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Live {
    live: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the members of the answer")]
pub(super) struct Ready {
    ready: bool,
    /// Models whose traffic document cannot be served as a whole. They do not hold readiness.
    unserved: Vec<UnservedModel>,
    /// A sentence for each thread that is held by a run that does not end. Requests are answered by the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stuck_threads: Vec<String>,
    /// What an operator should look at, such as a certificate that expires within two weeks or cannot be loaded again. It does not hold
    /// readiness.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// The memory of requests. It does not hold readiness: what does not fit is refused.
    memory: MemoryAnswer,
}

/// What requests and what is made of them hold now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MemoryAnswer {
    /// Bodies, tensors, and answers until they are sent.
    requests: HeldBytes,
    /// Records that wait to be written.
    prediction_log: HeldBytes,
    /// Copies for shadows that wait or run.
    shadows: HeldBytes,
    /// Resident memory of the process; null where the kernel does not say.
    resident_bytes: Option<u64>,
}

/// Bytes that are held, and the most that may be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HeldBytes {
    held: u64,
    limit: u64,
}

impl MemoryAnswer {
    pub(super) fn of(memory: Memory) -> MemoryAnswer {
        let of = |(held, limit): (u64, u64)| HeldBytes { held, limit };
        MemoryAnswer {
            requests: of(memory.requests),
            prediction_log: of(memory.prediction_log),
            shadows: of(memory.shadows),
            resident_bytes: memory.resident,
        }
    }
}

/// A model whose traffic document cannot be served as a whole.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UnservedModel {
    #[schema(value_type = String)]
    model: ModelName,
    /// The versions that the document sends requests to and that are not loaded.
    #[schema(value_type = Vec<String>)]
    versions: Vec<Version>,
    /// Why they are not loaded.
    reason: String,
    /// What an operator can do.
    advice: String,
}

/// Liveness: whether the process answers requests, or only a restart helps
#[utoipa::path(
    get, path = "/healthz", tag = "probes",
    responses(
        (status = 200, description = "The process is up", body = Live),
        (status = 503, description = "Every I/O thread is held by a run, or lost threads are not replaced any more", body = Problem),
    )
)]
pub(super) async fn healthz(Shared(admin): Shared<Arc<Admin>>) -> Result<Json<Live>, ErrorResponse> {
    let threads = (admin.threads)();
    if threads.serving { Ok(Json(Live { live: true })) } else { Err(not_serving(threads).into()) }
}

fn not_serving(threads: Threads) -> Failure {
    let mut failure = Failure::new(Code::NotReady, "threads are held by runs that do not end: only a restart helps");
    failure.details = threads.stuck;
    failure
}

/// Readiness: whether callers should be sent here
///
/// The same as the data plane's readiness: every version found at start is ready or failed, and every model's traffic document is served
/// as far as it can be. What cannot be served is listed, and holds readiness only where nothing can be served.
#[utoipa::path(
    get, path = "/readyz", tag = "probes",
    responses(
        (status = 200, description = "Ready", body = Ready),
        (status = 503, description = "Starting, stopping or stuck; the details say what is missing", body = Problem),
    )
)]
pub(super) async fn readyz(Shared(admin): Shared<Arc<Admin>>) -> Result<Json<Ready>, ErrorResponse> {
    if (admin.stopping)() {
        return Err(Failure::new(Code::NotReady, "the server is stopping").into());
    }
    let threads = (admin.threads)();
    if !threads.serving {
        return Err(not_serving(threads).into());
    }
    let snapshot = admin.reader.snapshot();
    if snapshot.ready {
        let (unserved, stuck_threads) = (unserved(&snapshot), threads.stuck);
        return Ok(Json(Ready {
            ready: true,
            unserved,
            stuck_threads,
            warnings: (admin.warnings)(),
            memory: MemoryAnswer::of((admin.memory)()),
        }));
    }
    let mut failure = Failure::new(Code::NotReady, "not every model is ready yet");
    failure.details =
        not_ready(&snapshot).into_iter().chain((admin.warnings)()).chain(admin.mirror.awaited()).collect();
    Err(failure.into())
}

fn unserved(snapshot: &Snapshot) -> Vec<UnservedModel> {
    let mut models: Vec<UnservedModel> = snapshot
        .models()
        .filter_map(|entry| entry.unserved())
        .map(|Unserved { model, versions, reason, advice }| UnservedModel { model, versions, reason, advice })
        .collect();
    models.sort_by(|a, b| a.model.cmp(&b.model));
    models
}

/// What readiness waits for.
fn not_ready(snapshot: &Snapshot) -> Vec<String> {
    let mut missing = Vec::new();
    for entry in snapshot.models() {
        let name = entry.name();
        if let Some(unserved) = entry.unserved() {
            missing.push(unserved.to_string());
        } else if !entry.can_serve() && !entry.taken_out() {
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
    responses((status = 200, description = "Prometheus text format, or OpenMetrics where the client accepts it", content_type = "text/plain", body = String))
)]
pub(super) async fn metrics(Shared(admin): Shared<Arc<Admin>>, headers: HeaderMap) -> impl IntoResponse {
    if accepts_openmetrics(&headers) {
        return ([(CONTENT_TYPE, OPENMETRICS)], admin.telemetry.render_openmetrics());
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], admin.telemetry.render())
}

/// Whether the client names OpenMetrics, at a quality above 0.
fn accepts_openmetrics(headers: &HeaderMap) -> bool {
    let named = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    named.into_iter().any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
        let quality = parts.find_map(|part| part.strip_prefix("q=")).map(str::parse::<f64>);
        is_named && quality.is_none_or(|quality| quality.is_ok_and(|quality| quality > 0.0))
    })
}
