//! The metric handles of versions and arms. They are made when a version is published, so a request looks nothing up.

use super::counts::{ArmCounts, ArmEvidence, ArmTotals, Ended, Unit};
use super::exemplars::Exemplars;
use super::keys::KeyNotes;
use super::names;
use super::scope::Scope;
use super::shadow::ShadowMetrics;
use super::watched::Watch;
use crate::model::{Code, ModelName, Version};
use metrics::{Counter, Gauge, Histogram};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The metrics of one version, over all arms.
#[derive(Debug)]
pub struct VersionMetrics {
    scope: Arc<Scope>,
    model: ModelName,
    version: String,
    infer: Histogram,
    queue: Histogram,
    /// Made at the first run on a worker; most versions never have one.
    batch_rows: OnceLock<Histogram>,
    nonfinite: Counter,
    missing_key: Counter,
    /// The time in the engine in nanoseconds, and the rows, of all runs that answered requests.
    engine_ns: AtomicU64,
    engine_rows: AtomicU64,
    in_flight_gauge: Gauge,
    in_flight: AtomicU64,
    exemplars: Exemplars,
    arms: Mutex<Vec<RevisionCounts>>,
    /// Made when the version first becomes a shadow; most versions never do.
    shadow: OnceLock<ShadowMetrics>,
    /// Made when its breaker first keeps a request from it, and when it first answers as a fallback.
    breaker_refused: OnceLock<Counter>,
    fallbacks: OnceLock<Counter>,
}

