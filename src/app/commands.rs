//! The commands `serve` and `check`.

use super::check_input::check_input;
use super::one_model::OneModel;
use super::signals::{Request, Signals};
use super::{App, Programs, StartError, listen_on_both};
use crate::backend::Engines;
use crate::cli;
use crate::config::{self, Config, Overrides};
use crate::machine::Machine;
use crate::marks;
use crate::prepare::{self, TrialConfig, TrialProgram, TriedEngines, VersionReport};
use crate::supervisor::{self, Inherited, Sockets, Supervised};
use crate::{execute, machine};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Runs that are still in progress at the end of a stop get this long to end after they were interrupted.
const LAST_RUNS: Duration = Duration::from_millis(500);

/// Exit codes: 0 done, 1 failed, 2 usage.
pub(super) const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;

/// Why an offline command failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The command line is wrong.
    Usage(String),
    /// The command could not be done.
    Done(String),
}

impl From<String> for Failed {
    fn from(message: String) -> Failed {
        Failed::Done(message)
    }
}

impl Failed {
    /// Says why, and returns the exit code.
    pub(super) fn report(self) -> ExitCode {
        let (message, code) = match self {
            Failed::Usage(message) => (message, USAGE),
            Failed::Done(message) => (message, FAILED),
        };
        cli::complain(&message);
        ExitCode::from(code)
    }
}

/// What an offline command creates in a data directory is for those who may read the directory already.
pub(super) fn keep_files_private_in(data_dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(data_dir).map_or(0, |meta| meta.permissions().mode());
    machine::keep_files_private(mode & 0o050 == 0o050);
}

