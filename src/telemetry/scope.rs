//! Recorders: one for the process, one per version, one per arm with feedback; and the text that a scrape gets.
//!
//! Why a recorder per version, and why its text is parsed again: docs/adr/0002 and 0005.

use super::arm::VersionMetrics;
use super::names::{self, Kind, Metric};
use super::quality::QualitySeries;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

static METADATA: Metadata<'static> = Metadata::new("sluicegate", Level::INFO, None);

/// A set of series that are created and removed together.
///
/// The exporter removes a series only after it was idle, and a handle that is still held then counts into nothing. So each version has
/// a recorder of its own, and its series are removed with it.
pub struct Scope {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// The version whose in-flight count is read on each scrape; a draining version too, though no snapshot holds it.
    version: OnceLock<Weak<VersionMetrics>>,
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}

impl Default for Scope {
    fn default() -> Self {
        Scope::new()
    }
}

impl Scope {
    /// A scope that is not part of `/metrics`: for offline commands and tests.
    #[must_use]
    pub fn new() -> Scope {
        let recorder = builder().build_recorder();
        let handle = recorder.handle();
        Scope { recorder, handle, version: OnceLock::new() }
    }

    /// Sets the version whose in-flight count is shown. Each scope belongs to one version, so a second call is ignored.
    pub(super) fn set_version(&self, version: &Arc<VersionMetrics>) {
        let _ = self.version.set(Arc::downgrade(version));
    }

    /// The text of a scrape, of this scope alone.
    pub(super) fn rendered(&self) -> String {
        self.handle.render()
    }

    fn version(&self) -> Option<Arc<VersionMetrics>> {
        self.version.get().and_then(Weak::upgrade)
    }

    pub(crate) fn counter(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Counter {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.recorder.register_counter(&key(metric, labels), &METADATA)
    }

    pub(crate) fn gauge(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Gauge {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        self.recorder.register_gauge(&key(metric, labels), &METADATA)
    }

    pub(crate) fn histogram(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Histogram {
        debug_assert!(matches!(metric.kind, Kind::Histogram(_)));
        self.recorder.register_histogram(&key(metric, labels), &METADATA)
    }
}

fn key(metric: &Metric, labels: &[(&'static str, &str)]) -> Key {
    debug_assert!(labels.iter().map(|(name, _)| *name).eq(metric.labels.iter().copied()), "labels of {}", metric.name);
    let labels: Vec<Label> = labels.iter().map(|(k, v)| Label::new(*k, SharedString::from((*v).to_owned()))).collect();
    Key::from_parts(metric.name, labels)
}

fn builder() -> PrometheusBuilder {
    let mut builder = PrometheusBuilder::new();
    for metric in names::ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
                .expect("the bucket lists in names.rs are not empty");
        }
    }
    builder
}

/// All metrics of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Scopes>);

#[derive(Debug)]
struct Scopes {
    process: Scope,
    versions: Mutex<Vec<Weak<Scope>>>,
    quality: Mutex<QualitySeries>,
    /// Triton's names are part of the text too.
    triton_names: AtomicBool,
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry::new()
    }
}

impl Telemetry {
    #[must_use]
    pub fn new() -> Telemetry {
        let (versions, quality) = (Mutex::default(), Mutex::default());
        let triton_names = AtomicBool::new(false);
        Telemetry(Arc::new(Scopes { process: Scope::new(), versions, quality, triton_names }))
    }

    /// Sets whether [`Telemetry::render`] has Triton's names too.
    #[must_use]
    pub fn with_triton_names(self, on: bool) -> Telemetry {
        self.0.triton_names.store(on, Ordering::Relaxed);
        self
    }

    /// The series that exist as long as the process.
    #[must_use]
    pub(crate) fn process(&self) -> &Scope {
        &self.0.process
    }

    /// A new scope, part of [`Telemetry::render`] for as long as the caller keeps it.
    #[must_use]
    pub fn scope(&self) -> Arc<Scope> {
        let scope = Arc::new(Scope::new());
        let mut versions = self.0.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.retain(|weak| weak.strong_count() > 0);
        versions.push(Arc::downgrade(&scope));
        scope
    }

    pub(super) fn quality(&self) -> &Mutex<QualitySeries> {
        &self.0.quality
    }

    fn version_scopes(&self) -> Vec<Arc<Scope>> {
        let versions = self.0.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.iter().filter_map(Weak::upgrade).collect()
    }

    /// The metrics of each version, including draining ones; two for a version that drains while it is loaded again.
    #[must_use]
    pub(crate) fn versions(&self) -> Vec<Arc<VersionMetrics>> {
        self.version_scopes().iter().filter_map(|scope| scope.version()).collect()
    }

    /// Adds the samples since the last call to their buckets; without it they use memory until a scrape. Also reports suppressed log
    /// lines.
    pub fn upkeep(&self) {
        super::logging::report_suppressed();
        self.0.process.handle.run_upkeep();
        for scope in self.version_scopes() {
            scope.handle.run_upkeep();
        }
    }

    /// The lines of all scopes, by family.
    fn families(&self) -> BTreeMap<String, String> {
        let mut families: BTreeMap<String, String> = BTreeMap::new();
        collect(&self.0.process.handle.render(), &mut families);
        for scope in self.version_scopes() {
            if let Some(version) = scope.version() {
                version.show_in_flight();
            }
            collect(&scope.handle.render(), &mut families);
        }
        for scope in self.0.quality.lock().unwrap_or_else(PoisonError::into_inner).scopes() {
            collect(&scope.handle.render(), &mut families);
        }
        families
    }

    /// The text in OpenMetrics, with exemplars.
    #[must_use]
    pub(crate) fn render_openmetrics(&self) -> String {
        let mut exemplars = BTreeMap::new();
        for version in self.versions() {
            version.exemplars_into(&mut exemplars);
        }
        let mut text = super::openmetrics::render(&self.families(), &exemplars);
        if self.0.triton_names.load(Ordering::Relaxed) {
            // They do not end in `_total`, as those of counters must in this form.
            super::triton_names::write(&mut text, &self.versions(), "unknown");
        }
        text.push_str("# EOF\n");
        text
    }

    /// The Prometheus text of all scopes: each family once, with its help and type, in the order of names.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for (name, lines) in self.families() {
            if let Some(metric) = names::ALL.iter().find(|m| m.name == name) {
                let _ = writeln!(text, "# HELP {name} {}", metric.help);
                let kind = match metric.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram(_) => "histogram",
                };
                let _ = writeln!(text, "# TYPE {name} {kind}");
            }
            text.push_str(&lines);
        }
        if self.0.triton_names.load(Ordering::Relaxed) {
            super::triton_names::write(&mut text, &self.versions(), "counter");
        }
        text
    }
}

/// Adds one recorder's text to the families, by the name in its `# TYPE` line.
fn collect(text: &str, families: &mut BTreeMap<String, String>) {
    let mut family: Option<&mut String> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap_or_default();
            family = Some(families.entry(name.to_owned()).or_default());
        } else if !line.is_empty()
            && !line.starts_with('#')
            && let Some(lines) = family.as_deref_mut()
        {
            lines.push_str(line);
            lines.push('\n');
        }
    }
}
