//! One model: its versions, and how its traffic document routes requests to them.

use super::version::{Loaded, Retired, Served, ShadowRoute, Stage, Staleness, State, VersionStatus};
use crate::columns::ElementNames;
use crate::compare::Tolerance;
use crate::model::{Code, Failure, ModelName, Role, Version};
use crate::outcomes::Metrics;
use crate::record::{Choice, Stream};
use crate::route::{Document, Route, RouteRequest, Router, Selector};
use crate::telemetry::Unit;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One model: its versions, its traffic document, and the routes built from both.
#[derive(Debug)]
pub struct Entry {
    name: ModelName,
    versions: BTreeMap<Version, VersionStatus>,
    /// The document's revision. It grows by one with every change; 0 while there is no document.
    revision: u64,
    /// An operator unloaded or retired the whole model: its document is kept and no version answers.
    taken_out: bool,
    retired: Option<Retired>,
    /// Remarks about its directory, for operators.
    notes: Vec<String>,
    traffic: Option<Traffic>,
    /// Why the stored traffic document cannot be read, where it cannot.
    document_error: Option<String>,
    pinned: BTreeMap<Version, Arc<Served>>,
    /// How far a shadow's answer may be from the primary's.
    tolerance: Tolerance,
    /// What is recorded of its predictions and feedback, and what of it is hidden.
    choice: Arc<Choice>,
    /// Names for the elements of its tensors.
    features: Arc<ElementNames>,
    /// What its versions are judged by, from feedback.
    metrics: Arc<Metrics>,
    /// How old its versions may be.
    staleness: Staleness,
    /// How many times the time of its first day a version may take. `None`: as many as usual.
    first_day_limit: Option<f64>,
    /// The record stream of each loaded version that is recorded.
    streams: BTreeMap<Version, Arc<Stream>>,
}

#[derive(Debug)]
struct Traffic {
    router: Router,
    /// `None` while the model is taken out.
    routes: Option<Routes>,
}

/// A version that the document names, or its number while it is not loaded.
type Target = Result<Arc<Served>, Version>;

/// The versions that the document's members point to, by the same indices.
#[derive(Debug)]
struct Routes {
    split: Vec<Target>,
    rules: Vec<Target>,
    labels: BTreeMap<Version, Target>,
    /// The arms of the split that are loaded.
    arms: Vec<Arc<Served>>,
    /// The shadows that are loaded.
    shadows: Vec<ShadowRoute>,
    /// The version that answers in place of one that cannot, where it is loaded.
    fallback: Option<Arc<Served>>,
    /// Every version of the split, the rules and the labels is loaded.
    complete: bool,
}

impl Routes {
    /// Versions that are not loaded keep their place, so that the others can be served. Shadows that are not loaded are left out.
    fn new(document: &Document, versions: &BTreeMap<Version, VersionStatus>, revision: u64) -> Routes {
        let loaded = |version: Version| {
            let loaded = versions.get(&version).and_then(|status| status.loaded.as_ref());
            loaded.map(Arc::clone).ok_or(version)
        };
        let unit = if document.counts_keys() { Unit::Key } else { Unit::Request };
        let split = document.split.iter();
        let split: Vec<Target> =
            split.map(|a| Ok(Served::on_arm(loaded(a.version)?, a.arm.as_str(), revision, unit))).collect();
        let rules = document.rules.iter();
        let rules: Vec<Target> = rules.map(|r| Ok(Served::new(loaded(r.version)?, Role::Primary, "rule"))).collect();
        let labels = document.labels.values();
        let labels: BTreeMap<Version, Target> =
            labels.map(|v| (*v, loaded(*v).map(|l| Served::new(l, Role::Pinned, "label")))).collect();
        let shadows = document.shadows.iter().filter_map(|shadow| {
            let served = Served::new(loaded(shadow.version).ok()?, Role::Shadow, "shadow");
            Some(ShadowRoute { sample: shadow.sample, served })
        });
        Routes {
            arms: split.iter().filter_map(|arm| arm.as_ref().ok()).cloned().collect(),
            shadows: shadows.collect(),
            fallback: document
                .fallback
                .and_then(|fallback| Some(Served::new(loaded(fallback.version).ok()?, Role::Primary, "fallback"))),
            complete: split.iter().chain(&rules).chain(labels.values()).all(Result::is_ok),
            split,
            rules,
            labels,
        }
    }
}

