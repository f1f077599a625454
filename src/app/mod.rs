//! app: puts the rooms together, owns start, phases and stop.
//!
//! - [`App::start`] binds the ports, opens the ledger, starts the manager, the data plane and the admin plane. Models load
//!   afterwards; readiness says when they are loaded.
//! - The [`Phase`]s of the process are published on a watch channel: serving → not ready → draining → stopped.
//! - [`App::stop`] goes through them in order, within `server.shutdown_grace`.
//!
//! Uses: every room.
//!
//! Invariant: only `main.rs` and the tests use this room.
//!
//! To add a room: start it in [`App::start`] after the rooms it needs, and stop it in [`App::stop`] before them.

mod audit;
mod certificates;
mod check_input;
mod commands;
mod control;
mod drift;
mod explain;
mod fleet;
mod fleet_state;
mod forget;
mod golden;
mod offline;
mod one_model;
mod profile;
mod recalling;
mod requests;
mod retention;
mod sign;
mod signals;
mod sources;
mod threads;
mod tokens;
mod uploads;
mod watch;

pub use audit::audit;
use certificates::Certificates;
pub use certificates::certificate;
pub use commands::{check, serve, trial};
pub use explain::explain;
pub use fleet_state::fleet_command;
pub use forget::forget;
pub use golden::golden;
pub use offline::{export, replay, reproduce};
pub use profile::profile;
pub use requests::{request, requests};
pub use sign::{keygen, sign};
pub use tokens::token;

use recalling::Recalling;

use crate::access::Access;
use crate::admin;
use crate::alerts;
use crate::backend::Engines;
use crate::budget::Budget;
use crate::callers::Callers;
use crate::compare::Tolerance;
use crate::config::Config;
use crate::execute::{self, Executor};
use crate::heads::Heads;
use crate::history::{self, History};
use crate::http::{self, DataPlane, Doors, Server};
use crate::lifecycle;
use crate::machine::{self, Available, Machine, OpenFiles};
use crate::mirror;
use crate::model::VersionId;
use crate::prepare::{Loader, TrialConfig, TrialProgram, TriedEngines};
use crate::quality::Quality;
use crate::record::{self, Log};
use crate::rollout::Rollouts;
use crate::serve::Gateway;
use crate::shadow::{self, Shadows};
use crate::stability::{self, Stability};
use crate::supervisor::{Sockets, Supervised};
use crate::telemetry::{Telemetry, names};
use crate::traces::{self, Traces};
use crate::{ledger, registry};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The phase of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Answers requests. Readiness says whether all models are loaded.
    Serving,
    /// A stop has begun: readiness is 503. Requests are still answered, and each answer says that its connection closes.
    NotReady,
    /// Accepts no new connections and finishes running requests.
    Draining,
    Stopped,
}

/// The engines, which with a program for trials try each version in another process first.
fn loader(engines: Arc<Engines>, trials: Option<TrialProgram>, config: &Config, machine: &Machine) -> Arc<dyn Loader> {
    let Some(program) = trials.filter(|_| config.models.trials) else { return engines };
    let known = Some(config.data.dir.join("trials.jsonl"));
    let config = TrialConfig { program, limits: config.models.time_limits, memory: machine.memory_bytes, known };
    Arc::new(TriedEngines::new(engines, config))
}

/// The largest model that can be pushed, in bytes: protobuf's limit for one ONNX file.
const MAX_PUSH: u64 = 2 << 30;

/// Connections that wait until they are accepted. Bursts of clients come after a deployment; beyond it a client's connect waits for a
/// second. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// File descriptors that are kept for other things than connections of the data plane: the admin plane, the ledger, the log, model
/// files while they are loaded, and the runtimes.
const RESERVED_FILES: u64 = 512;

/// How long a stop waits for a message to a target that is being sent. It is sent again after the next start.
const ALERTS_STOP: Duration = Duration::from_millis(500);

