//! Loads the configuration from a file, the environment and the command line.

use super::{
    Admin, Approval, Callers, Config, Data, Engines, Execute, Log, Metrics, Models, PredictionLog, Server, Serving,
    Shadows, sections,
};
use super::{access_section, alerts_section, fleet_section};
use crate::settings::{Complaint, Complaints, ENVIRONMENT_PREFIX, Table};
use std::path::Path;

/// The options of the command line that set keys. They override all other sources.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--listen`, for `server.listen`.
    pub listen: Option<String>,
    /// `--admin-listen`, for `admin.listen`.
    pub admin_listen: Option<String>,
    /// `--models`, for `models.dir`.
    pub models: Option<String>,
    /// `--data-dir`, for `data.dir`.
    pub data_dir: Option<String>,
    /// `--model`, which has no key.
    pub model: Option<String>,
    /// `--fleet`, for `fleet.urls`.
    pub fleet: Option<String>,
}

/// The environment variables that set keys, for [`Config::load`].
///
/// Unlike `std::env::vars` it does not panic when a variable is not UTF-8. Invalid parts of a value are replaced, so that the key's
/// own check reports it.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with(ENVIRONMENT_PREFIX))?;
        Some((name, value.to_string_lossy().into_owned()))
    })
}

impl Config {
    /// The file that is read when none is named and it exists.
    pub const DEFAULT_FILE: &'static str = "config/sluicegate.toml";

    /// Reads all sources. `environment` may contain other variables; see [`environment`].
    ///
    /// # Errors
    /// Every error, each with its key, its place, what was found and what was expected.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Config, Complaints> {
        let mut table = match file {
            None => Table::default(),
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|e| Complaint::plain(format!("cannot read the configuration {name}: {e}")))?;
                Table::parse(&name, &text)
            }
        };
        table.override_from_environment(environment);
        let options = [
            (["server", "listen"], "--listen", &overrides.listen),
            (["admin", "listen"], "--admin-listen", &overrides.admin_listen),
            (["models", "dir"], "--models", &overrides.models),
            (["data", "dir"], "--data-dir", &overrides.data_dir),
            (["fleet", "urls"], "--fleet", &overrides.fleet),
        ];
        for (path, option, text) in options {
            if let Some(text) = text {
                table.override_from_command_line(&path, option, text);
            }
        }
        let config = Config::read(&mut table);
        table.finish()?;
        Ok(config)
    }

    /// Reads a table. Errors are collected in the table.
    pub(crate) fn read(table: &mut Table) -> Config {
        let config = Config {
            server: Server::read(table.section("server")),
            admin: Admin::read(table.section("admin")),
            access: access_section::read(table.section("access")),
            callers: Callers::read(table.section("callers")),
            approval: Approval::read(table.section("approval")),
            models: Models::read(table.section("models")),
            serving: Serving::read(table.section("serving")),
            engines: Engines::read(table.section("engines")),
            execute: Execute::read(table.section("execute")),
            shadows: Shadows::read(table.section("shadows")),
            prediction_log: PredictionLog::read(table.section("prediction_log")),
            data: Data::read(table.section("data")),
            audit: sections::audit(table.section("audit")),
            alerts: alerts_section::read(table.section("alerts")),
            breaker: sections::breaker(table.section("breaker")),
            metrics: Metrics::read(table.section("metrics")),
            tracing: sections::tracing(table.section("tracing")),
            fleet: fleet_section::read(table.section("fleet")),
            log: Log::read(table.section("log")),
        };
        let (public, admin) = (config.server.listen, config.admin.listen);
        let overlap = public.ip() == admin.ip() || public.ip().is_unspecified();
        // With port 0 the system chooses two different ports.
        if overlap && public.port() == admin.port() && admin.port() != 0 {
            let right = format!("another port than server.listen, which is {public}");
            table.section("admin").complain("listen", right);
        }
        if config.approval.required && !config.admin.needs_credentials() {
            let right = "false, or admin.require_token = true: without credentials nobody can tell two people apart";
            table.section("approval").complain("required", right);
        }
        config
    }
}
