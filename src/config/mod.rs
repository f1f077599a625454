//! config: turns what was written into what was meant, all complaints at once.
//!
//! - [`Config::load`] reads built-in defaults, the file, the environment and the command line, the later over the earlier, and
//!   gives either a whole configuration or every complaint there is.
//! - One struct per section, one field per key; `Default` holds the defaults, and each field's documentation its unit and reason.
//! - `config/sluicegate.toml` documents every key with its default; a test compares it with the built-in ones.
//! - [`Config::changes`] says which keys differ after a reload, and which of them need a restart.
//!
//! Uses: settings, telemetry.
//!
//! Invariant: nothing here opens, binds or starts anything; a configuration is only what was meant.
//!
//! To add a key: a field, its default and its line in `read` (`sections.rs`), its line in `reload.rs` (the compiler asks for
//! it), and its place in `config/sluicegate.toml` (a test asks for it).

mod load;
mod reload;
mod sections;
#[cfg(test)]
mod tests;

pub use load::{Overrides, environment};
pub use reload::Change;
pub use sections::{
    Acknowledge, Admin, Data, Engines, Execute, Log, Models, OnFailure, Policy, PredictionLog, Server, Shadows,
};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub models: Models,
    pub engines: Engines,
    pub execute: Execute,
    pub shadows: Shadows,
    pub prediction_log: PredictionLog,
    pub data: Data,
    pub log: Log,
}