/// A model whose traffic document cannot be served as a whole, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserved {
    pub model: ModelName,
    /// The versions that the document sends requests to and that are not loaded.
    pub versions: Vec<Version>,
    /// Why they are not loaded.
    pub reason: String,
    /// What an operator can do.
    pub advice: String,
}

impl std::fmt::Display for Unserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "model {}: {}; {}", self.model, self.reason, self.advice)
    }
}

/// The version that answers a request.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'e> {
    pub served: &'e Arc<Served>,
    /// The document has a sticky key and the request lacks it, so the request id was used instead.
    pub keyless: bool,
    /// Why the document's fallback answers: the stage in which the version failed that the document chose.
    pub fallback: Option<&'static str>,
    /// A hash of the sticky key, where it decided between several arms.
    pub key: Option<u64>,
}

impl Entry {
    /// Builds a model's entry. `document` is the traffic document of this `revision`, where there is one.
    ///
    /// Un-pinned requests are answered `NOT_READY` while the model is `taken_out`, and those that the document routes to a version that
    /// is not loaded. The document may name such versions only where `incomplete` says that this is known.
    ///
    /// # Errors
    /// The versions of the document that are not loaded, where neither of the two cases above applies.
    pub fn new(
        name: ModelName,
        versions: BTreeMap<Version, VersionStatus>,
        document: Option<Document>,
        revision: u64,
        taken_out: bool,
        incomplete: bool,
    ) -> Result<Entry, Vec<Version>> {
        let is_loaded = |v: &Version| versions.get(v).is_some_and(|status| status.loaded.is_some());
        let traffic = match document {
            None => None,
            Some(document) => {
                let missing: Vec<Version> = document.named().into_iter().filter(|v| !is_loaded(v)).collect();
                if !missing.is_empty() && !taken_out && !incomplete {
                    return Err(missing);
                }
                let routes = (!taken_out).then(|| Routes::new(&document, &versions, revision));
                Some(Traffic { router: Router::new(&name, document), routes })
            }
        };
        let pinned = versions
            .values()
            .filter(|_| !taken_out)
            .filter_map(|status| status.loaded.as_ref())
            .map(|loaded| (loaded.version, Served::new(Arc::clone(loaded), Role::Pinned, "pinned")))
            .collect();
        let tolerance = Tolerance::default();
        let streams = BTreeMap::new();
        Ok(Entry {
            name,
            versions,
            revision,
            taken_out,
            retired: None,
            notes: Vec::new(),
            traffic,
            document_error: None,
            pinned,
            tolerance,
            choice: Arc::default(),
            features: Arc::default(),
            metrics: Arc::default(),
            staleness: Staleness::default(),
            first_day_limit: None,
            streams,
        })
    }

    /// Sets the reason why the stored traffic document cannot be read. Requests that name no version are then refused.
    #[must_use]
    pub fn with_document_error(self, document_error: Option<String>) -> Entry {
        Entry { document_error, ..self }
    }

    /// Says that the model is taken out because it was retired.
    #[must_use]
    pub fn with_retired(self, retired: Option<Retired>) -> Entry {
        Entry { retired, ..self }
    }

    /// Sets the tolerance for shadows' answers.
    #[must_use]
    pub fn with_tolerance(self, tolerance: Tolerance) -> Entry {
        Entry { tolerance, ..self }
    }

    /// Sets what is recorded.
    #[must_use]
    pub fn with_choice(self, choice: Choice) -> Entry {
        Entry { choice: Arc::new(choice), ..self }
    }

    /// Sets the names of the elements of tensors.
    #[must_use]
    pub fn with_features(self, features: ElementNames) -> Entry {
        Entry { features: Arc::new(features), ..self }
    }

