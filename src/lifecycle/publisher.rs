//! Publishing: puts changed models into a new snapshot, decides whether the server is ready, and then reports what was done.

use super::Config;
use super::model_record::Model;
use super::state::is_settled;
use crate::model::{ModelName, Version, VersionId};
use crate::registry::{Snapshot, State, Writer};
use crate::telemetry::{Telemetry, names};
use metrics::Gauge;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{error, info, warn};

/// The only writer of the registry.
pub(super) struct Publisher {
    writer: Writer,
    pub readiness: Readiness,
    /// Models that changed since the last publish.
    pub changed: BTreeSet<ModelName>,
    /// Runs after the next publish: replies and log lines that report what it made visible.
    after_publish: Vec<Box<dyn FnOnce() + Send>>,
    retired: Gauge,
    unserved: Gauge,
}

/// Decides whether the server is ready. Once it is, it stays ready until it stops.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    /// The whole models directory was read.
    pub scanned: bool,
    /// Versions found at start that are neither ready nor failed yet.
    pub awaited: BTreeSet<VersionId>,
    /// Models with a document, and whether it can be served.
    documents: BTreeMap<ModelName, Servable>,
    reached: bool,
}

/// Whether a model's document can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Servable {
    Yes,
    /// A version that it names is being loaded.
    NotYet,
    /// A version that it names failed or has no files.
    No,
}

/// How often a version that a document names may fail for a reason that may pass, such as a network disk, before the server becomes ready
/// without it: after about 7 s.
const PATIENT_ATTEMPTS: u32 = 4;

impl Publisher {
    #[must_use]
    pub(super) fn new(writer: Writer, telemetry: &Telemetry) -> Publisher {
        Publisher {
            writer,
            readiness: Readiness::default(),
            changed: BTreeSet::new(),
            after_publish: Vec::new(),
            retired: telemetry.process().gauge(&names::SNAPSHOTS_RETIRED, &[]),
            unserved: telemetry.process().gauge(&names::MODELS_UNSERVED, &[]),
        }
    }

    /// Publishes every changed model in one step, and then runs what waits for it. While `stopping`, nothing is published as loaded. `has_begun`: this
    /// gateway has what its fleet says of its models, or is in none.
    pub(super) fn publish(
        &mut self,
        models: &BTreeMap<ModelName, Model>,
        config: &Config,
        stopping: bool,
        has_begun: bool,
    ) {
        self.readiness.update(&self.changed, models);
        self.unserved
            .set(self.readiness.documents.values().filter(|servable| **servable != Servable::Yes).count() as f64);
        let ready = !stopping && self.readiness.is_ready(has_begun);
        let before = self.writer.snapshot();
        if !self.changed.is_empty() || before.ready != ready {
            let mut next = if stopping { Snapshot::default() } else { self.entries(&before, models, config) };
            next.ready = ready;
            drop(before);
            self.writer.publish(next);
            if ready && !std::mem::replace(&mut self.readiness.reached, true) {
                self.report_ready();
            }
        }
        for report in std::mem::take(&mut self.after_publish) {
            report();
        }
        self.collect();
    }

    fn report_ready(&self) {
        let snapshot = self.writer.snapshot();
        let mut unserved: Vec<String> =
            snapshot.models().filter_map(|entry| entry.unserved()).map(|unserved| unserved.to_string()).collect();
        unserved.sort();
        if unserved.is_empty() {
            info!("ready: every version found at start is ready or failed, and every model can be served");
        } else {
            warn!(
                models = unserved.len(),
                "ready, but these models cannot be served as a whole: {}",
                unserved.join(" | ")
            );
        }
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
            match models.get(name).filter(|m| m.document.is_some() && !m.is_out()) {
                Some(model) => drop(self.documents.insert(name.clone(), Servable::of(model))),
                None => drop(self.documents.remove(name)),
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

    /// What cannot be served is reported and holds nothing else. But a server that can serve none of its documents is not ready: its
    /// models directory may not be mounted.
    fn is_ready(&self, has_begun: bool) -> bool {
        let is_waiting = self.documents.values().any(|servable| *servable == Servable::NotYet);
        let serves = self.documents.is_empty() || self.documents.values().any(|servable| *servable == Servable::Yes);
        self.reached || has_begun && self.scanned && self.awaited.is_empty() && !is_waiting && serves
    }
}

impl Servable {
    fn of(model: &Model) -> Servable {
        let missing = model.serving().into_iter().filter(|v| !model.is_callable(*v));
        let may_come = |version: Version| {
            model.versions.get(&version).is_some_and(|record| match record.state() {
                State::Loading | State::Verifying | State::Warming | State::Ready | State::Serving => true,
                State::Pending => record.has_files(),
                State::Failed => record.retry_at.is_some() && record.attempts < PATIENT_ATTEMPTS,
                State::Draining | State::Unloaded => false,
            })
        };
        missing
            .map(may_come)
            .max()
            .map_or(Servable::Yes, |may_come| if may_come { Servable::NotYet } else { Servable::No })
    }
}