/// How long a stop waits for the threads of sources. What they do can be ended at any point.
const SOURCES_STOP: Duration = Duration::from_millis(500);
/// How long a stop waits for the process that runs predictions again.
const STABILITY_STOP: Duration = Duration::from_millis(500);
/// How long a stop waits for the last spans to be sent.
const TRACES_STOP: Duration = Duration::from_secs(2);
/// How long a stop waits until the fleet knows that this gateway leaves. Otherwise it learns it after some seconds.
const FLEET_STOP: Duration = Duration::from_secs(1);

/// How long a stop goes on to upload sealed files, while that works.
const UPLOADS_STOP: Duration = Duration::from_secs(5);

/// How long a stop waits for versions to be unloaded while runs do not end.
const HELD_VERSIONS: Duration = Duration::from_secs(1);

/// The share of the grace for the phase `NotReady`: 2 s of the default 20 s.
const NOT_READY_SHARE: f64 = 0.1;

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address} for {plane}: {source}")]
    Listen { plane: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("cannot use the data directory {dir}: {source}")]
    Ledger { dir: String, source: Box<ledger::LedgerError> },
    #[error(
        "admin.listen is {address}, which other machines can reach, and nobody has credentials: make a token first \
         (sluicegate token create --name root --role admin --data-dir {dir}), set admin.first_token, or listen on 127.0.0.1"
    )]
    NoCredentials { address: SocketAddr, dir: String },
    #[error("the certificates of the {plane} plane cannot be used: {source}")]
    Tls { plane: &'static str, source: crate::tls::TlsError },
    #[error("cannot serve the model of --model: {0}")]
    Model(std::io::Error),
    #[error("cannot start {what}: {source}")]
    Start { what: &'static str, source: std::io::Error },
}

/// Programs that run in processes of their own; both are this one.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    pub(crate) trials: Option<TrialProgram>,
    pub(crate) offline: Option<PathBuf>,
}

/// A running gateway.
#[derive(Debug)]
pub struct App {
    data_plane: Arc<DataPlane>,
    server: Server,
    shadows: Shadows,
    rollouts: Rollouts,
    control: control::Control,
    manager: lifecycle::Stop,
    fleet: Option<crate::fleet::Stop>,
    uploads: Option<crate::upload::Stop>,
    retention: retention::Retention,
    heads: Heads,
    alerts: alerts::Stop,
    history: history::Stop,
    stability: stability::Stop,
    traces: traces::Stop,
    prediction_log: drift::CountedLog,
    recalling: Recalling,
    mirror: mirror::Stop,
    mlflow: Option<crate::mlflow::Stop>,
    phase: tokio::sync::watch::Sender<Phase>,
    /// The supervisor, where there is one.
    parent: Option<Supervised>,
    config: Config,
    tls: Certificates,
}

impl App {
    /// Starts everything. The caller initialises logging before.
    ///
    /// # Errors
    /// A port cannot be bound, the data directory cannot be used, or a thread cannot be started.
    pub fn start(config: &Config) -> Result<App, StartError> {
        App::start_on(config, listen_on_both(config)?, None, Programs::default())
    }

    /// The same with a program, which is this one, that runs offline commands for operators.
    ///
    /// # Errors
    /// As [`App::start`].
    pub fn start_with_program(config: &Config, program: PathBuf) -> Result<App, StartError> {
        let programs = Programs { trials: None, offline: Some(program) };
        App::start_on(config, listen_on_both(config)?, None, programs)
    }

