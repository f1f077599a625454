//! admin: the operators' door: status, promote, traffic, history, audit, metrics.
//!
//! - [`router`] is the whole plane; who serves it decides on which port and thread. It must be one of its own, as handlers may
//!   block for as long as a file system takes.
//! - Everything it shows is one published snapshot; everything it changes goes through [`crate::lifecycle::Handle`] and is
//!   answered once it is durable and published.
//! - Endpoints stand in one table (`routes.rs`); `docs/openapi.json` is generated from their handlers, and tests hold table,
//!   document and file together.
//! - Bodies are read strictly and under a cap: what is not known is refused with a sentence that names it, never ignored.
//! - A page in an operator's browser cannot change anything here: requests that change state are refused when they carry a
//!   foreign `Origin`.
//!
//! Uses: http (the error answer), lifecycle (handle), execute (how runs are placed), quality, record (how the log is doing), registry (reader), rollout, shadow (figures), codec (outputs as JSON), ledger, route, settings (durations), model, telemetry, model_settings.
//!
//! Invariant: nothing here loads, moves or publishes anything.
//!
//! To add an endpoint: a handler with its `#[utoipa::path]`, its line in `routes.rs` and in `openapi.rs`, and
//! `UPDATE_OPENAPI=1 cargo test --lib openapi` (`docs/how-to-add/admin-command.md`).

mod answers;
mod ask;
mod body;
mod execution;
mod models;
mod openapi;
mod origin;
mod past;
mod probes;
mod push;
mod quality;
mod refused;
mod rollout;
mod routes;
mod shadows;
mod shapes;
mod strict;
#[cfg(test)]
mod tests;
mod traffic;
mod triton;

pub use shadows::pair_json;

use crate::execute;
use crate::ledger::LedgerReader;
use crate::lifecycle::Handle;
use crate::quality::Quality;
use crate::record::Log;
use crate::registry::Reader;
use crate::rollout::Rollouts;
use crate::shadow::Figures;
use crate::telemetry::Telemetry;
use std::path::PathBuf;
use std::sync::Arc;

/// What the plane shows and steers.
#[derive(Clone)]
pub struct Admin {
    pub reader: Reader,
    pub rollouts: Rollouts,
    /// What is known of shadows.
    pub figures: Figures,
    /// What is known of feedback, and how the log is doing that keeps it.
    pub quality: Quality,
    pub log: Log,
    pub handle: Handle,
    /// How runs are placed.
    pub execution: Arc<execute::Config>,
    pub ledger: LedgerReader,
    pub telemetry: Telemetry,
    /// Where pushed files are staged, so that taking them up is a rename; under names that begin with a dot.
    pub models_dir: PathBuf,
    /// Bytes of a pushed file; more is answered 413.
    pub max_push: u64,
    /// True once a stop has begun: then `/readyz` is 503 whatever is loaded.
    pub stopping: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("models_dir", &self.models_dir).finish_non_exhaustive()
    }
}

/// The plane, ready to be served.
pub fn router(admin: Admin) -> axum::Router {
    routes::build(&Arc::new(admin))
}
