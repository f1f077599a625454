//! Tries a version in a process of its own, before this process loads it.
//!
//! An engine is a library in our address space: a file that makes it abort, take all memory or never end would end the server. So each file
//! is first loaded and run in a *trial process*: the same binary, with a limit on its memory and on its time. It runs the requests that
//! verification and warm-up make, and requests with empty inputs, because some kernels end the process on them.
//!
//! | what happens in the trial | what follows |
//! |---|---|
//! | the process ends (signal, abort) while it loads or runs a plain request | the version fails to load, in words |
//! | it takes more memory than it may (2 GiB and six times its files, within what is left) | the version fails to load |
//! | the load takes longer than its limit | the version fails to load |
//! | the requests take longer | the version loads; this process can end its own runs. Empty inputs are refused |
//! | the process ends on an empty input | requests with such inputs are refused (400) |
//! | no trial is possible (no process can be started, the files are too large for a second copy) | the version loads; empty inputs are refused |
//!
//! A process serves many trials, one after another. It ends after 20 s without work, and with the server. Complete results are kept in the
//! data directory (`known.rs`): a restart does not repeat them.

mod child;
mod known;
mod message;
mod plan;
mod process;

pub use child::run_trials;
pub use process::Program;

use super::Loader;
use super::digest::{artifact_digests, artifact_sha256, file_sha256};
use super::limits::TimeLimits;
use crate::backend::{
    EmptyAxes, EmptyInputs, EngineChoice, EngineOptions, Engines, GraphFacts, LoadError, Model, RunError, Session,
    Tried, VersionFiles, free_axes,
};
use crate::machine;
use crate::model::Signature;
use crate::registry::Stage;
use known::Known;
use message::{Event, Order, engine_name};
use process::{Ended, NoEvent, TrialProcess};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// How versions are tried.
#[derive(Debug, Clone)]
pub struct TrialConfig {
    pub program: Program,
    /// The limit of the stage `load` is the limit of a load in the trial process too.
    pub limits: TimeLimits,
    /// The memory that this process and the trial process may use together, in bytes.
    pub memory: u64,
    /// The file that keeps the results.
    pub known: Option<PathBuf>,
}

/// The longest that all requests of a trial may take.
const RUNS_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest load, whatever its limit: one that the clock can express.
const LONGEST: Duration = Duration::from_hours(24);
/// The most processes that one trial may end with empty inputs; what is left then counts as not tried.
const MAX_FATAL: usize = 6;
/// A process that held more memory than this is not used again, so that the memory goes back.
const KEEP_BELOW: u64 = 256 << 20;
/// Processes that wait for work; more are ended.
const MAX_IDLE: usize = 4;
/// What a load may take beside a multiple of its files: the buffers of a request, the engine's own tables.
const LEAST_MEMORY: u64 = 2 << 30;
/// How many times the size of its files a load may take: the file, the weights, the weights in the order in which kernels read them.
const TIMES_FILES: u64 = 6;

/// Engines whose versions are tried in another process first.
#[derive(Debug)]
pub struct TriedEngines {
    engines: Arc<Engines>,
    config: TrialConfig,
    known: Option<Known>,
    /// Processes without work, at most [`MAX_IDLE`].
    idle: Mutex<Vec<TrialProcess>>,
    /// Said once: trials are not possible here.
    impossible: Once,
}

/// The result of a trial that did not fail.
#[derive(Debug)]
enum Trial {
    /// The engine, and what is known about empty inputs, by combination.
    Done {
        engine: String,
        empty: Findings,
    },
    /// The engine refused the file, in order: this process gives the same reason.
    Refused,
    NotTried(String),
}

/// What trial runs with empty inputs showed.
#[derive(Debug, Default)]
struct Findings {
    safe: BTreeSet<EmptyAxes>,
    fatal: Vec<usize>,
    /// Why the trial ended early, where it did.
    incomplete: Option<String>,
}

