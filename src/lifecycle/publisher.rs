//! Publishing: puts changed models into a new snapshot, decides whether the server is ready, and then reports what was done.

use super::Config;
use super::model_record::Model;
use super::state::is_settled;
use crate::model::{ModelName, VersionId};
use crate::registry::{Snapshot, Writer};
use crate::telemetry::{Telemetry, names};
use metrics::Gauge;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{error, info};

/// The only writer of the registry.
pub(super) struct Publisher {
    writer: Writer,
    pub readiness: Readiness,
    /// Models that changed since the last publish.
    pub changed: BTreeSet<ModelName>,
    /// Runs after the next publish: replies and log lines that report what it made visible.
    after_publish: Vec<Box<dyn FnOnce() + Send>>,
    retired: Gauge,
}

/// Decides whether the server is ready. Once it is, it stays ready until it stops.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    /// The whole models directory was read.
    pub scanned: bool,
    /// Versions found at start that are neither ready nor failed yet.
    pub awaited: BTreeSet<VersionId>,
    /// Models with a document whose versions are not all loaded.
    unservable: BTreeSet<ModelName>,
    reached: bool,
}

impl Publisher {
    #[must_use]
    pub(super) fn new(writer: Writer, telemetry: &Telemetry) -> Publisher {
        Publisher {
            writer,
            readiness: Readiness::default(),
            changed: BTreeSet::new(),
            after_publish: Vec::new(),
            retired: telemetry.process().gauge(&names::SNAPSHOTS_RETIRED, &[]),
        }
    }

    /// Publishes every changed model in one step, and then runs what waits for it. While `stopping`, nothing is published as loaded.
    pub(super) fn publish(&mut self, models: &BTreeMap<ModelName, Model>, config: &Config, stopping: bool) {
        self.readiness.update(&self.changed, models);
        let ready = !stopping && self.readiness.is_ready();
        let before = self.writer.snapshot();
        if !self.changed.is_empty() || before.ready != ready {
            let mut next = if stopping { Snapshot::default() } else { self.entries(&before, models, config) };
            next.ready = ready;
            drop(before);
            self.writer.publish(next);
            if ready && !std::mem::replace(&mut self.readiness.reached, true) {
                info!("ready: every version found at start is ready or failed, and every model can be served");
            }
        }
        for report in std::mem::take(&mut self.after_publish) {
            report();
        }
        self.collect();
    }

    fn entries(&mut self, before: &Snapshot, models: &BTreeMap<ModelName, Model>, config: &Config) -> Snapshot {
        let mut entries = Vec::new();
        let mut gone = Vec::new();
        for name in std::mem::take(&mut self.changed) {
            let Some(model) = models.get(&name) else { continue };
            if !model.is_visible() {
                gone.push(name);
                continue;
            }
            match model.entry(!self.readiness.reached, config.tolerance, config.recording.as_ref()) {
                Ok(entry) => entries.push(entry),
                // Every change is checked before it is made, so this is a bug. The published entry stays.
                Err(missing) => error!(model = %name, ?missing, "the document names versions that are not loaded"),
            }
        }
        gone.iter().fold(before.with_all(entries), |next, name| next.without(name))
    }

    /// Publishes that the server is not ready. Loaded versions go on answering.
    pub(super) fn publish_not_ready(&mut self) {
        let mut next = Snapshot::clone(&self.writer.snapshot());
        next.ready = false;
        self.writer.publish(next);
    }

    /// Runs something once the changes made so far are published.
    pub(super) fn after_publish(&mut self, report: impl FnOnce() + Send + 'static) {
        self.after_publish.push(Box::new(report));
    }

    /// Drops what waits for the next publish.
    pub(super) fn clear(&mut self) {
        self.after_publish.clear();
    }

    /// Drops replaced snapshots that no request holds. Returns how many are left.
    pub(super) fn collect(&mut self) -> usize {
        let held = self.writer.collect();
        self.retired.set(held as f64);
        held
    }
}

impl Readiness {
    fn update(&mut self, changed: &BTreeSet<ModelName>, models: &BTreeMap<ModelName, Model>) {
        for name in changed {
            // A model whose stored document cannot be read does not count: it must not make the others unavailable.
            let unservable = |m: &Model| m.document.is_some() && !m.stored.unloaded && !m.can_serve();
            if models.get(name).is_some_and(unservable) {
                self.unservable.insert(name.clone());
            } else {
                self.unservable.remove(name);
            }
        }
        if !self.awaited.is_empty() {
            for model in changed.iter().filter_map(|name| models.get(name)) {
                for (version, record) in &model.versions {
                    if is_settled(record.state()) || !record.has_files() {
                        self.awaited.remove(&model.id(*version));
                    }
                }
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.reached || self.scanned && self.awaited.is_empty() && self.unservable.is_empty()
    }
}