    /// Starts everything on sockets that are open. With a supervisor, its reports of crashes are stored first. With a program for trials,
    /// versions are tried in a process of their own before they are loaded.
    ///
    /// # Errors
    /// As [`App::start`].
    #[expect(clippy::too_many_lines, reason = "puts all rooms together, one after the other")]
    pub(crate) fn start_on(
        config: &Config,
        sockets: Sockets,
        parent: Option<Supervised>,
        programs: Programs,
    ) -> Result<App, StartError> {
        let start = |what| move |source| StartError::Start { what, source };
        let machine = Machine::detect();
        let cores = NonZeroUsize::new(machine.cores).unwrap_or(NonZeroUsize::MIN);
        let or_cores = |n: usize| NonZeroUsize::new(n).unwrap_or(cores);
        let (io, workers) = (or_cores(config.server.io_threads), or_cores(config.execute.workers));
        let shadow_threads = or_cores(config.shadows.threads_on(machine.cores));
        let memory = config.models.memory_budget_of(machine.memory_bytes);
        let requests = Budget::new(config.server.memory_of(machine.memory_bytes));
        tracing::info!(machine = %machine, io_threads = io, workers, shadow_threads, load_threads = config.models.load_threads,
            memory_budget_mib = memory >> 20, request_memory_mib = requests.limit() >> 20, "budget");

        let Programs { trials, offline: offline_program } = programs;
        let loader = loader(engines(config), trials, config, &machine);
        let telemetry = Telemetry::new().with_triton_names(config.metrics.triton_names);
        let Sockets { data: data_listener, admin: admin_listener } = sockets;
        let dir = &config.data.dir;
        let (mut ledger_writer, ledger_reader, set_aside) = open_ledger(config, parent.as_ref())
            .map_err(|source| StartError::Ledger { dir: dir.display().to_string(), source: Box::new(source) })?;
        warn_if_others_read(dir);
        let access = start_access(config, &mut ledger_writer, &ledger_reader)?;
        let mut fleet = fleet::prepare(config)?;
        let (writer, reader) = registry::new_with(fleet.elsewhere());

        let (prediction_log, log_stop, recording, quality, recalling) =
            start_log(config, io, &telemetry, fleet.fleet.as_ref())?;
        let (mlflow, follower) = sources::registry(config, &reader).map_err(start("MLflow's registry"))?;
        let remote = sources::Remote::of(config, mlflow, fleet.fleet.as_ref(), &reader);
        let lifecycle_config = lifecycle_config(config, memory, recording, set_aside, &remote);
        let figures = shadow::Figures::new(config.shadows.worst);
        let stores = lifecycle::Stores { journal: Box::new(ledger_writer), peers: fleet.peers.take() };
        let (handle, manager) =
            lifecycle::start(lifecycle_config, loader, writer, stores, figures.clone(), telemetry.clone())
                .map_err(start("the manager"))?;
        let (mirror, mirror_stop) =
            remote.start(config, &reader, &telemetry).map_err(start("the sources of models"))?;
        let (mlflow, mlflow_stop) =
            sources::follow(follower, &handle, &mirror, &telemetry).map_err(start("what follows MLflow"))?;
        let fleet = {
            let (drift, ledger) = (prediction_log.drift().clone(), ledger_reader.clone());
            let hash_key = fleet::made_hash_key(config);
            let counted = crate::fleet::Counted { quality: quality.clone(), drift, ledger, hash_key };
            fleet.join(&handle, &reader, (&mirror, counted), (&ledger_reader, &access), &telemetry)?
        };

        let crate::config::Execute { inline_below, queue, max_wait, .. } = config.execute;
        let execution = Arc::new(execute::Config { inline_below, queue, max_wait, workers, cores });
        let executor = Executor::start(&execution).map_err(start("the inference workers"))?;
        let http_config = http_config_that_fits(config, io);
        let shadow_config = shadow_config(config, shadow_threads);
        let (gateway, shadows) = start_gateway(shadow_config, &figures, &reader, &prediction_log, executor)?;
        let callers = Callers::new(config.callers.with_places(config.server.max_in_flight));
        let doors = Doors { access: access.clone(), require_token: config.server.require_token, callers };
        let scheme = if config.server.tls.is_some() { "https" } else { "http" };
        let (traces, traces_stop) = Traces::start(&config.tracing, scheme, &telemetry).map_err(start("the traces"))?;
        let gateway = gateway.with_breakers(config.breaker);
        let data_plane = DataPlane::new(gateway, &http_config, doors, requests, traces, &telemetry)
            .map_err(start("the threads for large bodies"))?;
        let tls = Certificates::load(config, &telemetry)?;
        let server = Server::start(data_listener, &http_config, &data_plane, &telemetry, tls.data.clone())
            .map_err(start("the data plane"))?;

        let rollouts = Rollouts::start(
            handle.clone(),
            reader.clone(),
            ledger_reader.clone(),
            figures.clone(),
            quality.history().clone(),
            telemetry.clone(),
            fleet.fleet.as_ref().map(crate::fleet::Fleet::fellows),
        )
        .map_err(start("the rollouts"))?;

        tell_about(parent.as_ref(), config, &telemetry);
        let (uploads, uploads_stop) = uploads::start(config, &prediction_log, &telemetry)?;
        let retention = retention::Retention { log: prediction_log.clone(), handle: handle.clone() };
        let heads = Heads::start(&config.audit, ledger_reader.clone(), &telemetry)
            .map_err(start("the heads of the audit trail"))?;
        let (phase, phases) = tokio::sync::watch::channel(Phase::Serving);
        let (history, history_stop) = start_history(config, &reader)?;
        let (stability, stability_stop) = start_stability(config, &reader, offline_program.clone())?;
        let plane = admin::Admin {
            threads: threads::report(reader.clone(), Arc::clone(&data_plane)),
            gateway: control::gateway(machine, Arc::clone(&data_plane), config, tls.clone()),
            memory: control::memory(Arc::clone(&data_plane), shadows.clone(), prediction_log.clone(), config),
            reader,
            execution,
            rollouts: rollouts.clone(),
            figures,
            history,
            stability,
            quality,
            log: prediction_log,
            uploads,
            handle,
            ledger: ledger_reader,
            telemetry: telemetry.clone(),
            models_dir: config.models.dir.clone(),
            mirror,
            mlflow,
            offline: admin::Offline {
                program: offline_program,
                onnxruntime: config.engines.onnxruntime.clone(),
                custom_ops: config.engines.custom_ops_dir.clone(),
                data_dir: dir.clone(),
            },
            max_push: MAX_PUSH,
            access,
            require_token: config.admin.needs_credentials(),
            callers: Arc::clone(data_plane.callers()),
            allowed_hosts: config.admin.allowed_hosts.clone(),
            stopping: control::stopping(phases),
            warnings: fleet::warnings(fleet.fleet.clone(), tls.warnings()),
            fleet: fleet.fleet,
            alerts: alerts::Alerts::idle(&telemetry),
        };
        let (plane, alerts) = watch::start(config, &machine, plane, &tls).map_err(start("the alerts"))?;
        let control = control::Control::start(
            admin_listener,
            plane,
            control::connection_limits(&http_config, data_plane.budget().limit()),
            telemetry,
            Arc::clone(&data_plane),
            tls.clone(),
            retention.clone(),
        )
        .map_err(start("the admin plane"))?;
        tracing::info!(data = %server.address(), admin = %control.address(), models = %config.models.dir.display(),
            data_dir = %dir.display(), "listening");
        Ok(App {
            data_plane,
            server,
            shadows,
            rollouts,
            control,
            manager,
            fleet: fleet.stop,
            uploads: uploads_stop,
            retention,
            heads,
            alerts,
            history: history_stop,
            stability: stability_stop,
            traces: traces_stop,
            prediction_log: log_stop,
            recalling,
            mirror: mirror_stop,
            mlflow: mlflow_stop,
            phase,
            parent,
            config: config.clone(),
            tls,
        })
    }

