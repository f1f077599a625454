//! Handler of execution: where and how a model's versions run, and why.

use super::Admin;
use super::error::ErrorResponse;
use super::extract::Target;
use super::schemas::Problem;
use crate::execute::{Batching, RunCounts};
use crate::model::{ModelName, Version};
use crate::registry::{BreakerStatus, Entry, Loaded};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// Where and how a model's versions run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Execution {
    #[schema(value_type = String)]
    model: ModelName,
    /// A run that is expected to be shorter is executed on the thread that read the request.
    at_once_below_us: f64,
    /// Threads for all longer runs. All models share them fairly by time.
    workers: usize,
    /// The loaded versions, ordered.
    versions: Vec<VersionExecution>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionExecution {
    #[schema(value_type = String)]
    version: Version,
    engine: &'static str,
    batching: BatchingStatus,
    /// `at_once` in `model.toml`: true: every run on the thread that read the request; false: every run on a worker; null (not set): by
    /// the expected cost.
    at_once: Option<bool>,
    /// Why no request runs on the thread that read it, whatever its expected cost and `at_once` say: an operator whose time lies in values,
    /// or a run that was far slower than expected; null where requests may run there.
    never_at_once: Option<String>,
    /// `spread` in `model.toml`: true: requests with many rows are split across idle workers; false: never; null (not set): by the
    /// expected cost.
    spread: Option<bool>,
    /// Measured run times, ordered by size.
    cost: Vec<CostPoint>,
    runs: Runs,
    breaker: BreakerAnswer,
}

/// The breaker keeps requests from the version while its engine fails.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BreakerAnswer {
    /// `closed`; `open`: requests are refused, or answered by the fallback of the traffic document; `probing`: one request tries now.
    state: &'static str,
    /// Failures of the engine in the current window.
    failures: u32,
    /// Since the version was loaded: how often it opened, and the requests that it kept from the version.
    opened: u64,
    kept_off: u64,
    /// How often it stayed closed, because the version answered a request of its warm-up: the values of the failing requests were to blame.
    spared: u64,
}

/// Whether concurrent requests are batched.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchingAnswer)]
pub(super) struct BatchingStatus {
    enabled: bool,
    why: String,
    /// The largest number of rows in a batch; null without batching.
    max_rows: Option<usize>,
    /// The size, in elements of all inputs, beyond which larger batches do not become cheaper per element, as far as measured; null
    /// without batching and before the first run.
    worth_elements: Option<usize>,
}

/// The run time for one size.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CostPoint {
    /// Elements of all inputs together. The time is smoothed over runs of half to twice this size.
    elements: usize,
    us: f64,
    /// Whether requests of this size run on the thread that read them.
    at_once: bool,
}

/// Counts since the version was loaded.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Runs {
    /// Runs of one request, including those of the warm-up.
    alone: u64,
    /// Runs of several requests in a batch, by rows.
    together: Vec<Together>,
    /// Those of them on the thread that read their requests, because the requests were ready in the same turn of its event loop.
    gathered: u64,
    /// The requests in these runs.
    gathered_requests: u64,
    /// Requests that were split by rows across idle workers.
    spread: u64,
    /// Split requests that failed and then succeeded as one run. After three of them the version's requests are not split any more.
    cut_in_vain: u64,
    /// Batches that failed and were run again one request at a time.
    taken_apart: u64,
    /// Requests dropped before they ran: their deadline had passed (`expired`), or their caller had disconnected (`left`).
    expired: u64,
    left: u64,
    /// Runs that were ended: at their deadline, because their callers left, or because they took too long on the thread that read the
    /// request.
    interrupted: u64,
    /// Runs that went on for two seconds after that. Each costs a thread until it ends; after three within ten minutes the version is set
    /// aside.
    lost: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Together {
    /// The batch had at most this many rows, and more than half of it.
    rows_up_to: usize,
    runs: u64,
}

/// How a model runs
///
/// For each loaded version: measured run times, whether runs happen on the reading thread or on a worker, and batching.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/execution", operation_id = "show_execution", tag = "models",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "The loaded versions, ordered", body = Execution),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<Execution>, ErrorResponse> {
    let snapshot = admin.reader.snapshot();
    let entry: &Entry = target.entry(&snapshot)?;
    let below = admin.execution.inline_below;
    let versions = entry.versions().values().filter_map(|status| status.loaded.as_ref());
    Ok(Json(Execution {
        model: entry.name().clone(),
        at_once_below_us: micros(below),
        workers: admin.execution.workers.get(),
        versions: versions.map(|loaded| VersionExecution::of(loaded, below)).collect(),
    }))
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

impl VersionExecution {
    fn of(loaded: &Loaded, below: Duration) -> VersionExecution {
        let runner = &loaded.runner;
        let place = runner.placement();
        let points: Vec<_> = runner.cost().measured().collect();
        let max_rows = match runner.batching() {
            Batching::On { max_rows, .. } => Some(*max_rows),
            Batching::Off { .. } => None,
        };
        let smallest = points.first().filter(|_| max_rows.is_some());
        let never_at_once = runner.never_at_once().map(str::to_owned);
        let (interrupted, lost) = runner.ended_runs();
        let counts = runner.counters().read();
        let RunCounts {
            single,
            batched,
            gathered_runs,
            gathered_requests,
            batch_failed,
            split,
            split_failed,
            expired,
            cancelled,
        } = counts;
        let together = batched.into_iter().map(|(rows_up_to, runs)| Together { rows_up_to, runs }).collect();
        VersionExecution {
            version: loaded.version,
            engine: runner.engine(),
            batching: BatchingStatus {
                enabled: max_rows.is_some(),
                why: runner.batching().why().to_owned(),
                max_rows,
                worth_elements: smallest.map(|point| runner.cost().batch_elements(point.elements)),
            },
            at_once: place.at_once,
            spread: place.spread,
            cost: points
                .iter()
                .map(|point| CostPoint {
                    elements: point.elements,
                    us: micros(point.took),
                    at_once: never_at_once.is_none() && place.at_once.unwrap_or(point.took <= below),
                })
                .collect(),
            never_at_once,
            breaker: BreakerAnswer::of(loaded.breaker.status()),
            runs: Runs {
                alone: single,
                together,
                gathered: gathered_runs,
                gathered_requests,
                spread: split,
                cut_in_vain: split_failed,
                taken_apart: batch_failed,
                expired,
                left: cancelled,
                interrupted,
                lost,
            },
        }
    }
}

impl BreakerAnswer {
    fn of(status: BreakerStatus) -> BreakerAnswer {
        let BreakerStatus { state, failures, opened, refused, spared } = status;
        BreakerAnswer { state, failures, opened, kept_off: refused, spared }
    }
}
