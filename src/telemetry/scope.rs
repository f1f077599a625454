//! Where series live: one recorder for the process, one per version, one text for the scraper.

use super::arm::VersionMetrics;
use super::names::{self, Kind, Metric};
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

static METADATA: Metadata<'static> = Metadata::new("sluicegate", Level::INFO, None);

/// A set of series that come and go together.
///
/// The exporter can remove a series only when it has been idle, after which a handle still held counts into nothing. So each
/// version has a recorder of its own, and its series end with it, whatever they last counted.
pub struct Scope {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Whose in-flight count is shown when this is rendered; versions that drain are asked too, though no snapshot holds them.
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
    /// A scope that no [`Telemetry`] shows: for offline commands and tests.
    #[must_use]
    pub fn new() -> Scope {
        let recorder = builder().build_recorder();
        let handle = recorder.handle();
        Scope { recorder, handle, version: OnceLock::new() }
    }

    /// One scope is one version's; a second one here keeps the first, and only its in-flight gauge is not refreshed.
    pub(super) fn shows(&self, version: &Arc<VersionMetrics>) {
        let _ = self.version.set(Arc::downgrade(version));
    }

    fn version(&self) -> Option<Arc<VersionMetrics>> {
        self.version.get().and_then(Weak::upgrade)
    }

    pub fn counter(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Counter {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.recorder.register_counter(&key(metric, labels), &METADATA)
    }

    pub fn gauge(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Gauge {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        self.recorder.register_gauge(&key(metric, labels), &METADATA)
    }

    pub fn histogram(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Histogram {
        debug_assert!(matches!(metric.kind, Kind::Histogram(_)));
        self.recorder.register_histogram(&key(metric, labels), &METADATA)
    }
}

fn key(metric: &Metric, labels: &[(&'static str, &str)]) -> Key {
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

/// Everything counted in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Scopes>);

#[derive(Debug)]
struct Scopes {
    process: Scope,
    versions: Mutex<Vec<Weak<Scope>>>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry::new()
    }
}

impl Telemetry {
    #[must_use]
    pub fn new() -> Telemetry {
        Telemetry(Arc::new(Scopes { process: Scope::new(), versions: Mutex::new(Vec::new()) }))
    }

    /// The series that live as long as the process.
    #[must_use]
    pub fn process(&self) -> &Scope {
        &self.0.process
    }

    /// A new scope, shown by [`Telemetry::render`] for as long as the caller keeps it.
    #[must_use]
    pub fn scope(&self) -> Arc<Scope> {
        let scope = Arc::new(Scope::new());
        let mut versions = self.0.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.retain(|weak| weak.strong_count() > 0);
        versions.push(Arc::downgrade(&scope));
        scope
    }

    fn handles(&self) -> Vec<Arc<Scope>> {
        let versions = self.0.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.iter().filter_map(Weak::upgrade).collect()
    }

    /// What counts for each version there is, those that drain too; two for a version that drains while it is loaded again.
    #[must_use]
    pub fn versions(&self) -> Vec<Arc<VersionMetrics>> {
        self.handles().iter().filter_map(|scope| scope.version()).collect()
    }

    /// Folds the samples recorded since the last call into their buckets; without it they pile up until a scrape.
    pub fn upkeep(&self) {
        self.0.process.handle.run_upkeep();
        for scope in self.handles() {
            scope.handle.run_upkeep();
        }
    }

    /// The Prometheus text exposition of all scopes: each family once, with its help and type, in order of name.
    #[must_use]
    pub fn render(&self) -> String {
        let mut families: BTreeMap<String, String> = BTreeMap::new();
        collect(&self.0.process.handle.render(), &mut families);
        for scope in self.handles() {
            if let Some(version) = scope.version() {
                version.show_in_flight();
            }
            collect(&scope.handle.render(), &mut families);
        }
        let mut text = String::new();
        for (name, lines) in families {
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
        text
    }
}

/// Adds one recorder's text to the families, by the name its `# TYPE` line gives.
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