/// The part of a trial that a process is in.
enum Step {
    Starting,
    Loading,
    Running(String),
    Trying(usize),
}

impl Loader for TriedEngines {
    fn load(
        &self,
        choice: EngineChoice,
        files: &VersionFiles,
        artifact: Option<&str>,
    ) -> Result<Arc<dyn Model>, LoadError> {
        let trial = self.try_or_remember(choice, files, artifact)?;
        let model = self.engines.load(choice, files)?;
        let empty_inputs = match trial {
            Trial::Done { engine, empty } if engine == model.engine() => empty.known(model.signature()),
            Trial::Done { engine, .. } => EmptyInputs::Untried(
                format!("the trial ran on the engine {engine}, and this version runs on {}", model.engine()).into(),
            ),
            Trial::Refused => EmptyInputs::Untried("the trial could not load the model".into()),
            Trial::NotTried(why) => EmptyInputs::Untried(why.into()),
        };
        Ok(Arc::new(TriedModel { model, empty_inputs }))
    }
}

impl TriedEngines {
    #[must_use]
    pub fn new(engines: Arc<Engines>, config: TrialConfig) -> TriedEngines {
        let known = config.known.as_deref().map(Known::open);
        TriedEngines { engines, config, known, idle: Mutex::default(), impossible: Once::new() }
    }

    /// Tries a version whose files were not tried before.
    ///
    /// # Errors
    /// As [`TriedEngines::try_version`].
    fn try_or_remember(
        &self,
        choice: EngineChoice,
        files: &VersionFiles,
        artifact: Option<&str>,
    ) -> Result<Trial, LoadError> {
        // Files that cannot be read are the load's to report.
        let key = self.known.as_ref().and_then(|known| Some((known, self.key(choice, files, artifact)?)));
        if let Some((known, key)) = &key
            && let Some((engine, empty)) = known.get(key)
        {
            return Ok(Trial::Done { engine, empty });
        }
        let trial = self.try_version(choice, files)?;
        if let (Some((known, key)), Trial::Done { engine, empty }) = (&key, &trial) {
            known.keep(key, engine, empty);
        }
        Ok(trial)
    }

    /// What a result depends on: the bytes of the files, the engines and how they are set up, the release of this program. `None` where a file
    /// cannot be read.
    fn key(&self, choice: EngineChoice, version: &VersionFiles, artifact: Option<&str>) -> Option<String> {
        // Large files are hashed once: who loads a version has done it.
        let mut key = match artifact {
            Some(artifact) => artifact.to_owned(),
            None => artifact_sha256(&artifact_digests(&version.dir).ok()?),
        };
        for engine in self.engines.describe() {
            if let Some(version) = engine.version {
                let _ = write!(key, " {} {version}", engine.name);
            }
        }
        let _ = write!(key, " {} {}", engine_name(choice), env!("CARGO_PKG_VERSION"));
        let EngineOptions { custom_ops, providers } = &*version.options;
        for provider in providers {
            let _ = write!(key, " {}", provider.as_str());
        }
        for file in self.engines.custom_ops_files(custom_ops).ok()? {
            let _ = write!(key, " {}", file_sha256(&file).ok()?);
        }
        Some(key)
    }

