//! stability: runs a sample of the logged predictions of each serving version again, and keeps whether the answers were the same.
//!
//! - [`Stability::start`] starts a thread. Once in [`Config::every`] it takes one version after the other that traffic goes to and whose predictions are
//!   logged, and starts the command `reproduce --sample` for it: a process of its own at the lowest priority, on idle cores, which is ended after
//!   [`LONGEST`]. A version that would not fit twice into the memory that is left is passed over.
//! - [`Stability::of`] returns the last result of each version of a model. Results are kept over a restart (`reproduced.json` in the data directory).
//! - [`Stability::different`] lists the versions whose last sample that says something had another answer: a sample in which nothing could be run says nothing.
//! - The same bytes should give the same bits. Where a request ran together with others, equal within rounding is as good.
//!
//! Uses: machine (memory, durable files), model, registry (reader), route, telemetry.
//!
//! Invariant: no request and no other thread waits for it, and it is off where predictions are not logged.
//!
//! To add a figure: a field of [`Ran`], which the command prints as JSON (`app/offline.rs`), shown by the admin plane.

mod child;
mod kept;
#[cfg(test)]
mod tests;

use crate::machine::Available;
use crate::model::{ModelName, Version};
use crate::registry::{Entry, Reader, Snapshot};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jiff::Timestamp;
use kept::{Kept, Results};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A process is ended after this long.
const LONGEST: Duration = Duration::from_mins(2);
/// Requests that are run again of each version.
pub const REQUESTS: usize = 20;
/// A version needs this many times the bytes of its files: they are in the memory of another process once more.
const MEMORY_FACTOR: u64 = 3;

/// What runs, and how often.
#[derive(Debug, Clone)]
pub struct Config {
    /// From one sample of a version to the next.
    pub every: Duration,
    /// The program. `None`, where this process is not the one of the command line: nothing is run again.
    pub program: Option<PathBuf>,
    /// The path of ONNX Runtime's library, where the configuration names one.
    pub onnxruntime: Option<PathBuf>,
    /// The directory of libraries with custom operators, where the configuration names one.
    pub custom_ops: Option<PathBuf>,
    pub data: PathBuf,
    pub models: PathBuf,
}

/// What came of a sample, as the command prints it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ran {
    /// Answered requests that the sample was drawn from.
    pub answered: u64,
    /// Bit for bit as logged; the same within rounding; and neither.
    pub equal: u64,
    pub close: u64,
    pub different: u64,
    /// Requests that could not be run again, as their inputs are not recorded.
    pub not_run: u64,
    /// A request that is different, with how much; and why one was not run.
    pub first_different: Option<String>,
    pub words: Option<String>,
    pub why_not_run: Option<String>,
}

/// The last result of a version.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    pub at: Timestamp,
    /// `Err`: why nothing was run, in words.
    pub ran: Result<Ran, String>,
}

/// The results. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Stability(Arc<Mutex<Results>>);

/// Ends the thread and its process.
#[derive(Debug)]
pub struct Stop {
    asked: Sender<()>,
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Stability {
    /// Starts the thread. It does nothing without a program, or where [`Config::every`] is zero.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(config: Config, reader: Reader) -> std::io::Result<(Stability, Stop)> {
        let stability = Stability(Arc::new(Mutex::new(kept::read(&config.data))));
        let kept = stability.clone();
        let (asked, stopped) = crossbeam_channel::bounded(1);
        let (alive, ended) = crossbeam_channel::bounded(0);
        let thread = std::thread::Builder::new().name("stability".to_owned()).spawn(move || {
            let _alive: Sender<()> = alive;
            if let Some(program) = config.program.clone().filter(|_| !config.every.is_zero()) {
                crate::machine::lower_priority("stability", 10);
                kept.work(&config, &program, &reader, &stopped);
            }
        })?;
        Ok((stability, Stop { asked, ended, thread }))
    }

