//! Threads that are held by a run: what the admin plane and the metrics say about them, and what becomes of their versions.

use crate::admin::Threads;
use crate::execute;
use crate::http::DataPlane;
use crate::lifecycle::Handle;
use crate::model::{ModelName, Version};
use crate::registry::{Loaded, Reader, Stage};
use crate::telemetry::{Telemetry, names};
use metrics::{Counter, Gauge};
use std::sync::Arc;

/// Reports the threads of this process, for the admin plane's probes.
pub(super) fn report(reader: Reader, data_plane: Arc<DataPlane>) -> Arc<dyn Fn() -> Threads + Send + Sync> {
    Arc::new(move || {
        let mut stuck: Vec<String> = execute::stuck_threads().iter().map(|thread| lost_run(&reader, thread)).collect();
        let can_replace = execute::can_replace_threads();
        if !can_replace {
            stuck.push(format!("{} threads are in runs that do not end, and no more are replaced", stuck.len()));
        }
        let answers = data_plane.io_threads().add_stuck_to(&mut stuck);
        Threads { stuck, serving: answers && can_replace }
    })
}

fn lost_run(reader: &Reader, thread: &execute::StuckThread) -> String {
    let execute::StuckThread { thread: name, run_id, age, replaced } = thread;
    let whose = match loaded_by_run_id(reader, *run_id) {
        Some((model, version)) => format!("of model {model}, version {version}"),
        None => "of a version that is not loaded".to_owned(),
    };
    let then = if *replaced { "another thread does its work" } else { "nothing else runs on it" };
    format!(
        "thread {name}: a run {whose}, does not end although it was interrupted ({:.0} s); {then}",
        age.as_secs_f64()
    )
}

fn loaded_by_run_id(reader: &Reader, run_id: u64) -> Option<(ModelName, Version)> {
    let snapshot = reader.snapshot();
    let loaded = snapshot.models().flat_map(|entry| entry.versions().values()).filter_map(|v| v.loaded.as_ref());
    let found = loaded.into_iter().find(|loaded| loaded.runner.run_id() == run_id);
    found.map(|loaded| (loaded.model.clone(), loaded.version))
}

/// Counts lost runs and sets versions aside, once in each upkeep.
pub(super) struct StuckVersions {
    reader: Reader,
    handle: Handle,
    /// How many versions had become stuck when all of them were set aside.
    handled: u64,
    interrupted: Counter,
    lost: Counter,
    stuck: Gauge,
}

impl StuckVersions {
    pub(super) fn new(reader: Reader, handle: Handle, telemetry: &Telemetry) -> StuckVersions {
        let process = telemetry.process();
        StuckVersions {
            reader,
            handle,
            handled: 0,
            interrupted: process.counter(&names::RUNS_INTERRUPTED, &[]),
            lost: process.counter(&names::RUNS_LOST, &[]),
            stuck: process.gauge(&names::THREADS_STUCK, &[]),
        }
    }

    pub(super) fn look(&mut self, threads: &Threads) {
        let counts = execute::watch_counts();
        self.interrupted.absolute(counts.interrupted);
        self.lost.absolute(counts.lost);
        self.stuck.set(threads.stuck.len() as f64);
        if counts.stuck_versions != self.handled && self.set_aside() {
            self.handled = counts.stuck_versions;
        }
    }

    /// Sets every stuck version aside. False where the manager had no time; then the next upkeep tries again. Until then its requests are
    /// refused all the same.
    fn set_aside(&self) -> bool {
        let snapshot = self.reader.snapshot();
        let loaded = snapshot.models().flat_map(|entry| entry.versions().values()).filter_map(|v| v.loaded.as_ref());
        let mut all = true;
        for loaded in loaded {
            let Loaded { model, version, runner, .. } = &**loaded;
            if let Some(why) = runner.stuck() {
                tracing::error!(%model, %version, "the version is set aside: {why}");
                all &= self.handle.set_aside(model.clone(), *version, Stage::Stuck, why);
            }
        }
        all
    }
}