    #[must_use]
    pub fn data_address(&self) -> SocketAddr {
        self.server.address()
    }

    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.control.address()
    }

    /// Receives every change of the phase.
    #[must_use]
    pub fn phases(&self) -> tokio::sync::watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Predict requests that are running.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.data_plane.in_flight()
    }

    /// Applies the keys that can change at run time, and logs those that need a restart.
    pub fn reload(&mut self, new: &Config) {
        for change in self.config.changes(new) {
            if change.needs_restart {
                tracing::warn!(
                    key = change.key,
                    "this key changed in the configuration; the change takes effect after a restart"
                );
            } else {
                tracing::info!(key = change.key, "this key changed in the configuration");
            }
        }
        let next = self.config.reloaded(new);
        self.data_plane.limits().apply(&http_config(&next, NonZeroUsize::MIN));
        self.data_plane.traces().set_sample_rate(next.tracing.sample_rate);
        self.data_plane.callers().apply(next.callers.with_places(next.server.max_in_flight));
        if let Err(error) = crate::telemetry::set_log_filter(&next.log.filter) {
            tracing::error!(error, "the log filter was not changed");
        }
        if let Some(parent) = &self.parent {
            parent.set_stop_within(next.server.shutdown_grace);
        }
        self.tls.reload(&next);
        self.config = next;
    }

    /// Stops in order, within `server.shutdown_grace`. True when every request was finished.
    pub fn stop(self) -> bool {
        let App {
            data_plane,
            mut server,
            shadows,
            rollouts,
            control,
            manager,
            fleet,
            uploads,
            retention,
            heads,
            alerts,
            history,
            stability,
            traces,
            prediction_log,
            recalling,
            mut mirror,
            mlflow,
            phase,
            parent: _,
            config,
            tls: _,
        } = self;
        let began = Instant::now();
        let until = began + config.server.shutdown_grace;
        let left = || until.saturating_duration_since(Instant::now());
        data_plane.announce_stop();
        server.announce_stop();
        phase.send_replace(Phase::NotReady);
        tracing::info!(
            in_flight = data_plane.in_flight(),
            "stopping: readiness is 503, and each answer says that its connection closes"
        );
        // Load balancers need a moment to see it. Until then their requests and new connections are answered.
        std::thread::park_timeout(config.server.shutdown_grace.mul_f64(NOT_READY_SHARE));
        server.close_listener();
        phase.send_replace(Phase::Draining);
        // A fifth is reserved for the steps after this one.
        let deadline = Instant::now() + left().mul_f64(0.8);
        let drained = server.finish(began + config.server.announce_for(), deadline);
        if !drained {
            tracing::warn!(
                in_flight = data_plane.in_flight(),
                "server.shutdown_grace is over; open connections were closed"
            );
        }
        // Every request was answered, so that nothing is added any more.
        traces.stop(left().min(TRACES_STOP));
        // What is loaded and unloaded from here on is no alert.
        alerts.stop(left().min(ALERTS_STOP));
        mirror.stop(left().min(SOURCES_STOP));
        if let Some(mlflow) = mlflow {
            mlflow.stop(left().min(SOURCES_STOP));
        }
        // From here on no other gateway counts on this one.
        if let Some(fleet) = fleet {
            fleet.stop(left().min(FLEET_STOP));
        }
        rollouts.stop();
        shadows.stop();
        // Its process reads the files that the log seals next.
        stability.stop(left().min(STABILITY_STOP));
        // Nothing offers records any more: the queue is written, and sealed if there is time.
        recalling.stop();
        prediction_log.stop(left);
        // The last segments are sealed.
        if let Some(uploads) = uploads {
            uploads.stop(left().mul_f64(0.5).min(UPLOADS_STOP));
        }
        history.stop(left());
        control.stop(left());
        retention.stop(left());
        // A version that is held by a run that does not end cannot be unloaded.
        let held = !execute::stuck_threads().is_empty();
        manager.stop(if held { left().min(HELD_VERSIONS) } else { left() });
        // The manager has written its last event.
        heads.stop(left());
        phase.send_replace(Phase::Stopped);
        tracing::info!(drained, "stopped");
        drained
    }
}

