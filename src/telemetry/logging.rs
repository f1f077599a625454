//! Structured logs through `tracing`: for people, or as JSON lines, to standard error.

use std::sync::OnceLock;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

/// The filter in force, so that it can be changed while the process runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging. `filter` is a `tracing` filter such as `info` or `sluicegate=debug`; `RUST_LOG` wins over it.
///
/// # Errors
/// When the filter is not one.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Human => registry.with(lines.with_ansi(ansi)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    // A second start in one process (tests) keeps the first subscriber; that is what they want.
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
    Ok(())
}

/// Changes the filter of a running process; `RUST_LOG` still wins.
///
/// # Errors
/// When the filter is not one.
pub fn set_filter(filter: &str) -> Result<(), String> {
    let filter = parse(filter)?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|e| e.to_string()),
        None => Ok(()),
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| filter.to_owned());
    EnvFilter::try_new(&filter).map_err(|e| format!("log filter {filter:?}: {e}"))
}