/// Serves until a signal stops it. `file`: the configuration file from the command line; without it the default file, if it exists.
#[must_use]
pub fn serve(file: Option<PathBuf>, overrides: &Overrides) -> ExitCode {
    let one_model = match overrides.model.as_deref().map(OneModel::parse).transpose() {
        Ok(one_model) => one_model,
        Err(message) => {
            eprintln!("sluicegate: {message}");
            return ExitCode::from(USAGE);
        }
    };
    let inherited = match supervisor::inherited() {
        Ok(inherited) => inherited,
        Err(error) => {
            eprintln!("sluicegate: cannot use what the supervisor passed: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let default = Path::new(Config::DEFAULT_FILE);
    let file = file.or_else(|| default.exists().then(|| default.to_owned()));
    let read = || Config::load(file.as_deref(), config::environment(), overrides);
    // After a crash a file that was broken meanwhile must not end the server.
    let copy = inherited.as_ref().filter(|i| i.parent.restarts > 0).and_then(|i| i.configuration.as_deref());
    let loaded = read().map(|config| (config, None)).or_else(|complaints| match copy {
        None => Err(complaints),
        Some(copy) => {
            Config::load(Some(copy), config::environment(), overrides).map(|config| (config, Some(complaints)))
        }
    });
    let (config, complaints) = match loaded {
        Ok(loaded) => loaded,
        Err(complaints) => {
            eprintln!("{complaints}");
            return ExitCode::from(USAGE);
        }
    };
    machine::keep_files_private(config.data.group_readable);
    if let Err(message) = crate::telemetry::init_logging(config.log.format, &config.log.filter) {
        eprintln!("{message}");
        return ExitCode::from(USAGE);
    }
    if let Some(complaints) = complaints {
        tracing::error!(
            "the server goes on with the configuration from before, because it cannot be read now: {complaints}"
        );
    }
    let done = match inherited {
        Some(Inherited { sockets, parent, .. }) => with_model(config, one_model.as_ref())
            .and_then(|config| serve_here(&config, &read, one_model.is_some(), sockets, Some(parent))),
        None if config.server.supervise => serve_in_child(&config, file.as_deref(), &read, one_model.as_ref()),
        None => listen_on_both(&config)
            .and_then(|sockets| with_model(config, one_model.as_ref()).map(|config| (config, sockets)))
            .and_then(|(config, sockets)| serve_here(&config, &read, one_model.is_some(), sockets, None)),
    };
    done.unwrap_or_else(|error| {
        tracing::error!("{error}");
        ExitCode::from(if matches!(error, StartError::NoCredentials { .. }) { USAGE } else { FAILED })
    })
}

/// The configuration with the models directory of `--model`.
fn with_model(mut config: Config, one_model: Option<&OneModel>) -> Result<Config, StartError> {
    if let Some(model) = one_model {
        config.models.dir = model.arrange(&config.data.dir).map_err(StartError::Model)?;
    }
    Ok(config)
}

/// Reads the configuration again.
type Read<'r> = &'r dyn Fn() -> Result<Config, crate::settings::Complaints>;

/// Starts the server as a child process. Where the system does not allow that, this process serves without a supervisor.
fn serve_in_child(
    config: &Config,
    file: Option<&Path>,
    read: Read<'_>,
    one_model: Option<&OneModel>,
) -> Result<ExitCode, StartError> {
    let sockets = listen_on_both(config)?;
    let parent = supervisor::Config {
        data_dir: config.data.dir.clone(),
        crash_inputs: usize::try_from(config.server.crash_inputs).unwrap_or(usize::MAX),
        shutdown_grace: config.server.shutdown_grace,
        file: file.map(Path::to_owned),
    };
    supervisor::run(&parent, &sockets, &|| read().is_ok()).or_else(|error| {
        tracing::warn!(%error, "the server runs without a supervisor: a crash ends it");
        serve_here(&with_model(config.clone(), one_model)?, read, one_model.is_some(), sockets, None)
    })
}

/// Serves in this process. `keeps_models_dir`: a configuration that is read again does not change the models directory.
fn serve_here(
    config: &Config,
    read: Read<'_>,
    keeps_models_dir: bool,
    sockets: Sockets,
    parent: Option<Supervised>,
) -> Result<ExitCode, StartError> {
    let start = |source| StartError::Start { what: "signal handling", source };
    if let Some(bytes) = machine::limit_allocations(&Machine::detect()) {
        tracing::info!(
            mib = bytes >> 20,
            "allocations beyond this fail (RLIMIT_DATA), as the control group could not hold them"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
    // Before anything else, so that a signal during the start stops the server in order.
    let mut signals = runtime.block_on(async { Signals::listen() }).map_err(start)?;
    supervisor::unblock_signals();
    if parent.is_some() {
        marks::catch_signals();
    }
    let program = trial_program(&config.engines);
    let programs = Programs { offline: Some(program.path.clone()), trials: Some(program) };
    let mut app = App::start_on(config, sockets, parent, programs)?;
    loop {
        match runtime.block_on(signals.next()) {
            Request::Stop => break,
            Request::Reload => match read() {
                Ok(mut new) => {
                    if keeps_models_dir {
                        new.models.dir.clone_from(&config.models.dir);
                    }
                    app.reload(&new);
                }
                Err(complaints) => tracing::error!("the configuration was not reloaded: {complaints}"),
            },
        }
    }
    app.stop();
    if !execute::end_all_runs(LAST_RUNS) {
        tracing::warn!("a run does not end; the process ends without it");
    }
    // Nothing is torn down: a load or a run that was left behind may still be inside an engine.
    machine::exit_now(0)
}

/// Serves trials to a server on standard input and output, until it is gone.
#[must_use]
pub fn trial(onnxruntime: Option<&Path>, custom_ops: Option<&Path>) -> ExitCode {
    prepare::run_trials(onnxruntime, custom_ops);
    ExitCode::SUCCESS
}

/// The program of trial processes: this one, also where its file was replaced since it was started.
fn trial_program(engines: &config::Engines) -> TrialProgram {
    let mut arguments = vec!["trial".into()];
    if let Some(library) = &engines.onnxruntime {
        arguments.extend(["--onnxruntime".into(), library.as_os_str().to_owned()]);
    }
    if let Some(dir) = &engines.custom_ops_dir {
        arguments.extend(["--custom-ops-dir".into(), dir.as_os_str().to_owned()]);
    }
    TrialProgram { path: PathBuf::from("/proc/self/exe"), arguments }
}

/// Checks a file or directory without a server, and prints the result as JSON or as text. With `input`, runs a version on the request in that
/// file instead.
#[must_use]
pub fn check(path: &Path, input: Option<&Path>, json: bool) -> ExitCode {
    if let Some(input) = input {
        return check_input(path, input, json);
    }
    // From the environment, as there is no configuration.
    let custom_ops_dir = Engines::custom_ops_dir_of_environment();
    let engines = config::Engines { custom_ops_dir, ..config::Engines::default() };
    let config = TrialConfig {
        program: trial_program(&engines),
        limits: config::Models::default().time_limits,
        memory: Machine::detect().memory_bytes,
        known: None,
    };
    let engines = TriedEngines::new(Arc::new(Engines::discover(None)), config);
    let report = match prepare::check(&engines, path) {
        Ok(report) => report,
        Err(error) => {
            cli::complain(&format_args!("cannot check {}: {error}", path.display()));
            return ExitCode::from(FAILED);
        }
    };
    let text = if json {
        let text = serde_json::to_string_pretty(&report).expect("a report has string keys and finite numbers");
        format!("{text}\n")
    } else {
        report.versions.iter().map(format_version).collect()
    };
    // Fails when it cannot be written anywhere; the exit code says the rest.
    let _ = cli::print(&text, json);
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
    version.optional_inputs.iter().for_each(|spec| line(format_args!("input   {spec} (optional)")));
    version.outputs.iter().for_each(|spec| line(format_args!("output  {spec}")));
    for engine in &version.engines {
        if let Some(failure) = &engine.failure {
            line(format_args!("{:<12}failed: {failure}", engine.engine));
        } else {
            let micros = |us: Option<f64>| us.map_or_else(|| "?".to_owned(), |us| format!("{us:.1}"));
            line(format_args!(
                "{:<12}ok: {} golden cases{}, loaded in {:.1} ms, one row takes {} µs{}",
                engine.engine,
                engine.golden_cases,
                engine
                    .golden_agree
                    .filter(|share| *share < 1.0)
                    .map_or_else(String::new, |share| { format!(" ({share:.6} of the elements agree)") }),
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