fn start_stability(
    config: &Config,
    reader: &registry::Reader,
    program: Option<PathBuf>,
) -> Result<(Stability, stability::Stop), StartError> {
    let settings = stability::Config {
        every: config.prediction_log.reproduce_every,
        program,
        onnxruntime: config.engines.onnxruntime.clone(),
        custom_ops: config.engines.custom_ops_dir.clone(),
        data: config.data.dir.clone(),
        models: config.models.dir.clone(),
    };
    Stability::start(settings, reader.clone())
        .map_err(|source| StartError::Start { what: "the thread that runs predictions again", source })
}

fn start_history(config: &Config, reader: &registry::Reader) -> Result<(History, history::Stop), StartError> {
    History::start(&config.data.dir, control::samples(reader.clone()))
        .map_err(|source| StartError::Start { what: "the history of figures", source })
}

/// The life of requests, and the copies of them for shadows.
fn start_gateway(
    config: shadow::Config,
    figures: &shadow::Figures,
    reader: &registry::Reader,
    log: &Log,
    executor: Executor,
) -> Result<(Gateway, Shadows), StartError> {
    let shadows = Shadows::start(config, figures.clone(), reader.clone(), Some(log.clone()))
        .map_err(|source| StartError::Start { what: "the shadow threads", source })?;
    Ok((Gateway::new(reader.clone(), executor, shadows.clone(), Some(log.clone())), shadows))
}

