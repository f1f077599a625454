//! Handler of the callers of the data plane: who sends the most requests.

use super::Admin;
use crate::callers::CallerFacts;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// The callers of the data plane with the most requests in the last minute.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CallerList {
    /// At most 100, the busiest first.
    callers: Vec<CallerView>,
}

#[derive(Debug, Serialize, ToSchema)]
struct CallerView {
    /// The name of the token, certificate or identity, or else the address.
    caller: String,
    /// Whether it proved a name.
    named: bool,
    /// The priority of its requests that ask for none: `interactive` or `batch`.
    priority: &'static str,
    /// Predict and feedback requests that are not answered yet.
    in_flight: usize,
    /// Requests of the last 60 s, in steps of 10 s.
    last_minute: u64,
    /// Those of them that a limit refused with 429 or 503.
    refused_last_minute: u64,
    /// Seconds since its last request.
    idle_s: f64,
}

/// The busiest callers
///
/// Who sends the most requests now, and whose requests are refused.
#[utoipa::path(
    get, path = "/api/v1/callers", tag = "access",
    responses((status = 200, description = "The busiest first", body = CallerList))
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Json<CallerList> {
    const MOST: usize = 100;
    let view = |facts: CallerFacts| CallerView {
        caller: facts.caller,
        named: facts.named,
        priority: facts.priority.as_str(),
        in_flight: facts.in_flight,
        last_minute: facts.last_minute,
        refused_last_minute: facts.refused_last_minute,
        idle_s: facts.idle.as_secs_f64(),
    };
    Json(CallerList { callers: admin.callers.busiest(MOST, Instant::now()).into_iter().map(view).collect() })
}
