//! One model as requests and operators see it.

use crate::compare::Tolerance;
use crate::execute::Runner;
use crate::model::{Code, Failure, ModelName, Role, Signature, Version};
use crate::record::Stream;
use crate::route::{Ask, Document, Route, Router};
use crate::telemetry::{ArmMetrics, VersionMetrics};
use bytestring::ByteString;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Where a version is in its life, as the admin API spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Pending,
    Loading,
    Verifying,
    Warming,
    Ready,
    Serving,
    Draining,
    Unloaded,
    Failed,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Pending,
        State::Loading,
        State::Verifying,
        State::Warming,
        State::Ready,
        State::Serving,
        State::Draining,
        State::Unloaded,
        State::Failed,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Loading => "loading",
            State::Verifying => "verifying",
            State::Warming => "warming",
            State::Ready => "ready",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Unloaded => "unloaded",
            State::Failed => "failed",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The stage a version failed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Load,
    Verify,
    Warm,
}

impl Stage {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Load => "load",
            Stage::Verify => "verify",
            Stage::Warm => "warm",
        }
    }
}

/// What is known of a version once it was loaded; kept after it is unloaded.
#[derive(Debug, Clone)]
pub struct Facts {
    pub signature: Signature,
    /// Lower-case hex of `model.onnx`.
    pub sha256: String,
    /// `onnxruntime` or `tract`.
    pub engine: &'static str,
    /// Size of the version's files.
    pub bytes: u64,
    pub load: Duration,
    pub verify: Duration,
    pub warm: Duration,
    /// Golden cases that were checked.
    pub golden_cases: usize,
    /// `version.toml` as it was written, as JSON; `null` where there is none.
    pub metadata: serde_json::Value,
}

/// What `model.toml` allows callers of a version, as it said when the version was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests on this version at once; one more is refused with `TOO_MANY_REQUESTS`.
    pub max_in_flight: Option<u64>,
    /// Rows of one request; more is refused with `INVALID_TENSOR`.
    pub max_rows: Option<usize>,
}

/// A version in memory.
///
/// The manager holds the last reference while it drains, so that its memory is freed on the manager's thread.
#[derive(Debug)]
pub struct Loaded {
    pub model: ModelName,
    pub version: Version,
    pub runner: Arc<Runner>,
    pub metrics: Arc<VersionMetrics>,
    pub facts: Arc<Facts>,
    pub limits: Limits,
}

/// A version in one part it plays: what a request gets from routing.
#[derive(Debug)]
pub struct Served {
    pub loaded: Arc<Loaded>,
    pub role: Role,
    /// The arm's name; `rule`, `pinned` or `label` where no split decided.
    pub arm: ByteString,
    /// The version, as headers and answers spell it.
    pub version_text: ByteString,
    pub metrics: ArmMetrics,
}

impl Served {
    #[must_use]
    pub fn new(loaded: Arc<Loaded>, role: Role, arm: &str) -> Arc<Served> {
        Served::counted(ArmMetrics::new(Arc::clone(&loaded.metrics), arm), loaded, role, arm)
    }

    /// An arm of a split, which counts its requests since this revision of the document.
    fn on_arm(loaded: Arc<Loaded>, arm: &str, revision: u64) -> Arc<Served> {
        let metrics = ArmMetrics::of_revision(Arc::clone(&loaded.metrics), arm, revision);
        Served::counted(metrics, loaded, Role::Primary, arm)
    }

    fn counted(metrics: ArmMetrics, loaded: Arc<Loaded>, role: Role, arm: &str) -> Arc<Served> {
        let version_text = loaded.version.to_string().into();
        Arc::new(Served { role, arm: arm.into(), version_text, metrics, loaded })
    }
}

/// Who answers a request.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'e> {
    pub served: &'e Arc<Served>,
    /// The split goes by a sticky key and the request lacks it, so that its id stood in.
    pub keyless: bool,
}

/// A shadow and the share of requests copied to it.
#[derive(Debug)]
pub struct Shadowing {
    /// Above 0 and at most 1.
    pub sample: f64,
    pub served: Arc<Served>,
}

/// One version as operators see it.
#[derive(Debug, Clone)]
pub struct VersionStatus {
    pub version: Version,
    pub state: State,
    /// Where it failed, and why in words; both `None` unless `state` is failed, but for `reason`, which also says why a version
    /// is pending or unloaded.
    pub stage: Option<Stage>,
    pub reason: Option<String>,
    /// Remarks that stop nothing: a generated warm-up refused, bytes changed on disk under a loaded version.
    pub notes: Vec<String>,
    pub facts: Option<Arc<Facts>>,
    /// Present exactly in the states ready and serving.
    pub loaded: Option<Arc<Loaded>>,
}

