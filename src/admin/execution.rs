//! Where and how a model's versions run, and why.

use super::Admin;
use super::ask::Target;
use super::refused::Refused;
use super::shapes::Problem;
use crate::execute::{Batching, Counts};
use crate::model::{ModelName, Version};
use crate::registry::{Entry, Loaded};
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
    /// A run that is expected to take no longer happens at once on the thread that read the request.
    at_once_below_us: f64,
    /// Threads for all others, of all models together: turns go by time used.
    workers: usize,
    /// Those that are loaded, in order.
    versions: Vec<VersionExecution>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionExecution {
    #[schema(value_type = String)]
    version: Version,
    engine: &'static str,
    batching: BatchingAnswer,
    /// Whether all runs happen at once (true) or on a worker (false), where `model.toml` says so; null where they go by what they cost.
    at_once: Option<bool>,
    /// Whether a request of many rows is cut and run by all workers that idle (true) or never (false), where `model.toml` says so; null
    /// where it goes by what runs cost.
    spread: Option<bool>,
    /// What runs were measured to take, from the smallest.
    cost: Vec<CostPoint>,
    runs: Runs,
}

/// Whether requests run together under load.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchingAnswer {
    enabled: bool,
    why: String,
    /// Rows of a run at most; null where requests run alone.
    max_rows: Option<usize>,
    /// Elements of all inputs that a run is worth having, as far as was measured: what an element costs falls no further beyond; null
    /// where requests run alone, and before the first run.
    worth_elements: Option<usize>,
}

/// Runs of about one size.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CostPoint {
    /// Of all inputs together, smoothed over runs of between half and twice as many.
    elements: usize,
    us: f64,
    /// Whether requests of this size run at once, and not on a worker.
    at_once: bool,
}

/// Since the version was loaded.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Runs {
    /// Runs of one request, the warm-up's among them.
    alone: u64,
    /// Runs of several requests together, by rows.
    together: Vec<Together>,
    /// Runs of one request too, cut by its rows and run by several workers that had nothing else to do.
    spread: u64,
    /// Requests that failed so, and went well as one run; after three of them the version's requests are not cut any more.
    cut_in_vain: u64,
    /// Runs of several that failed, and were run again each alone.
    taken_apart: u64,
    /// Requests that were dropped before they ran, as their deadline had passed, and as their caller had left.
    expired: u64,
    left: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Together {
    /// And more than half as many.
    rows_up_to: usize,
    runs: u64,
}

/// How a model runs
///
/// What each loaded version's runs were measured to take, whether they happen at once or on a worker, and which requests ran together.
#[utoipa::path(
    get, path = "/api/v1/models/{model}/execution", operation_id = "show_execution", tag = "models",
    params(("model" = String, Path)),
    responses(
        (status = 200, description = "Loaded versions, in order", body = Execution),
        (status = 404, description = "No model has this name", body = Problem),
    )
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>, target: Target) -> Result<Json<Execution>, Refused> {
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
        let place = runner.place();
        let points: Vec<_> = runner.cost().measured().collect();
        let max_rows = match runner.batching() {
            Batching::On { max_rows, .. } => Some(*max_rows),
            Batching::Off { .. } => None,
        };
        let smallest = points.first().filter(|_| max_rows.is_some());
        let Counts { alone, together, spread, cut_in_vain, taken_apart, expired, left } = runner.tally().counts();
        let together = together.into_iter().map(|(rows_up_to, runs)| Together { rows_up_to, runs }).collect();
        VersionExecution {
            version: loaded.version,
            engine: runner.engine(),
            batching: BatchingAnswer {
                enabled: max_rows.is_some(),
                why: runner.batching().why().to_owned(),
                max_rows,
                worth_elements: smallest.map(|point| runner.cost().room(point.elements)),
            },
            at_once: place.at_once,
            spread: place.spread,
            cost: points
                .iter()
                .map(|point| CostPoint {
                    elements: point.elements,
                    us: micros(point.took),
                    at_once: place.at_once.unwrap_or(point.took <= below),
                })
                .collect(),
            runs: Runs { alone, together, spread, cut_in_vain, taken_apart, expired, left },
        }
    }
}
