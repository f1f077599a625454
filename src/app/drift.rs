//! The thread that judges drift, and keeps its counts over a restart.

use crate::drift::Drift;
use crate::machine::{durable, lower_priority};
use crate::model::ModelName;
use crate::record::{self, now};
use crate::telemetry::{Telemetry, names};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often hours that have ended are looked for.
const EVERY: Duration = Duration::from_secs(5);
/// How often counts are saved: at most this much of them is lost where the process is killed.
const SAVE_EVERY: Duration = Duration::from_mins(10);
/// The most bytes that a start reads. Other states are not continued.
const MAX_READ: u64 = 256 << 20;
const NICE: i32 = 10;

/// The thread.
#[derive(Debug)]
pub(super) struct Keeper {
    thread: JoinHandle<()>,
    stop: Sender<()>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

/// The prediction log, and the thread that judges what it counts.
#[derive(Debug)]
pub(super) struct CountedLog {
    pub(super) log: record::Stop,
    pub(super) drift: Keeper,
}

impl CountedLog {
    /// Writes what is queued, and then saves the counts. `left`: the time that is left.
    pub(super) fn stop(self, left: impl Fn() -> Duration) {
        self.log.stop(left());
        self.drift.stop(left());
    }
}

impl Keeper {
    /// Continues with the counts in the data directory, and starts the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(drift: Drift, data: &Path, telemetry: &Telemetry) -> io::Result<Keeper> {
        let dir = data.join("drift");
        load(&drift, &dir);
        // What is over since then is over before anybody asks.
        drift.work(now());
        let process = telemetry.process();
        let gauges = (process.gauge(&names::DRIFT_ALARMS, &[]), process.gauge(&names::DRIFT_SHARE, &[]));
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let (alive, ended) = crossbeam_channel::bounded(0);
        let thread = std::thread::Builder::new().name("drift".to_owned()).spawn(move || {
            let _alive: Sender<()> = alive;
            lower_priority("drift", NICE);
            run(&drift, &dir, &stopped, &|| {
                gauges.0.set(drift.troubles().len() as f64);
                gauges.1.set(drift.least_share());
            });
        })?;
        Ok(Keeper { thread, stop, ended })
    }

    /// Saves the counts, within this time, and ends the thread.
    pub(super) fn stop(self, within: Duration) {
        drop(self.stop);
        match self.ended.recv_timeout(within) {
            Err(RecvTimeoutError::Timeout) => tracing::warn!("the counts of drift were not saved in time"),
            // It ends at once after it has dropped its sender.
            _ => drop(self.thread.join()),
        }
    }
}

/// Works until it is told to stop. `show` updates the metrics.
fn run(drift: &Drift, dir: &Path, stopped: &Receiver<()>, show: &dyn Fn()) {
    let mut saved = Instant::now();
    loop {
        let go_on = matches!(stopped.recv_timeout(EVERY), Err(RecvTimeoutError::Timeout));
        drift.work(now());
        show();
        if !go_on || saved.elapsed() >= SAVE_EVERY {
            save(drift, dir);
            saved = Instant::now();
        }
        if !go_on {
            return;
        }
    }
}

fn path(dir: &Path, model: &ModelName) -> PathBuf {
    dir.join(format!("{model}.json"))
}

/// Writes the models that changed, each complete or not at all.
fn save(drift: &Drift, dir: &Path) {
    let changed = drift.changed();
    if changed.is_empty() {
        return;
    }
    let failed =
        |error: io::Error| tracing::warn!(%error, "the counts of drift cannot be saved; a restart would lose them");
    if let Err(error) = fs::create_dir_all(dir) {
        return failed(error);
    }
    for model in changed {
        if let Err(error) = durable::write_atomically(&path(dir, &model), drift.save(&model).as_bytes()) {
            return failed(error);
        }
    }
}

/// Reads what was saved. What cannot be read is not continued.
fn load(drift: &Drift, dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut left = MAX_READ.min(Drift::MAX_SAVED);
    for entry in entries.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(model) = name.strip_suffix(".json").and_then(|name| name.parse::<ModelName>().ok()) else { continue };
        let length = entry.metadata().map_or(0, |metadata| if metadata.is_file() { metadata.len() } else { u64::MAX });
        if length > left {
            tracing::warn!(model = %model, length, "the counts of drift begin anew: their file is too large");
            continue;
        }
        left -= length;
        let read = fs::read(entry.path()).map_err(|e| e.to_string());
        if let Err(error) = read.and_then(|bytes| drift.load(&model, &bytes)) {
            tracing::warn!(model = %model, error, "the counts of drift begin anew: their file cannot be read");
        }
    }
}