/// The counts of one arm under one revision of the traffic document.
#[derive(Debug)]
struct RevisionCounts {
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
            missing_key: scope.counter(&names::STICKY_KEY_MISSING, &labels),
            engine_ns: AtomicU64::new(0),
            engine_rows: AtomicU64::new(0),
            in_flight_gauge: scope.gauge(&names::IN_FLIGHT, &labels),
            in_flight: AtomicU64::new(0),
            exemplars: Exemplars::default(),
            arms: Mutex::new(Vec::new()),
            shadow: OnceLock::new(),
            breaker_refused: OnceLock::new(),
            fallbacks: OnceLock::new(),
            scope,
            model,
            version,
        });
        metrics.scope.set_version(&metrics);
        metrics
    }

    #[must_use]
    pub(crate) fn model(&self) -> &ModelName {
        &self.model
    }

    /// The version as a label value.
    #[must_use]
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// What follows the buckets of its latency histograms, by their labels.
    pub(super) fn exemplars_into(&self, all: &mut BTreeMap<String, String>) {
        self.exemplars.add_to(all, self.model.as_str(), &self.version);
    }

    /// Counts the time of a run inside the engine, and its rows.
    pub(crate) fn ran(&self, infer: Duration, rows: usize) {
        self.infer.record(infer.as_secs_f64());
        self.engine_ns.fetch_add(u64::try_from(infer.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.engine_rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// The time in the engine in nanoseconds, and the rows, of all runs so far.
    #[must_use]
    pub(crate) fn engine(&self) -> (u64, u64) {
        (self.engine_ns.load(Ordering::Relaxed), self.engine_rows.load(Ordering::Relaxed))
    }

    /// Counts the time a request waited for a worker.
    pub(crate) fn queued(&self, waited: Duration) {
        self.queue.record(waited.as_secs_f64());
    }

    /// Counts the rows of a run on a worker.
    pub(crate) fn batched(&self, rows: usize) {
        let labels = [("model", self.model.as_str()), ("version", self.version.as_str())];
        let rows_of_runs = self.batch_rows.get_or_init(|| self.scope.histogram(&names::BATCH_ROWS_M, &labels));
        rows_of_runs.record(rows as f64);
    }

    /// Counts output elements that were NaN or infinite.
    pub(crate) fn nonfinite(&self, elements: usize) {
        if elements > 0 {
            self.nonfinite.increment(elements as u64);
        }
    }

    /// Counts logged predictions that were run again.
    pub(crate) fn reproduced(&self, equal: u64, close: u64, different: u64) {
        for (result, count) in [("equal", equal), ("close", close), ("different", different)] {
            let labels = [("model", self.model.as_str()), ("version", self.version.as_str()), ("result", result)];
            self.scope.counter(&names::REPRODUCED, &labels).increment(count);
        }
    }

    /// Counts a request without the key that the split uses.
    pub(crate) fn keyless(&self) {
        self.missing_key.increment(1);
    }

    /// Shows whether its breaker is open.
    pub(crate) fn breaker_open(&self, open: bool) {
        let labels = [("model", self.model.as_str()), ("version", self.version.as_str())];
        self.scope.gauge(&names::BREAKER_OPEN, &labels).set(f64::from(u8::from(open)));
    }

    /// Counts a request that its open breaker kept from it.
    pub(crate) fn kept_off(&self) {
        self.once(&self.breaker_refused, &names::BREAKER_REFUSED).increment(1);
    }

    /// Counts a request that it answers as a fallback.
    pub(crate) fn falls_back(&self) {
        self.once(&self.fallbacks, &names::FALLBACKS).increment(1);
    }

    fn once<'c>(&self, counter: &'c OnceLock<Counter>, name: &names::Metric) -> &'c Counter {
        let labels = [("model", self.model.as_str()), ("version", self.version.as_str())];
        counter.get_or_init(|| self.scope.counter(name, &labels))
    }

    /// Sets the bytes of the version's files, as counted against the memory budget.
    pub(crate) fn bytes(&self, bytes: u64) {
        let labels = [("model", self.model.as_str()), ("version", self.version.as_str())];
        self.scope.gauge(&names::LOADED_BYTES, &labels).set(bytes as f64);
    }

    /// The counts of copies for this version as a shadow.
    pub(crate) fn shadow(&self) -> &ShadowMetrics {
        self.shadow.get_or_init(|| ShadowMetrics::new(&self.scope, self.model.as_str(), &self.version))
    }

    /// The same; `None` where it never was a shadow.
    #[must_use]
    pub(crate) fn shadow_so_far(&self) -> Option<&ShadowMetrics> {
        self.shadow.get()
    }

    /// Requests that hold this version at the moment.
    #[must_use]
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Counts one request as in flight until the guard is dropped.
    #[must_use]
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }

    /// Counts one request in until the guard is dropped, if fewer than `limit` are in flight; `None` otherwise.
    #[must_use]
    pub fn try_enter(self: &Arc<Self>, limit: u64) -> Option<InFlight> {
        let next = |count: u64| (count < limit).then_some(count + 1);
        self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        Some(InFlight(Arc::clone(self)))
    }

    /// The series of this version, as a scrape shows them.
    pub(super) fn rendered(&self) -> String {
        self.scope.rendered()
    }

    /// Sets the in-flight gauge. [`super::Telemetry::render`] calls it, so that requests need not.
    pub(super) fn show_in_flight(&self) {
        self.in_flight_gauge.set(self.in_flight() as f64);
    }

    /// The counts of an arm under a revision. Rebuilt routing entries get the same counts, so that another version that becomes ready
    /// does not reset them. Counts of older revisions that are no longer held are removed.
    fn counts_of(&self, arm: &str, revision: u64, unit: Unit) -> Arc<ArmCounts> {
        let mut arms = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        arms.retain(|known| known.revision >= revision || Arc::strong_count(&known.counts) > 1);
        if let Some(known) = arms.iter().find(|known| known.arm == arm && known.revision == revision) {
            return Arc::clone(&known.counts);
        }
        let counts = Arc::new(ArmCounts::new(unit));
        arms.push(RevisionCounts { arm: arm.to_owned(), revision, counts: Arc::clone(&counts) });
        counts
    }
}

