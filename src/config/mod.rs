//! config: reads the configuration from its sources and reports every error at once.
//!
//! - [`Config::load`] reads the built-in defaults, the file, the environment and the command line; each overrides the one before.
//!   It returns a complete configuration or all errors.
//! - One struct per section, one field per key. `Default` holds the defaults; each field documents its unit and the reason for the
//!   default. `[prediction_log]` and `models.policy` are read into the types of the rooms that use them.
//! - `config/sluicegate.toml` documents every key with its default. A test compares it with the built-in defaults.
//! - [`Config::changes`] returns the keys that differ after a reload, and which of them need a restart.
//!
//! Uses: access (its settings), alerts (their settings), bucket (addresses), budget (its default), callers (their limits), fleet (its settings), heads (its settings), lifecycle (its policy), mirror (its settings), mlflow (its settings), model, quality, record, registry (breakers), settings, telemetry, tls, traces (their settings), upload (its settings).
//!
//! Invariant: this room opens, binds and starts nothing; a configuration is data.
//!
//! To add a key: a field, its default and its line in `read` (`sections.rs`), its line in `reload.rs` (the compiler requires it),
//! and its entry in `config/sluicegate.toml` (a test requires it).

mod access_section;
mod alerts_section;
mod callers_section;
mod fleet_section;
mod load;
mod mlflow_section;
mod reload;
mod sections;
mod sources_section;
#[cfg(test)]
mod tests;
mod upload_section;

pub use callers_section::Callers;
pub use load::{Overrides, environment};
pub use reload::Change;
pub use sections::{
    Admin, Approval, Data, Engines, Execute, Log, Metrics, Models, PredictionLog, Server, Serving, Shadows,
};

use crate::access;
use crate::alerts;
use crate::fleet;
use crate::heads;
use crate::registry::BreakerConfig;
use crate::traces;

/// The whole configuration, one field per section.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub access: access::Config,
    pub callers: Callers,
    pub approval: Approval,
    pub models: Models,
    pub serving: Serving,
    pub engines: Engines,
    pub execute: Execute,
    pub shadows: Shadows,
    pub prediction_log: PredictionLog,
    pub data: Data,
    pub audit: heads::Config,
    pub alerts: alerts::Config,
    pub breaker: BreakerConfig,
    pub metrics: Metrics,
    pub tracing: traces::Config,
    pub fleet: fleet::Config,
    pub log: Log,
}
