//! Handlers of the sources of models: what they have, and what is stored of it.

use super::Admin;
use crate::ledger::rfc3339;
use crate::mirror::SourceReport;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Where versions come from beside the models directory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SourceList {
    /// In the order of precedence: the first one that has a version gives it.
    sources: Vec<SourceView>,
    cache: CacheView,
}

#[derive(Debug, Serialize, ToSchema)]
struct CacheView {
    /// The bytes of all files from sources in the data directory.
    bytes: u64,
    /// The most (`models.sources.cache`).
    limit: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct SourceView {
    source: String,
    /// `starting` (not listed yet), `ok` or `failing`.
    state: &'static str,
    /// Why it could not be listed.
    message: Option<String>,
    /// Times in a row that it could not be listed.
    failures: u32,
    /// When it was last listed completely.
    last_read: Option<String>,
    /// Seconds until it is listed again.
    next_read_s: Option<f64>,
    /// What is there and is not read, at most 20.
    remarks: Vec<String>,
    versions: Vec<SourceVersion>,
}

#[derive(Debug, Serialize, ToSchema)]
struct SourceVersion {
    model: String,
    version: String,
    /// `waiting` (its files may still be changing, or it waits for its turn), `downloading`, `stored`, `failed` (it is tried again) or
    /// `not_kept` (another place gives it, or there is no room).
    state: &'static str,
    /// As far as the source tells.
    bytes: u64,
    /// Why it is in that state.
    message: Option<String>,
}

/// The sources of models
///
/// Buckets, web servers and registries that versions are read from, what they have, and what is stored of it.
#[utoipa::path(
    get, path = "/api/v1/sources", operation_id = "list_sources", tag = "models",
    responses((status = 200, description = "In the order of precedence", body = SourceList))
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Json<SourceList> {
    let mirror = admin.mirror.clone();
    // A source that is taken in may hold what the report is read from. A panic there is that of the report.
    let report = tokio::task::spawn_blocking(move || mirror.report()).await.unwrap_or_default();
    let (bytes, limit) = report.cache;
    Json(SourceList { sources: report.sources.into_iter().map(view).collect(), cache: CacheView { bytes, limit } })
}

fn view(report: SourceReport) -> SourceView {
    let state = report.state();
    let version = |version: crate::mirror::VersionReport| SourceVersion {
        model: version.model.to_string(),
        version: version.version.to_string(),
        state: version.state.as_str(),
        bytes: version.bytes,
        message: version.message,
    };
    SourceView {
        source: report.source,
        state,
        message: report.message,
        failures: report.failures,
        last_read: report.last_read.map(rfc3339),
        next_read_s: report.next_read.map(|next| next.as_secs_f64()),
        remarks: report.remarks,
        versions: report.versions.into_iter().map(version).collect(),
    }
}

/// Read the sources now
///
/// Has every source listed at once, and not after its interval. The answer does not wait for it.
#[utoipa::path(
    post, path = "/api/v1/sources:read", operation_id = "read_sources", tag = "models",
    responses((status = 202, description = "The sources are being read"))
)]
pub(super) async fn read(State(admin): State<Arc<Admin>>) -> StatusCode {
    admin.mirror.read_now();
    StatusCode::ACCEPTED
}