    /// Tries a version.
    ///
    /// # Errors
    /// When the version ended its process, took too much memory, or took too long to load.
    fn try_version(&self, choice: EngineChoice, version: &VersionFiles) -> Result<Trial, LoadError> {
        let VersionFiles { dir, options } = version;
        let files = bytes_of_files(dir);
        let Some((memory, is_all)) = self.memory_for(files) else {
            let why = "its files are too large for a trial in another process beside the memory in use".to_owned();
            return Ok(Trial::NotTried(why));
        };
        // The drivers of accelerators reserve address space by the terabyte.
        let memory = if self.engines.have_accelerator(options) { u64::MAX } else { memory };
        let mut order = Order {
            dir: dir.to_owned(),
            engine: engine_name(choice).to_owned(),
            custom_ops: options.custom_ops.clone(),
            providers: options.providers.iter().map(|provider| provider.as_str().to_owned()).collect(),
            memory,
            plain: true,
            known: Vec::new(),
            fatal: Vec::new(),
        };
        let load_timeout = self.config.limits.of(Stage::Load, files).min(LONGEST);
        let mut trial = OneTrial { engine: None, empty: Findings::default(), load_timeout, runs_until: None };
        loop {
            let (process, outcome) = match self.carry_out(&order, &mut trial) {
                Ok(carried_out) => carried_out,
                Err(error) => {
                    let why = format!("no trial process can be started: {error}");
                    self.impossible.call_once(|| tracing::warn!("versions are loaded without a trial: {why}"));
                    return Ok(Trial::NotTried(why));
                }
            };
            let in_trial = |what: &str| format!("a trial in a process of its own failed: {what}");
            // Where the limit was lower than it is on an empty machine, another attempt may succeed.
            let no_memory = |what: String| {
                let what = format!("{what}; the model needs more than the {} MiB that its load may take", memory >> 20);
                if is_all { LoadError::Unsupported(what) } else { LoadError::Memory(what) }
            };
            match outcome {
                ProcessOutcome::Finished { refused: None, peak } => {
                    if peak < KEEP_BELOW {
                        self.keep(process);
                    }
                    break;
                }
                ProcessOutcome::Finished { refused: Some((true, reason)), .. } => {
                    return Err(no_memory(in_trial(&reason)));
                }
                ProcessOutcome::Finished { refused: Some((false, _)), .. } => {
                    self.keep(process);
                    return Ok(Trial::Refused);
                }
                ProcessOutcome::TookLonger(Step::Starting | Step::Loading) => {
                    let exceeded = self.config.limits.exceeded(Stage::Load, files).reason;
                    return Err(LoadError::Unsupported(in_trial(&format!("the load {exceeded}"))));
                }
                ProcessOutcome::TookLonger(_) => {
                    trial.empty.incomplete = Some("the trial runs took too long".to_owned());
                    break;
                }
                ProcessOutcome::Ended(Step::Trying(combination), _) if trial.empty.fatal.len() < MAX_FATAL => {
                    trial.empty.fatal.push(combination);
                    order.fatal.push(combination);
                    order.known.extend(0..=combination);
                    order.plain = false;
                }
                ProcessOutcome::Ended(Step::Trying(_), _) => {
                    trial.empty.incomplete = Some("too many trial runs ended the engine's process".to_owned());
                    break;
                }
                ProcessOutcome::Ended(step, Ended { how, memory, .. }) => {
                    let what = match step {
                        Step::Running(what) => what,
                        _ => "the load".to_owned(),
                    };
                    let after = in_trial(&format!("{what} ended it with {how}"));
                    return Err(if memory { no_memory(after) } else { LoadError::Unsupported(after) });
                }
            }
        }
        Ok(match trial.engine {
            Some(engine) => Trial::Done { engine, empty: trial.empty },
            None => Trial::NotTried("the trial process answered nothing".to_owned()),
        })
    }

    /// The memory that a trial may take: a multiple of the files, within what is left, with a reserve. And whether it is the whole multiple.
    /// `None` where what is left is less than twice the files, as the version needs its memory in this process too.
    fn memory_for(&self, files: u64) -> Option<(u64, bool)> {
        let used = machine::resident_bytes().unwrap_or_default();
        let left = self.config.memory.saturating_sub(used) / 5 * 4;
        let wanted = LEAST_MEMORY.saturating_add(files.saturating_mul(TIMES_FILES));
        (left / 2 >= files).then(|| (wanted.min(left), wanted <= left))
    }

