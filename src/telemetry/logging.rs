//! Structured logs through `tracing`: for people, or as JSON lines.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

/// Starts logging to standard error. `filter` is a `tracing` filter such as `info` or `sluicegate=debug`; `RUST_LOG` wins over it.
///
/// # Errors
/// When the filter is not one.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| filter.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|e| format!("log filter {filter:?}: {e}"))?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = fmt().with_writer(std::io::stderr).with_env_filter(filter).with_target(false);
    // A second start in one process (tests) keeps the first subscriber; that is what they want.
    let _ = match format {
        LogFormat::Human => builder.with_ansi(ansi).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
