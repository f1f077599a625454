//! admin: the HTTP API for operators: status, traffic, rollouts, history, audit, metrics.
//!
//! - [`router_with`] is the whole API. Its caller decides on which port and thread it is served. The thread must be one of its own, because
//!   handlers may block on the file system.
//! - Reads answer from one published snapshot. Changes go through [`crate::lifecycle::Handle`] or [`Rollouts`] and are answered once
//!   they are durable and published. They are completed even if the client disconnects.
//! - One table (`routes.rs`) lists the endpoints. `docs/openapi.json` is generated from the handlers, and tests compare the three.
//! - Request bodies are limited in size and read strictly: unknown and duplicate members are refused by name.
//! - `caller.rs` identifies the caller of each endpoint before its handler runs, and refuses whom the endpoint's permission does not allow. The
//!   table states a permission for each endpoint.
//! - A web page in an operator's browser cannot use this API: a host name must be an allowed one (DNS rebinding), and a request that
//!   changes something must not come from another page (`guard.rs`). Every answer has the headers of `headers.rs`, and bodies have a strict
//!   content type.
//!
//! Uses: access, alerts, archive (the files of a push), callers, drift, http (the error answer), lifecycle (handle), mirror (its report), execute (how runs are placed), columns, history, outcomes, quality, record (the log's status), registry (reader), rollout, shadow (figures), codec (outputs as JSON), ledger, mlflow, route, settings (durations), model, telemetry, machine (room on the disk), model_settings, stability, fleet, upload (its report).
//!
//! Invariant: nothing here loads a model or publishes a snapshot.
//!
//! To add an endpoint: a handler with its `#[utoipa::path]`, its line in `routes.rs` and in `openapi.rs`, and
//! `UPDATE_OPENAPI=1 cargo test --lib openapi` (`docs/how-to-add/admin-command.md`).

mod alerts;
mod approvals;
mod body;
mod caller;
mod callers;
mod child;
mod contents;
mod drift;
mod error;
mod execution;
mod extract;
mod figures;
mod fleet;
mod fleet_push;
mod gateway;
mod guard;
mod headers;
mod history;
mod json;
mod lineage;
mod lines;
mod logged;
mod mlflow;
mod models;
mod openapi;
mod outcomes;
mod overview;
mod probes;
mod push;
mod quality;
mod received;
mod requests;
mod responses;
mod rollout;
mod routes;
mod schemas;
mod search;
mod shadows;
mod sources;
#[cfg(test)]
mod tests;
mod tokens;
mod traffic;
mod triton;
mod wait;

pub(crate) use shadows::pair_json;

pub(crate) use child::Offline;
pub(crate) use gateway::Facts;

use crate::access::Access;
use crate::alerts::Alerts;
use crate::callers::Callers;
use crate::execute;
use crate::history::History;
use crate::ledger::LedgerReader;
use crate::lifecycle::Handle;
use crate::mirror::Mirror;
use crate::mlflow::Mlflow;
use crate::quality::Quality;
use crate::record::Log;
use crate::registry::Reader;
use crate::rollout::Rollouts;
use crate::shadow::Figures;
use crate::stability::Stability;
use crate::telemetry::Telemetry;
use crate::upload::Uploads;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything the handlers read and change.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) reader: Reader,
    pub(crate) rollouts: Rollouts,
    /// Figures of shadows.
    pub(crate) figures: Figures,
    /// `None`: in no fleet.
    pub(crate) fleet: Option<crate::fleet::Fleet>,
    /// Figures over time.
    pub(crate) history: History,
    /// Logged predictions that were run again.
    pub(crate) stability: Stability,
    /// Figures from feedback.
    pub(crate) quality: Quality,
    /// The prediction log, for its status.
    pub(crate) log: Log,
    /// Where sealed files are uploaded; `None`: nowhere.
    pub(crate) uploads: Option<Uploads>,
    pub(crate) handle: Handle,
    /// How runs are placed.
    pub(crate) execution: Arc<execute::Config>,
    pub(crate) ledger: LedgerReader,
    pub(crate) telemetry: Telemetry,
    /// Pushed files are received here, under names that begin with a dot, so that a rename moves them to their place.
    pub(crate) models_dir: PathBuf,
    /// How offline commands are run for operators.
    pub(crate) offline: Offline,
    /// The largest file that may be pushed, in bytes; larger ones are answered 413.
    pub(crate) max_push: u64,
    /// Who the callers are.
    pub(crate) access: Access,
    /// Whether a caller needs credentials. Without this, one that has none may do everything.
    pub(crate) require_token: bool,
    /// The callers of the data plane.
    pub(crate) callers: Arc<Callers>,
    /// Names under which operators may reach the API, besides `localhost` and IP addresses.
    pub(crate) allowed_hosts: Vec<String>,
    /// Whether the server is stopping; then `/readyz` is 503 whatever is loaded.
    pub(crate) stopping: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Sentences for an operator that do not hold readiness, such as about a certificate that ends soon.
    pub(crate) warnings: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The sources of models.
    pub(crate) mirror: Mirror,
    /// What is wrong, and who is told.
    pub(crate) alerts: Alerts,
    /// What was found in MLflow's model registry.
    pub(crate) mlflow: Mlflow,
    /// The threads that answer requests.
    pub(crate) threads: Arc<dyn Fn() -> Threads + Send + Sync>,
    /// What the gateway may use, and uses now.
    pub(crate) gateway: Arc<dyn Fn() -> Facts + Send + Sync>,
    /// The memory of requests.
    pub(crate) memory: Arc<dyn Fn() -> Memory + Send + Sync>,
}

/// The bytes that requests and what is made of them hold now, each with the most that it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Memory {
    /// Bodies, tensors, and answers until they are sent.
    pub(crate) requests: (u64, u64),
    /// Records that wait to be written.
    pub(crate) prediction_log: (u64, u64),
    /// Copies for shadows that wait or run.
    pub(crate) shadows: (u64, u64),
    /// Of the process; `None` where the kernel does not say.
    pub(crate) resident: Option<u64>,
}

/// The threads that answer requests, for the probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Threads {
    /// A sentence for each thread that is held by a run.
    pub(crate) stuck: Vec<String>,
    /// Whether requests are answered all the same. Where not, only a restart helps.
    pub(crate) serving: bool,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("models_dir", &self.models_dir).finish_non_exhaustive()
    }
}

/// The whole API.
#[cfg(test)]
pub(crate) fn router(admin: Admin) -> axum::Router {
    let Ok(router) = router_with(admin, Ok::<_, std::convert::Infallible>);
    router
}

/// The whole API, with what `beside` adds on its port. `beside` is given the API without the checks of browsers' requests (`guard.rs`); they come before both.
///
/// # Errors
/// Those of `beside`.
pub(crate) fn router_with<E>(
    admin: Admin,
    beside: impl FnOnce(axum::Router) -> Result<axum::Router, E>,
) -> Result<axum::Router, E> {
    routes::build(&Arc::new(admin), beside)
}