/// One model: its versions, its traffic document and the routes made of both.
#[derive(Debug)]
pub struct Entry {
    name: ModelName,
    versions: BTreeMap<Version, VersionStatus>,
    /// Grows by one with every change of the document; 0 while there is none.
    revision: u64,
    /// The whole model was unloaded by an operator: its document is kept and nothing answers.
    taken_out: bool,
    traffic: Option<Traffic>,
    /// Why the stored traffic document cannot be read, where it cannot.
    document_error: Option<String>,
    pinned: BTreeMap<Version, Arc<Served>>,
    /// How far apart a shadow's answer may be from the primary's.
    tolerance: Tolerance,
    /// Where the records of each loaded version go; none for those that are not recorded.
    streams: BTreeMap<Version, Arc<Stream>>,
}

#[derive(Debug)]
struct Traffic {
    router: Router,
    /// `None` only while the model is taken out or its document cannot be served yet (at start).
    routes: Option<Routes>,
}

#[derive(Debug)]
struct Routes {
    arms: Vec<Arc<Served>>,
    rules: Vec<Arc<Served>>,
    labels: BTreeMap<Version, Arc<Served>>,
    /// Those that are loaded.
    shadows: Vec<Shadowing>,
}

impl Entry {
    /// Puts a model together. `document` with its revision, where there is one.
    ///
    /// While `taken_out`, or while the document names a version that is not loaded and `starting` is set (a server that has
    /// just come up still loads it), un-pinned requests are answered `NOT_READY`.
    ///
    /// # Errors
    /// The versions the document names that are not loaded, unless one of the two cases above excuses them.
    pub fn new(
        name: ModelName,
        versions: BTreeMap<Version, VersionStatus>,
        document: Option<Document>,
        revision: u64,
        taken_out: bool,
        starting: bool,
    ) -> Result<Entry, Vec<Version>> {
        let loaded = |v: &Version| versions.get(v).and_then(|s| s.loaded.as_ref());
        let served = |v: Version, role, arm: &str| loaded(&v).map(|l| Served::new(Arc::clone(l), role, arm)).ok_or(v);
        let traffic = match document {
            None => None,
            Some(document) => {
                let missing: Vec<Version> = document.named().into_iter().filter(|v| loaded(v).is_none()).collect();
                if !missing.is_empty() && !taken_out && !starting {
                    return Err(missing);
                }
                // Shadows that are not there yet hold nothing back; arms, rules and labels do.
                let routes = || -> Result<Routes, Version> {
                    Ok(Routes {
                        arms: document
                            .split
                            .iter()
                            .map(|a| match loaded(&a.version) {
                                Some(l) => Ok(Served::on_arm(Arc::clone(l), a.arm.as_str(), revision)),
                                None => Err(a.version),
                            })
                            .collect::<Result<_, _>>()?,
                        rules: document
                            .rules
                            .iter()
                            .map(|r| served(r.version, Role::Primary, "rule"))
                            .collect::<Result<_, _>>()?,
                        labels: document
                            .labels
                            .values()
                            .map(|v| served(*v, Role::Pinned, "label").map(|s| (*v, s)))
                            .collect::<Result<_, _>>()?,
                        shadows: document
                            .shadows
                            .iter()
                            .filter_map(|s| {
                                let served = served(s.version, Role::Shadow, "shadow").ok()?;
                                Some(Shadowing { sample: s.sample, served })
                            })
                            .collect(),
                    })
                };
                let routes = if taken_out { None } else { routes().ok() };
                Some(Traffic { router: Router::new(&name, document), routes })
            }
        };
        let pinned = versions
            .values()
            .filter(|_| !taken_out)
            .filter_map(|s| s.loaded.as_ref())
            .map(|l| (l.version, Served::new(Arc::clone(l), Role::Pinned, "pinned")))
            .collect();
        let tolerance = Tolerance::default();
        let streams = BTreeMap::new();
        Ok(Entry { name, versions, revision, taken_out, traffic, document_error: None, pinned, tolerance, streams })
    }

    /// With the reason why the stored traffic document cannot be read: requests that name no version are then refused.
    #[must_use]
    pub fn with_document_error(self, document_error: Option<String>) -> Entry {
        Entry { document_error, ..self }
    }

    /// With another tolerance for shadows' answers than the default.
    #[must_use]
    pub fn with_tolerance(self, tolerance: Tolerance) -> Entry {
        Entry { tolerance, ..self }
    }