    /// Has a process carry out an order, and reads what it reports. A process that ended in order before it began is replaced.
    fn carry_out(&self, order: &Order, trial: &mut OneTrial) -> std::io::Result<(TrialProcess, ProcessOutcome)> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(mut process) = idle() {
            // Fails where the process has ended for want of work.
            if process.give(order).is_err() {
                continue;
            }
            match trial.read(&process) {
                ProcessOutcome::Ended(Step::Starting, _) => {}
                outcome => return Ok((process, outcome)),
            }
        }
        let mut process = TrialProcess::start(&self.config.program)?;
        process.give(order)?;
        let outcome = trial.read(&process);
        match outcome {
            ProcessOutcome::Ended(Step::Starting, Ended { how, .. }) => {
                Err(std::io::Error::other(format!("it ended with {how} before its first trial")))
            }
            outcome => Ok((process, outcome)),
        }
    }

    fn keep(&self, process: TrialProcess) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(process);
        }
    }
}

/// How a process left a trial.
enum ProcessOutcome {
    /// With the engine's refusal, and whether it was for want of memory.
    Finished {
        refused: Option<(bool, String)>,
        peak: u64,
    },
    TookLonger(Step),
    Ended(Step, Ended),
}

/// What is known in the course of a trial, over all its processes.
struct OneTrial {
    engine: Option<String>,
    empty: Findings,
    /// Of each process that loads the version.
    load_timeout: Duration,
    /// When the requests must have ended.
    runs_until: Option<Instant>,
}

impl OneTrial {
    fn read(&mut self, process: &TrialProcess) -> ProcessOutcome {
        let mut step = Step::Starting;
        let mut refused = None;
        let mut until = Instant::now() + self.load_timeout;
        loop {
            let event = match process.next(until) {
                Ok(event) => event,
                Err(NoEvent::TooLate) => return ProcessOutcome::TookLonger(step),
                Err(NoEvent::Ended(ended)) => return ProcessOutcome::Ended(step, ended),
            };
            match event {
                Event::Loading => step = Step::Loading,
                Event::Loaded { engine } => {
                    self.engine = Some(engine);
                    until = *self.runs_until.get_or_insert_with(|| Instant::now() + RUNS_TIMEOUT);
                }
                Event::Refused { memory, reason } => refused = Some((memory, reason)),
                Event::Running { what } => step = Step::Running(what),
                Event::Trying { combination } => step = Step::Trying(combination),
                Event::Survived { axes, .. } => {
                    self.empty.safe.extend(axes.get());
                }
                Event::Finished { peak_bytes } => return ProcessOutcome::Finished { refused, peak: peak_bytes },
            }
        }
    }
}

impl Findings {
    fn known(self, signature: &Signature) -> EmptyInputs {
        let combinations = plan::combinations(signature);
        if let Some(why) = self.incomplete.filter(|_| self.safe.is_empty() && self.fatal.is_empty()) {
            return EmptyInputs::Untried(why.into());
        }
        let fatal = self.fatal.iter().filter_map(|index| combinations.get(*index).copied()).collect();
        EmptyInputs::Tried(Arc::new(Tried { axes: free_axes(signature), safe: self.safe, fatal }))
    }
}

/// A model, with what a trial found out about it.
#[derive(Debug)]
struct TriedModel {
    model: Arc<dyn Model>,
    empty_inputs: EmptyInputs,
}

impl Model for TriedModel {
    fn engine(&self) -> &'static str {
        self.model.engine()
    }

    fn signature(&self) -> &Signature {
        self.model.signature()
    }

    fn graph(&self) -> &GraphFacts {
        self.model.graph()
    }

    fn limit_outputs(&self, bytes: usize) {
        self.model.limit_outputs(bytes);
    }

    fn empty_inputs(&self) -> &EmptyInputs {
        &self.empty_inputs
    }

    fn session(self: Arc<Self>) -> Result<Box<dyn Session>, RunError> {
        Arc::clone(&self.model).session()
    }
}

/// The size of the files of a version. Zero where they cannot be read: the load says why.
fn bytes_of_files(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
        .sum()
}