    /// The last result of each version of a model.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> Vec<(Version, Checked)> {
        let all = self.lock();
        let of_model = all.iter().filter(|((of, _), _)| of == model);
        of_model.map(|((_, version), kept)| (*version, kept.last.clone())).collect()
    }

    /// The versions with an answer that is different. Not those that have left (their traffic document names them no more).
    #[must_use]
    pub fn different(&self, reader: &Reader) -> Vec<(ModelName, Version, Ran)> {
        let snapshot = reader.snapshot();
        let all = self.lock();
        let found = all.iter().filter_map(|((model, version), kept)| {
            let ran = kept.judged.as_ref()?.ran.as_ref().ok()?;
            (ran.different > 0 && !has_left(&snapshot, model, *version)).then(|| (model.clone(), *version, ran.clone()))
        });
        found.collect()
    }

    fn work(&self, config: &Config, program: &std::path::Path, reader: &Reader, stopped: &Receiver<()>) {
        // The first sample comes after one period: a start has enough to do.
        let mut next = Instant::now() + config.every;
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            if !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout)) {
                return;
            }
            next = Instant::now() + config.every;
            let snapshot = reader.snapshot();
            self.lock().retain(|(model, version), _| !has_left(&snapshot, model, *version));
            for serving in serving(&snapshot) {
                let ran = if serving.fits() {
                    child::run(config, program, &serving.model, serving.version, stopped)
                } else {
                    Some(Err("there is too little memory to load the version a second time".to_owned()))
                };
                // It was ended in the middle.
                let Some(ran) = ran else { return };
                if let Ok(ran) = &ran {
                    serving.metrics.reproduced(ran.equal, ran.close, ran.different);
                }
                let mut results = self.lock();
                let next = Kept::next(results.get(&serving.id()), Checked { at: Timestamp::now(), ran });
                results.insert(serving.id(), next);
            }
            // Not under the lock: the disk may be slow.
            let results = self.lock().clone();
            kept::write(&config.data, &results);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Results> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stop {
    /// Ends the process in progress, and waits at most so long.
    pub fn stop(self, within: Duration) {
        drop(self.asked);
        if !matches!(self.ended.recv_timeout(within), Err(RecvTimeoutError::Timeout)) {
            // It ends at once after it has dropped its sender.
            drop(self.thread.join());
        }
    }
}

/// A version that traffic goes to, and whose predictions are logged.
struct Serving {
    model: ModelName,
    version: Version,
    bytes: u64,
    metrics: Arc<crate::telemetry::VersionMetrics>,
}

impl Serving {
    fn id(&self) -> (ModelName, Version) {
        (self.model.clone(), self.version)
    }

    fn fits(&self) -> bool {
        Available::now().is_none_or(|available| available.bytes / MEMORY_FACTOR > self.bytes)
    }
}

/// Whether a version's results say nothing any more: its traffic document names it no more, its predictions are not logged any more, or its model is gone.
/// One that is not loaded at the moment, as at a start, has not left.
fn has_left(snapshot: &Snapshot, model: &ModelName, version: Version) -> bool {
    let Some(entry) = snapshot.model(model.as_str()) else { return snapshot.ready };
    if entry.document().is_some_and(|document| !document.serving().contains(&version)) {
        return true;
    }
    let is_loaded = entry.versions().get(&version).is_some_and(|status| status.loaded.is_some());
    is_loaded && entry.stream(version).is_none()
}

fn serving(snapshot: &Snapshot) -> Vec<Serving> {
    let of_model = |entry: &Entry| {
        let versions = entry.document().map(crate::route::Document::serving).unwrap_or_default();
        let loaded = entry.versions().values().filter_map(|status| status.loaded.clone());
        let logged = loaded
            .filter(|loaded| versions.contains(&loaded.version) && entry.stream(loaded.version).is_some())
            .map(|loaded| Serving {
                model: loaded.model.clone(),
                version: loaded.version,
                bytes: loaded.facts.bytes,
                metrics: Arc::clone(&loaded.metrics),
            });
        logged.collect::<Vec<_>>()
    };
    snapshot.models().flat_map(|entry| of_model(entry)).collect()
}
