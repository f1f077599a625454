//! Structured logs through `tracing`, for people or as JSON lines, to standard error.

use super::escape::Escaped;
use super::limit::Limit;
use std::sync::OnceLock;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

/// The active filter, kept so that it can be changed while the process runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
/// The rate limit of per-request lines.
static LIMIT: OnceLock<Limit> = OnceLock::new();

/// Starts logging. `filter` is a `tracing` filter such as `info` or `sluicegate=debug`; `RUST_LOG` overrides it.
///
/// # Errors
/// When the filter is invalid.
pub(crate) fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let limit = Limit::default();
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(filter).with(limit.clone());
    let started = match format {
        LogFormat::Human => registry.with(lines.with_ansi(ansi).map_event_format(Escaped)).try_init(),
        LogFormat::Json => {
            let lines = lines.with_ansi(false).json().flatten_event(true);
            registry.with(lines.map_event_format(Escaped)).try_init()
        }
    };
    // A second start in one process happens in tests only, which want to keep the first subscriber.
    if started.is_ok() {
        let _ = FILTER.set(handle);
        let _ = LIMIT.set(limit);
    }
    Ok(())
}

/// Changes the filter of a running process; `RUST_LOG` overrides it.
///
/// # Errors
/// When the filter is invalid.
pub(crate) fn set_filter(filter: &str) -> Result<(), String> {
    let filter = parse(filter)?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|e| e.to_string()),
        None => Ok(()),
    }
}

/// Logs how many lines were suppressed since the last call. Called about once a second.
pub(super) fn report_suppressed() {
    if let Some(limit) = LIMIT.get() {
        limit.report();
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| filter.to_owned());
    EnvFilter::try_new(&filter).map_err(|e| format!("log filter {filter:?}: {e}"))
}