/// The settings of the manager.
fn lifecycle_config(
    config: &Config,
    memory_budget: u64,
    recording: crate::model_settings::Recording,
    set_aside: Vec<lifecycle::SetAside>,
    remote: &sources::Remote,
) -> lifecycle::Config {
    lifecycle::Config {
        models_dir: config.models.dir.clone(),
        mirrored: remote.models_dir(),
        awaited: remote.awaited(),
        settle: config.models.settle,
        rescan: config.models.rescan,
        memory_budget,
        load_threads: config.models.load_threads,
        time_limits: config.models.time_limits,
        trusted_keys: config.models.trusted_keys.clone(),
        patience: lifecycle::Patience::default(),
        drain_timeout: config.models.drain_timeout,
        keep_warm: config.models.keep_warm,
        policy: config.models.policy,
        approval_required: config.approval.required,
        available: Available::now,
        max_answer: usize::try_from(config.server.max_answer).unwrap_or(usize::MAX),
        tolerance: Tolerance { rtol: config.shadows.rtol, atol: config.shadows.atol },
        recording: Some(recording),
        set_aside,
    }
}

/// The settings of the shadows.
fn shadow_config(config: &Config, threads: NonZeroUsize) -> shadow::Config {
    shadow::Config {
        threads,
        queue: config.shadows.queue,
        queue_bytes: usize::try_from(config.shadows.queue_bytes).unwrap_or(usize::MAX),
    }
}

/// Starts the prediction log, with the defaults for what models record, the live quality figures, and the counts of drift.
fn start_log(
    config: &Config,
    io_threads: NonZeroUsize,
    telemetry: &Telemetry,
    fleet: Option<&crate::fleet::Fleet>,
) -> Result<(Log, drift::CountedLog, crate::model_settings::Recording, Quality, Recalling), StartError> {
    let settings = &config.prediction_log;
    let quality = Quality::new(settings.quality);
    let log_config = record::Config {
        data: config.data.dir.clone(),
        // The I/O threads, and the thread that sorts copies for shadows.
        shards: io_threads.get() + 1,
        cores: Machine::detect().cores,
        uploads: uploads::rules(&settings.upload),
        ..settings.log.clone()
    };
    let (log, stop) = Log::start(log_config, quality.clone(), telemetry)
        .map_err(|source| StartError::Start { what: "the prediction log", source })?;
    // What is read next may concern rows of other gateways.
    if let Some(fleet) = fleet {
        fleet.share(&quality, log.drift(), log.key_fingerprint());
    }
    // Before any version is watched, as it continues with what was saved.
    let drift = drift::Keeper::start(log.drift().clone(), &config.data.dir, telemetry)
        .map_err(|source| StartError::Start { what: "the thread for drift", source })?;
    let recalling = Recalling::start(config.data.dir.clone(), quality.history().clone())
        .map_err(|source| StartError::Start { what: "the thread that reads the history of outcomes", source })?;
    let choice = settings.choice.clone();
    let stop = drift::CountedLog { log: stop, drift };
    Ok((log.clone(), stop, crate::model_settings::Recording { log, choice }, quality, recalling))
}