    /// With predictions recorded: `stream` says where those of a version go.
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

    /// All versions ever seen by this process, in order.
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

    /// Whether un-pinned requests can be answered now.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.traffic.as_ref().is_some_and(|t| t.routes.is_some())
    }

    /// The arms of the split, in the document's order; empty while it cannot be served.
    #[must_use]
    pub fn arms(&self) -> &[Arc<Served>] {
        self.traffic.as_ref().and_then(|t| t.routes.as_ref()).map_or(&[], |r| &r.arms)
    }

    /// The shadows that are loaded; none while the document cannot be served.
    #[must_use]
    pub fn shadows(&self) -> &[Shadowing] {
        self.traffic.as_ref().and_then(|t| t.routes.as_ref()).map_or(&[], |r| &r.shadows)
    }

    /// How far apart a shadow's answer may be from the primary's.
    #[must_use]
    pub fn tolerance(&self) -> Tolerance {
        self.tolerance
    }

    /// Where the records of a loaded version go; `None` where it is not recorded.
    #[must_use]
    pub fn stream(&self, version: Version) -> Option<&Arc<Stream>> {
        self.streams.get(&version)
    }

    /// What the split goes by, where the request has it.
    #[must_use]
    pub fn sticky_key<'a>(&self, ask: &Ask<'a>) -> Option<Cow<'a, str>> {
        self.traffic.as_ref()?.router.sticky_key(ask)
    }

    /// The versions that answer when asked by number.
    pub fn callable(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.pinned.values()
    }

    /// A version by number, if it is loaded.
    #[must_use]
    pub fn pinned(&self, version: Version) -> Option<&Arc<Served>> {
        self.pinned.get(&version)
    }

    /// The version that describes the model when nobody asks for one: the heaviest of the split, else the highest loaded.
    #[must_use]
    pub fn representative(&self) -> Option<&Arc<Served>> {
        let heaviest = self.document().and_then(Document::heaviest);
        heaviest.and_then(|v| self.pinned.get(&v)).or_else(|| self.pinned.values().next_back())
    }

    /// Decides who answers a request.
    ///
    /// # Errors
    /// `NOT_READY` where nothing can answer now, `VERSION_NOT_FOUND` and `LABEL_NOT_FOUND` where the URL names what is not there.
    pub fn route(&self, ask: &Ask) -> Result<Routed<'_>, Failure> {
        let by_name = |served| Routed { served, keyless: false };
        if self.taken_out {
            return Err(Failure::new(
                Code::NotReady,
                format!("model {} is unloaded; load it to use it again", self.name),
            ));
        }
        if let crate::route::Selector::Version(version) = ask.selector {
            return self.pinned.get(&version).map(by_name).ok_or_else(|| self.no_version(version));
        }
        let Some(traffic) = &self.traffic else {
            if self.document_error.is_some() {
                let words = format!(
                    "the stored traffic document of model {} cannot be read; an operator has to put a new one or roll back",
                    self.name
                );
                return Err(
                    Failure::new(Code::NotReady, words).with_internal(self.document_error.clone().unwrap_or_default())
                );
            }
            return Err(Failure::new(Code::NotReady, format!("model {} has no version ready yet", self.name)));
        };
        let unready = || {
            Failure::new(
                Code::NotReady,
                format!("model {}: a version its traffic document names is not loaded yet", self.name),
            )
        };
        match traffic.router.route(ask) {
            Route::Arm { index, keyless } => {
                let served = traffic.routes.as_ref().and_then(|r| r.arms.get(index)).ok_or_else(unready)?;
                Ok(Routed { served, keyless })
            }
            Route::Rule(i) => traffic.routes.as_ref().and_then(|r| r.rules.get(i)).map(by_name).ok_or_else(unready),
            Route::Label(v) => traffic.routes.as_ref().and_then(|r| r.labels.get(&v)).map(by_name).ok_or_else(unready),
            Route::Pinned(v) => self.pinned.get(&v).map(by_name).ok_or_else(|| self.no_version(v)),
            Route::UnknownLabel => {
                let labels: Vec<&str> = traffic.router.document().labels.keys().map(String::as_str).collect();
                let known =
                    if labels.is_empty() { "it has none".to_owned() } else { format!("it has {}", labels.join(", ")) };
                Err(Failure::new(Code::LabelNotFound, format!("model {} has no such label; {known}", self.name)))
            }
        }
    }

    fn no_version(&self, version: Version) -> Failure {
        if let Some(status) = self.versions.get(&version) {
            let words = format!("version {version} of model {} is {}", self.name, status.state);
            return Failure::new(Code::NotReady, words);
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
