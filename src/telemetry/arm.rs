//! The handles a request counts with: made when a version is published, found by index afterwards.

use super::counts::{ArmCounts, ArmEvidence};
use super::names;
use super::scope::Scope;
use super::shadow::ShadowMetrics;
use crate::model::{Code, ModelName, Version};
use metrics::{Counter, Gauge, Histogram};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// What one version counts, whoever sends to it.
#[derive(Debug)]
pub struct VersionMetrics {
    scope: Arc<Scope>,
    model: ModelName,
    version: String,
    infer: Histogram,
    queue: Histogram,
    /// Made with the first run on a worker: most versions run at once.
    batch_rows: OnceLock<Histogram>,
    nonfinite: Counter,
    keyless: Counter,
    in_flight_gauge: Gauge,
    in_flight: AtomicU64,
    arms: Mutex<Vec<ArmUnder>>,
    /// Made when it is a shadow for the first time: most versions never are.
    shadow: OnceLock<ShadowMetrics>,
}

/// What one arm did under one revision of the traffic document.
#[derive(Debug)]
struct ArmUnder {
    arm: String,
    revision: u64,
    counts: Arc<ArmCounts>,
}

impl VersionMetrics {
    #[must_use]
    pub fn new(scope: Arc<Scope>, model: ModelName, version: Version) -> Arc<VersionMetrics> {
        let version = version.to_string();
        let labels: [(&'static str, &str); 2] = [("model", model.as_str()), ("version", &version)];
        let metrics = Arc::new(VersionMetrics {
            infer: scope.histogram(&names::INFER_SECONDS_M, &labels),
            queue: scope.histogram(&names::QUEUE_SECONDS_M, &labels),
            batch_rows: OnceLock::new(),
            nonfinite: scope.counter(&names::NONFINITE, &labels),
            keyless: scope.counter(&names::STICKY_KEY_MISSING, &labels),
            in_flight_gauge: scope.gauge(&names::IN_FLIGHT, &labels),
            in_flight: AtomicU64::new(0),
            arms: Mutex::new(Vec::new()),
            shadow: OnceLock::new(),
            scope,
            model,
            version,
        });
        metrics.scope.set_version(&metrics);
        metrics
    }

    #[must_use]
    pub fn model(&self) -> &ModelName {
        &self.model
    }

    /// As labels spell it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn ran(&self, infer: Duration) {
        self.infer.record(infer.as_secs_f64());
    }

    pub fn queued(&self, waited: Duration) {
        self.queue.record(waited.as_secs_f64());
    }

    /// Counts a run on a worker, by its rows.
    pub fn batched(&self, rows: usize) {
        let labels = [("model", self.model.as_str()), ("version", self.version.as_str())];
        let rows_of_runs = self.batch_rows.get_or_init(|| self.scope.histogram(&names::BATCH_ROWS_M, &labels));
        rows_of_runs.record(rows as f64);
    }

    pub fn nonfinite(&self, elements: usize) {
        if elements > 0 {
            self.nonfinite.increment(elements as u64);
        }
    }

    /// Counts a request that lacked the key its arm should have been chosen by.
    pub fn keyless(&self) {
        self.keyless.increment(1);
    }

    /// Files counted against the memory budget.
    pub fn bytes(&self, bytes: u64) {
        let labels = [("model", self.model.as_str()), ("version", self.version.as_str())];
        self.scope.gauge(&names::LOADED_BYTES, &labels).set(bytes as f64);
    }

    /// What became of the copies it was sampled for.
    pub fn shadow(&self) -> &ShadowMetrics {
        self.shadow.get_or_init(|| ShadowMetrics::new(&self.scope, self.model.as_str(), &self.version))
    }

    /// The same, where it was ever sampled for one.
    #[must_use]
    pub fn shadow_so_far(&self) -> Option<&ShadowMetrics> {
        self.shadow.get()
    }

    /// Requests that hold this version now.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Counts one request in until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }

    /// Shows the in-flight count to the scraper; called by [`super::Telemetry::render`] rather than per request.
    pub(super) fn show_in_flight(&self) {
        self.in_flight_gauge.set(self.in_flight() as f64);
    }

    /// The counts of an arm under a revision: the same ones however often entries are built anew, so that a version that comes
    /// ready beside it does not set them back. Counts of older revisions that nobody holds are forgotten.
    fn counts_of(&self, arm: &str, revision: u64) -> Arc<ArmCounts> {
        let mut arms = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        arms.retain(|known| known.revision >= revision || Arc::strong_count(&known.counts) > 1);
        if let Some(known) = arms.iter().find(|known| known.arm == arm && known.revision == revision) {
            return Arc::clone(&known.counts);
        }
        let counts = Arc::<ArmCounts>::default();
        arms.push(ArmUnder { arm: arm.to_owned(), revision, counts: Arc::clone(&counts) });
        counts
    }
}

/// One request on a version, for as long as this lives.
#[derive(Debug)]
pub struct InFlight(Arc<VersionMetrics>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How requests on one arm ended; one pair of handles per status, made the first time that status happens.
#[derive(Debug)]
pub struct ArmMetrics {
    version: Arc<VersionMetrics>,
    arm: String,
    /// Of an arm of a split alone: other parts are no side of anything.
    counts: Option<Arc<ArmCounts>>,
    /// One slot for `ok`, then one per [`Code`], in the order of [`Code::ALL`].
    ended: [OnceLock<(Counter, Histogram)>; 1 + Code::ALL.len()],
}

impl ArmMetrics {
    #[must_use]
    pub fn new(version: Arc<VersionMetrics>, arm: &str) -> ArmMetrics {
        ArmMetrics::counting(version, arm, None)
    }

    /// For an arm of a split: [`ArmMetrics::requests`] counts since this revision of the document came into force.
    #[must_use]
    pub fn of_revision(version: Arc<VersionMetrics>, arm: &str, revision: u64) -> ArmMetrics {
        let counts = version.counts_of(arm, revision);
        ArmMetrics::counting(version, arm, Some(counts))
    }

    fn counting(version: Arc<VersionMetrics>, arm: &str, counts: Option<Arc<ArmCounts>>) -> ArmMetrics {
        let ended = [const { OnceLock::new() }; 1 + Code::ALL.len()];
        ArmMetrics { version, arm: arm.to_owned(), counts, ended }
    }

    /// Requests that ended on this arm of a split under its revision, however they did.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.counts.as_ref().map_or(0, |counts| counts.requests())
    }

    /// What a rollout judges this arm by; nothing where it is no arm of a split.
    #[must_use]
    pub fn evidence(&self) -> ArmEvidence {
        self.counts.as_ref().map(|counts| counts.read()).unwrap_or_default()
    }

    /// Counts the output elements of one request that JSON has no number for.
    pub fn nonfinite(&self, elements: usize) {
        if elements > 0 {
            self.version.nonfinite(elements);
            if let Some(counts) = &self.counts {
                counts.nonfinite();
            }
        }
    }

    /// Counts one request that took `took` from body read to answer ready; `None` is `ok`. `fitted`: it fitted the version's
    /// signature, or was refused unseen, so that a failure is the version's and not the caller's.
    pub fn ended(&self, failed: Option<Code>, took: Duration, fitted: bool) {
        let slot = failed.map_or(0, |code| 1 + code as usize);
        let (count, seconds) = self.ended[slot].get_or_init(|| {
            let VersionMetrics { scope, model, version, .. } = &*self.version;
            let labels: [(&'static str, &str); 4] = [
                ("model", model.as_str()),
                ("version", version),
                ("arm", &self.arm),
                ("status", failed.map_or("ok", Code::as_str)),
            ];
            (scope.counter(&names::REQUESTS, &labels), scope.histogram(&names::REQUEST_SECONDS_M, &labels))
        });
        if let Some(counts) = &self.counts {
            counts.ended(failed, took, fitted);
        }
        count.increment(1);
        seconds.record(took.as_secs_f64());
    }
}