/// New files are private (`[data] group_readable`). A directory from before, or one that a volume brings, stays as it is.
fn warn_if_others_read(dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(dir).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o007 != 0 {
        tracing::warn!(
            dir = %dir.display(), mode = format!("{:o}", mode & 0o7777),
            "every user of this machine can open the data directory, which holds predictions: chmod o= closes it"
        );
    }
}

/// Reads the tokens, and makes the first one where that is asked for.
fn start_access(
    config: &Config,
    writer: &mut ledger::LedgerWriter,
    reader: &ledger::LedgerReader,
) -> Result<Access, StartError> {
    let dir = config.data.dir.display().to_string();
    let failed = |source| StartError::Ledger { dir: dir.clone(), source: Box::new(source) };
    let started = Access::start(config.access.clone(), &reader.tokens().map_err(failed)?);
    let access = started.map_err(|source| StartError::Start { what: "the check of credentials", source })?;
    if config.admin.first_token && !access.has_admin_token() {
        tokens::print_first_token(writer).map_err(failed)?;
        access.reload(|| reader.tokens()).map_err(failed)?;
    }
    let clients_have_certificates = config.admin.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if !config.admin.is_loopback() {
        if !access.has_credentials(clients_have_certificates) {
            return Err(StartError::NoCredentials { address: config.admin.listen, dir });
        }
        tracing::warn!(address = %config.admin.listen, "other machines can reach the admin plane; every request needs credentials");
        if config.admin.tls.is_none() {
            tracing::warn!(
                "tokens of operators cross the network in clear text: give the admin plane a certificate ([admin.tls])"
            );
        }
    }
    Ok(access)
}

/// The engines of this machine.
fn engines(config: &Config) -> Arc<Engines> {
    Engines::set_skip_divisions(config.engines.skip_divisions);
    let engines = Arc::new(Engines::discover_with(
        config.engines.onnxruntime.as_deref(),
        config.engines.custom_ops_dir.as_deref(),
    ));
    log_engines(&engines);
    engines
}

fn log_engines(engines: &Engines) {
    for engine in engines.describe() {
        tracing::info!(engine = engine.name, version = engine.version, available = engine.available, "{}", engine.note);
    }
}

/// Tells a supervisor how long a stop may take, and shows how often it has started this process again.
fn tell_about(parent: Option<&Supervised>, config: &Config, telemetry: &Telemetry) {
    if let Some(parent) = parent {
        parent.set_stop_within(config.server.shutdown_grace);
    }
    telemetry.process().counter(&names::RESTARTS, &[]).absolute(parent.map_or(0, |parent| parent.restarts));
}

/// Stores the crashes of earlier processes, and returns the versions that must not be loaded because of them.
fn store_crashes(
    config: &Config,
    parent: Option<&Supervised>,
    ledger: &mut ledger::LedgerWriter,
) -> Result<Vec<lifecycle::SetAside>, ledger::LedgerError> {
    let crashes = parent.map_or(&[][..], |parent| &parent.crashes);
    let attributed = crashes.iter().filter_map(|crash| {
        let version = crash.version.as_ref()?;
        Some(lifecycle::CrashedVersion {
            id: VersionId { model: version.model.clone(), version: version.version },
            // The time of the report is one that this program wrote.
            at: crash.at.parse().unwrap_or_default(),
            artifact: version.artifact.clone(),
            signal: crash.signal.clone(),
            call: version.call.clone(),
            inputs: version.inputs.clone(),
        })
    });
    let attributed: Vec<_> = attributed.collect();
    let set_aside = lifecycle::store_crashes(ledger, &sources::roots(config), &attributed, config.models.crash_limit)?;
    if let Some(parent) = parent {
        parent.set_stored(crashes.len());
    }
    Ok(set_aside)
}