    /// Names for the elements of tensors, from `model.toml`.
    #[must_use]
    pub fn features(&self) -> &Arc<ElementNames> {
        &self.features
    }

    /// Sets what the versions are judged by.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Entry {
        Entry { metrics, ..self }
    }

    /// Sets how old its versions may be.
    #[must_use]
    pub fn with_staleness(self, staleness: Staleness) -> Entry {
        Entry { staleness, ..self }
    }

    #[must_use]
    pub fn staleness(&self) -> Staleness {
        self.staleness
    }

    /// Sets how many times the time of its first day a version may take before it is called slower.
    #[must_use]
    pub fn with_first_day_limit(self, first_day_limit: Option<f64>) -> Entry {
        Entry { first_day_limit, ..self }
    }

    /// `None`: the model has no limit of its own.
    #[must_use]
    pub fn first_day_limit(&self) -> Option<f64> {
        self.first_day_limit
    }

    /// Sets the record stream of each loaded version; a version without one is not recorded.
    #[must_use]
    pub fn with_streams(self, stream: impl Fn(&Loaded) -> Option<Arc<Stream>>) -> Entry {
        let loaded = self.versions.values().filter_map(|status| status.loaded.as_ref());
        let streams = loaded.filter_map(|loaded| Some((loaded.version, stream(loaded)?))).collect();
        Entry { streams, ..self }
    }

    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.name
    }

    /// All versions this process has seen, in order.
    #[must_use]
    pub fn versions(&self) -> &BTreeMap<Version, VersionStatus> {
        &self.versions
    }

    #[must_use]
    pub fn document(&self) -> Option<&Document> {
        self.traffic.as_ref().map(|t| t.router.document())
    }

    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    #[must_use]
    pub fn taken_out(&self) -> bool {
        self.taken_out
    }

    /// Sets the remarks about the model's directory.
    #[must_use]
    pub fn with_notes(self, notes: Vec<String>) -> Entry {
        Entry { notes, ..self }
    }

    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// When, by whom and why the model was retired. `None` where it was not.
    #[must_use]
    pub fn retired(&self) -> Option<&Retired> {
        self.retired.as_ref()
    }

    /// What the traffic document names and cannot be served now. `None` where everything is served, where there is no document, and where
    /// the model is taken out.
    #[must_use]
    pub fn unserved(&self) -> Option<Unserved> {
        let document = self.document().filter(|_| !self.taken_out && !self.can_serve())?;
        let missing: Vec<Version> = document.serving().into_iter().filter(|v| !self.pinned.contains_key(v)).collect();
        let words = |version: &Version| {
            let Some(status) = self.versions.get(version) else { return format!("version {version} is not known") };
            let stage = status.stage.map(|stage| format!(" in {}", stage.as_str())).unwrap_or_default();
            let reason = status.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("version {version} is {}{stage}{reason}", status.state)
        };
        let reason = missing.iter().map(words).collect::<Vec<_>>().join("; ");
        let name = &self.name;
        let advice = match self.pinned.keys().next_back() {
            Some(ready) => format!(
                "version {ready} is ready: `sluicegate promote {name} {ready} --reason TEXT` sends all requests to it"
            ),
            None => format!(
                "no version of it is ready: repair or restore its files, or retire it with `sluicegate retire {name} --reason TEXT`"
            ),
        };
        Some(Unserved { model: name.clone(), versions: missing, reason, advice })
    }

    /// Whether all un-pinned requests can be answered now, whichever version the document routes them to.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.traffic.as_ref().and_then(|t| t.routes.as_ref()).is_some_and(|routes| routes.complete)
    }

    /// The arms of the split that are loaded, in the document's order.
    #[must_use]
    pub fn arms(&self) -> &[Arc<Served>] {
        self.traffic.as_ref().and_then(|t| t.routes.as_ref()).map_or(&[], |r| &r.arms)
    }

    /// The shadows that are loaded.
    #[must_use]
    pub fn shadows(&self) -> &[ShadowRoute] {
        self.traffic.as_ref().and_then(|t| t.routes.as_ref()).map_or(&[], |r| &r.shadows)
    }

    /// How far a shadow's answer may be from the primary's.
    #[must_use]
    pub fn tolerance(&self) -> Tolerance {
        self.tolerance
    }

    /// What is recorded of its predictions and feedback, and what of it is hidden. The admin plane hides the same.
    #[must_use]
    pub fn choice(&self) -> &Arc<Choice> {
        &self.choice
    }

    /// What its versions are judged by, from feedback: the metrics of its `model.toml`.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The record stream of a loaded version; `None` where it is not recorded.
    #[must_use]
    pub fn stream(&self, version: Version) -> Option<&Arc<Stream>> {
        self.streams.get(&version)
    }

    /// The request's sticky key, where the document asks for one and the request has it.
    #[must_use]
    pub fn sticky_key<'a>(&self, request: &RouteRequest<'a>) -> Option<Cow<'a, str>> {
        self.traffic.as_ref()?.router.sticky_key(request)
    }

    /// The versions that can be called by number.
    pub fn callable(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.pinned.values()
    }

    /// The version of this number, if it can be called.
    #[must_use]
    pub fn pinned(&self, version: Version) -> Option<&Arc<Served>> {
        self.pinned.get(&version)
    }

    /// The version whose metadata describes the model: the heaviest one of the split, else the highest loaded one.
    #[must_use]
    pub fn representative(&self) -> Option<&Arc<Served>> {
        let heaviest = self.document().and_then(Document::heaviest);
        heaviest.and_then(|v| self.pinned.get(&v)).or_else(|| self.pinned.values().next_back())
    }

    /// Whether any version is loaded.
    #[must_use]
    pub fn has_loaded(&self) -> bool {
        !self.pinned.is_empty()
    }

    /// The versions that may answer a request with this selector, whatever else it contains. Fallbacks are not among them.
    pub fn candidates<'e>(&'e self, selector: Selector) -> impl Iterator<Item = &'e Arc<Served>> {
        let routes = self.traffic.as_ref().and_then(|traffic| traffic.routes.as_ref());
        let (pinned, label, arms, rules) = match selector {
            Selector::Version(version) => (self.pinned.get(&version), None, None, None),
            Selector::Label(label) => {
                let version = self.document().and_then(|document| document.labels.get(label));
                (None, version.and_then(|version| routes?.labels.get(version)), None, None)
            }
            Selector::Traffic => (None, None, routes.map(|routes| &routes.arms), routes.map(|routes| &routes.rules)),
        };
        let rules = rules.into_iter().flatten().chain(label).filter_map(|target| target.as_ref().ok());
        pinned.into_iter().chain(arms.into_iter().flatten()).chain(rules)
    }

    /// Decides which version answers a request.
    ///
    /// # Errors
    /// `NOT_READY` where no version can answer now, `VERSION_NOT_FOUND` and `LABEL_NOT_FOUND` where the URL names one that does not
    /// exist. `INTERNAL` where the routes contradict the document, which [`Entry::new`] excludes.
    pub fn route(&self, request: &RouteRequest) -> Result<Routed<'_>, Failure> {
        let without_key = |served| Routed { served, keyless: false, fallback: None, key: None };
        if let Some(Retired { at, reason, .. }) = &self.retired {
            let message = format!("model {} was retired at {at:.0}: {reason}", self.name);
            return Err(Failure::new(Code::ModelNotFound, message));
        }
        if self.taken_out {
            let message = format!("model {} is unloaded; load it to use it again", self.name);
            return Err(Failure::new(Code::NotReady, message));
        }
        if let Selector::Version(version) = request.selector {
            return self.pinned.get(&version).map(without_key).ok_or_else(|| self.no_version(version));
        }
        let Some(Traffic { router, routes }) = &self.traffic else {
            if let Some(error) = &self.document_error {
                let message = format!(
                    "the stored traffic document of model {} cannot be read; an operator has to put a new one or roll back",
                    self.name
                );
                return Err(Failure::new(Code::NotReady, message).with_internal(error.clone()));
            }
            return Err(Failure::new(Code::NotReady, format!("model {} has no version ready yet", self.name)));
        };
        let (route, key) = router.route_with_key(request);
        if route == Route::UnknownLabel {
            return Err(self.no_label(router.document()));
        }
        let Some(routes) = routes else {
            return Err(self.inconsistent(route));
        };
        let target = match route {
            Route::Arm { index, .. } => routes.split.get(index),
            Route::Rule(index) => routes.rules.get(index),
            Route::Label(version) => routes.labels.get(&version),
            Route::Pinned(version) => {
                return self.pinned.get(&version).map(without_key).ok_or_else(|| self.inconsistent(route));
            }
            Route::UnknownLabel | Route::NoArm => None,
        };
        let keyless = matches!(route, Route::Arm { keyless: true, .. });
        match target {
            Some(Ok(served)) => Ok(Routed { served, keyless, fallback: None, key }),
            Some(Err(version)) => {
                let stage = self.versions.get(version).filter(|status| status.state == State::Failed);
                let stage = stage.and_then(|status| status.stage).filter(|_| !matches!(route, Route::Label(_)));
                match (stage, self.fallback_for(*version)) {
                    (Some(stage), Some(served)) => Ok(Routed { served, keyless, fallback: Some(stage.as_str()), key }),
                    _ => Err(self.no_version(*version)),
                }
            }
            None => Err(self.inconsistent(route)),
        }
    }

    /// The version that answers in place of this one, where the document names another one and it is loaded.
    #[must_use]
    pub fn fallback_for(&self, version: Version) -> Option<&Arc<Served>> {
        let fallback = self.traffic.as_ref()?.routes.as_ref()?.fallback.as_ref();
        fallback.filter(|served| served.loaded.version != version)
    }

    /// The failure for a decision that the routes do not have. It is a bug, so it is logged.
    fn inconsistent(&self, route: Route) -> Failure {
        let details = format!("model {} revision {}: no version for {route:?}", self.name, self.revision);
        tracing::error!("{details}: the routes contradict the traffic document");
        Failure::new(Code::Internal, "the gateway could not route this request").with_internal(details)
    }

    fn no_label(&self, document: &Document) -> Failure {
        let labels: Vec<&str> = document.labels.keys().map(String::as_str).collect();
        let known = if labels.is_empty() { "it has none".to_owned() } else { format!("it has {}", labels.join(", ")) };
        Failure::new(Code::LabelNotFound, format!("model {} has no such label; {known}", self.name))
    }

    fn no_version(&self, version: Version) -> Failure {
        if let Some(status) = self.versions.get(&version) {
            return Failure::new(Code::NotReady, format!("version {version} of model {} {}", self.name, state(status)));
        }
        let callable: Vec<String> = self.pinned.keys().map(ToString::to_string).collect();
        let known = if callable.is_empty() {
            "none is loaded".to_owned()
        } else {
            format!("loaded are {}", callable.join(", "))
        };
        Failure::new(Code::VersionNotFound, format!("model {} has no version {version}; {known}", self.name))
    }
}

/// The state of a version that cannot be called, in words for callers.
fn state(status: &VersionStatus) -> String {
    match (status.state, status.stage, &status.reason) {
        // These reasons are written by the gateway. Others can contain file names and messages of an engine.
        (State::Failed, Some(stage @ (Stage::Stuck | Stage::Crashed)), Some(reason)) => {
            format!("was set aside ({}): {reason}", stage.as_str())
        }
        (State::Failed, Some(stage), _) => {
            format!("is failed (in {}); the admin plane has the reason", stage.as_str())
        }
        (State::Pending | State::Loading | State::Verifying | State::Warming, ..) => {
            format!("is not loaded yet: it is {}", status.state)
        }
        (other, ..) => format!("is {other}"),
    }
}