/// One request in flight on a version, as long as this value lives.
#[derive(Debug)]
pub struct InFlight(Arc<VersionMetrics>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The results of requests on one arm. The handles of a status are made when it first happens.
#[derive(Debug)]
pub struct ArmMetrics {
    version: Arc<VersionMetrics>,
    arm: String,
    /// Only for an arm of a split; rollouts compare no others.
    counts: Option<Arc<ArmCounts>>,
    /// `ok` first, then one per [`Code`] in the order of [`Code::ALL`].
    ended: [OnceLock<(Counter, Histogram)>; 1 + Code::ALL.len()],
}

impl ArmMetrics {
    #[must_use]
    pub fn new(version: Arc<VersionMetrics>, arm: &str) -> ArmMetrics {
        ArmMetrics::with_counts(version, arm, None)
    }

    /// For an arm of a split: [`ArmMetrics::requests`] counts from the start of this revision of the traffic document. With
    /// [`Unit::Key`] it also counts keys, for which it takes half a MiB.
    #[must_use]
    pub(crate) fn of_revision(version: Arc<VersionMetrics>, arm: &str, revision: u64, unit: Unit) -> ArmMetrics {
        let counts = version.counts_of(arm, revision, unit);
        ArmMetrics::with_counts(version, arm, Some(counts))
    }

    fn with_counts(version: Arc<VersionMetrics>, arm: &str, counts: Option<Arc<ArmCounts>>) -> ArmMetrics {
        let ended = [const { OnceLock::new() }; 1 + Code::ALL.len()];
        ArmMetrics { version, arm: arm.to_owned(), counts, ended }
    }

    /// Requests that ended on this arm under its revision, with any result; 0 where it is not an arm of a split.
    #[must_use]
    pub(crate) fn requests(&self) -> u64 {
        self.counts.as_ref().map_or(0, |counts| counts.requests())
    }

    /// The time in the engine in nanoseconds, and the rows, of all runs of the version.
    #[must_use]
    pub(crate) fn engine(&self) -> (u64, u64) {
        self.version.engine()
    }

    /// The evidence for rollouts; empty where it is not an arm of a split.
    #[must_use]
    pub(crate) fn evidence(&self) -> ArmEvidence {
        self.counts.as_ref().map(|counts| counts.read()).unwrap_or_default()
    }

    /// The totals of the evidence; 0 where it is not an arm of a split.
    #[must_use]
    pub(crate) fn totals(&self) -> ArmTotals {
        self.counts.as_ref().map(|counts| counts.totals()).unwrap_or_default()
    }

    /// How often the share of sticky keys that is followed was halved; `None` where this arm counts requests.
    #[must_use]
    pub(crate) fn halvings(&self) -> Option<u32> {
        Some(self.counts.as_ref()?.keys()?.halvings())
    }

    /// The sticky keys that had a request on this arm under its revision, among those that are followed after so many halvings.
    #[must_use]
    pub(crate) fn distinct_keys(&self, halvings: u32) -> u64 {
        self.counts.as_ref().and_then(|counts| counts.keys()).map_or(0, |keys| keys.distinct(halvings))
    }

    /// What the table of sticky keys says of each; `None` where this arm counts requests.
    #[must_use]
    pub(crate) fn key_notes(&self) -> Option<KeyNotes> {
        Some(self.counts.as_ref()?.keys()?.notes())
    }

    /// Sets what the evidence of the next requests is judged by.
    pub(crate) fn watch(&self, watch: &Watch) {
        if let Some(counts) = &self.counts {
            counts.watch(watch);
        }
    }

    /// Whether a rollout watches this arm, so that a hash of its answers is wanted.
    #[must_use]
    pub(crate) fn is_watched(&self) -> bool {
        self.counts.as_ref().is_some_and(|counts| counts.is_watched())
    }

    /// Counts the output elements of one request that were NaN or infinite.
    pub(crate) fn nonfinite(&self, elements: usize) {
        if elements > 0 {
            self.version.nonfinite(elements);
            if let Some(counts) = &self.counts {
                counts.nonfinite();
            }
        }
    }

    /// Notes a traced request as an exemplar of its latency. `trace`: the trace's id.
    pub(crate) fn exemplar(&self, failed: Option<Code>, took: Duration, trace: String) {
        self.version.exemplars.note(&self.arm, failed.map_or("ok", Code::as_str), took, trace);
    }

    /// Counts one request.
    pub(crate) fn ended(&self, ended: &Ended) {
        let Ended { failed, took, .. } = *ended;
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
            counts.ended(ended);
        }
        count.increment(1);
        seconds.record(took.as_secs_f64());
    }
}