/// How long a start waits for the data directory. A server that was killed a moment ago may not have ended yet: the kernel frees its memory
/// first, and then its locks.
const WAIT_FOR_DATA: Duration = Duration::from_secs(2);

/// The ledger, and the versions that must not be loaded because they ended the process before.
type OpenLedger = (ledger::LedgerWriter, ledger::LedgerReader, Vec<lifecycle::SetAside>);

/// # Errors
/// As [`ledger::open`]. When another server still has the data directory after [`WAIT_FOR_DATA`].
fn open_ledger(config: &Config, parent: Option<&Supervised>) -> Result<OpenLedger, ledger::LedgerError> {
    let until = Instant::now() + WAIT_FOR_DATA;
    loop {
        match ledger::open(&config.data.dir) {
            Err(ledger::LedgerError::InUse { .. }) if Instant::now() < until => {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            opened => {
                let (mut writer, reader) = opened?;
                let set_aside = store_crashes(config, parent, &mut writer)?;
                return Ok((writer, reader, set_aside));
            }
        }
    }
}

/// Opens both sockets before anything else, so that a second server on one machine fails before it changes anything.
fn listen_on_both(config: &Config) -> Result<Sockets, StartError> {
    let admin = listen("the admin plane", config.admin.listen)?;
    Ok(Sockets { admin, data: listen("the data plane", config.server.listen)? })
}

fn listen(plane: &'static str, address: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        // The standard library's backlog is 128. A second call changes it.
        socket2::SockRef::from(&listener).listen(BACKLOG)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| StartError::Listen { plane, address, source })
}

/// The most connections of the data plane: the configured number, or fewer if the limit on open files is lower. A warning says so.
fn fitting_connections(configured: usize, files: OpenFiles) -> usize {
    let Some(limit) = files.now else { return configured };
    // A small limit is shared equally.
    let room = usize::try_from(limit.saturating_sub(RESERVED_FILES).max(limit / 2)).unwrap_or(usize::MAX).max(1);
    if room < configured {
        tracing::warn!(
            max_connections = configured,
            open_files = limit,
            used = room,
            "server.max_connections does not fit into the limit on open files; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    configured.min(room)
}

/// With as many connections as the limit on open files has room for.
fn http_config_that_fits(config: &Config, io_threads: NonZeroUsize) -> http::Config {
    let max_connections = fitting_connections(config.server.max_connections, machine::raise_open_files());
    http::Config { max_connections, ..http_config(config, io_threads) }
}

fn http_config(config: &Config, io_threads: NonZeroUsize) -> http::Config {
    let server = &config.server;
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    http::Config {
        max_in_flight: server.max_in_flight,
        max_unfinished: server.max_unfinished,
        max_unfinished_per_peer: server.unfinished_per_peer(),
        max_connections: server.max_connections,
        max_streams: server.max_streams,
        max_body: bytes(server.max_body),
        max_headers: bytes(server.max_headers),
        header_timeout: server.header_timeout,
        body_timeout: server.body_timeout,
        idle_timeout: server.idle_timeout,
        write_timeout: server.write_timeout,
        request_timeout: server.request_timeout,
        max_request_timeout: server.max_request_timeout.max(Duration::from_millis(1)),
        version_headers: server.version_headers,
        version_in_body: server.version_in_body,
        default_model: config.serving.default_model.clone(),
        io_threads,
    }
}
