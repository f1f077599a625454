//! The commands `serve` and `check`.

use super::signals::{Request, Signals};
use super::{App, StartError};
use crate::backend::Engines;
use crate::config::{self, Config, Overrides};
use crate::prepare::{self, TrialProgram, VersionReport};
use crate::{execute, machine};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Runs that are still in progress at the end of a stop get this long to end after they were interrupted.
const LAST_RUNS: Duration = Duration::from_millis(500);

/// Exit codes: 0 done, 1 failed, 2 usage.
pub(super) const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;

/// Serves until a signal stops it. `file`: the configuration file from the command line; without it the default file, if it exists.
#[must_use]
pub fn serve(file: Option<PathBuf>, overrides: &Overrides) -> ExitCode {
    let default = Path::new(Config::DEFAULT_FILE);
    let file = file.or_else(|| default.exists().then(|| default.to_owned()));
    let read = || Config::load(file.as_deref(), config::environment(), overrides);
    let config = match read() {
        Ok(config) => config,
        Err(complaints) => {
            eprintln!("{complaints}");
            return ExitCode::from(USAGE);
        }
    };
    if let Err(message) = crate::telemetry::init_logging(config.log.format, &config.log.filter) {
        eprintln!("{message}");
        return ExitCode::from(USAGE);
    }
    match run(&config, read) {
        Ok(()) => {
            if !execute::end_all_runs(LAST_RUNS) {
                tracing::warn!("a run does not end; the process ends without it");
            }
            // Nothing is torn down: a load or a run that was left behind may still be inside an engine.
            machine::exit_now(0)
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(config: &Config, read: impl Fn() -> Result<Config, crate::settings::Complaints>) -> Result<(), StartError> {
    let start = |source| StartError::Start { what: "signal handling", source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
    // Before anything else, so that a signal during the start stops the server in order.
    let mut signals = runtime.block_on(async { Signals::listen() }).map_err(start)?;
    let mut app = App::start_with(config, Some(trial_program(config.engines.onnxruntime.as_deref())))?;
    loop {
        match runtime.block_on(signals.next()) {
            Request::Stop => break,
            Request::Reload => match read() {
                Ok(new) => app.reload(&new),
                Err(complaints) => tracing::error!("the configuration was not reloaded: {complaints}"),
            },
        }
    }
    app.stop();
    Ok(())
}

/// Serves trials to a server on standard input and output, until it is gone.
#[must_use]
pub fn trial(onnxruntime: Option<&Path>) -> ExitCode {
    prepare::run_trials(onnxruntime);
    ExitCode::SUCCESS
}

/// The program of trial processes: this one, also where its file was replaced since it was started.
fn trial_program(onnxruntime: Option<&Path>) -> TrialProgram {
    let mut arguments = vec!["trial".into()];
    if let Some(library) = onnxruntime {
        arguments.extend(["--onnxruntime".into(), library.as_os_str().to_owned()]);
    }
    TrialProgram { path: PathBuf::from("/proc/self/exe"), arguments }
}

/// Checks a file or directory without a server, and prints the result as JSON or as text.
#[must_use]
pub fn check(path: &Path, json: bool) -> ExitCode {
    let engines = Engines::discover(None);
    let report = match prepare::check(&engines, path) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("sluicegate: cannot check {}: {error}", path.display());
            return ExitCode::from(FAILED);
        }
    };
    let text = if json {
        let text = serde_json::to_string_pretty(&report).expect("a report has string keys and finite numbers");
        format!("{text}\n")
    } else {
        report.versions.iter().map(format_version).collect()
    };
    // Fails when the reader has closed the pipe, such as `| head`.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if report.passes() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn format_version(version: &VersionReport) -> String {
    let verdict = if version.passes() { "ok" } else { "FAILED" };
    let mut text = format!("{}: {verdict}\n", version.path);
    let mut line = |content: std::fmt::Arguments| {
        text.push_str("  ");
        text.push_str(&content.to_string());
        text.push('\n');
    };
    if let Some(problem) = &version.settings {
        line(format_args!("{problem}"));
    }
    version.inputs.iter().for_each(|spec| line(format_args!("input   {spec}")));
    version.outputs.iter().for_each(|spec| line(format_args!("output  {spec}")));
    for engine in &version.engines {
        if let Some(failure) = &engine.failure {
            line(format_args!("{:<12}failed: {failure}", engine.engine));
        } else {
            let micros = |us: Option<f64>| us.map_or_else(|| "?".to_owned(), |us| format!("{us:.1}"));
            line(format_args!(
                "{:<12}ok: {} golden cases, loaded in {:.1} ms, one row takes {} µs{}",
                engine.engine,
                engine.golden_cases,
                engine.load_ms.unwrap_or_default(),
                micros(engine.us_one_row),
                engine
                    .us_per_row_of_8
                    .map_or_else(String::new, |us| format!(", a row in a batch of 8 takes {us:.1} µs")),
            ));
        }
        if let Some(batching) = &engine.batching {
            line(format_args!("{:<12}batching: {batching}", ""));
        }
        if let Some(note) = &engine.note {
            line(format_args!("{:<12}note: {note}", ""));
        }
    }
    text
}
