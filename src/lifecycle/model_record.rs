//! What the manager knows about one model, and the operator requests that wait for its versions.

use super::handle::{Actor, LoadOutcome, Promote, Promotion, Reply, RolledBack};
use super::keep_warm::LastNamed;
use super::policy::{self, PolicyInput, Progress, UnloadReason};
use super::retire::check_not_retired;
use super::set_aside::Aside;
use super::version_record::VersionRecord;
use crate::compare::Tolerance;
use crate::ledger::{ModelState, Retirement};
use crate::model::{Code, Failure, ModelName, Version, VersionId};
use crate::model_settings::{ModelSettings, Recording};
use crate::registry::{Entry, Retired, State, VersionStatus};
use crate::route::Document;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// One model.
#[derive(Debug)]
pub(super) struct Model {
    pub name: ModelName,
    /// The stored traffic document, parsed.
    pub document: Option<Document>,
    /// Why the stored traffic document cannot be read. The model then answers no request without a version until an operator puts
    /// another document or rolls back.
    pub document_error: Option<String>,
    /// What the ledger stores.
    pub stored: ModelState,
    pub settings: ModelSettings,
    /// The text of `model.toml` that the settings were read from, or why it could not be read. Used to detect changes.
    pub settings_source: Option<Result<Arc<str>, String>>,
    /// What is wrong with `model.toml`. The settings are then the last valid ones.
    pub settings_complaint: Option<String>,
    /// There were never valid settings, so nothing is loaded.
    pub settings_missing: bool,
    pub versions: BTreeMap<Version, VersionRecord>,
    /// What its directory holds in the wrong place.
    pub ignored: Vec<String>,
    /// Versions that an operator loaded although `versions` leaves them out, since this process started.
    pub requested: BTreeSet<Version>,
    /// Versions that were unloaded to make room, since this process started.
    pub evicted: BTreeSet<Version>,
    /// Versions that were set aside, since this process started.
    pub set_aside: BTreeMap<Version, Aside>,
    /// Versions that an earlier document named, with the time when the last one did. Removed once they are no longer kept warm.
    pub last_named: BTreeMap<Version, LastNamed>,
    /// Versions that are loaded only because they are kept warm, and until when.
    pub kept_warm: BTreeMap<Version, Timestamp>,
    /// Versions that the fleet's document names and this gateway has files of, while that document cannot be put in force here.
    pub awaited: BTreeSet<Version>,
    /// All versions were ready or failed at some time, so the first one that becomes ready may serve.
    pub all_settled_once: bool,
    /// Versions that `auto_promote` refused. They are tried again only when `model.toml` changes.
    pub auto_promote_refused: BTreeSet<Version>,
    /// When to check the gates of an automatic promotion again.
    pub next_gate_check: Option<Instant>,
    pub waiting: Vec<WaitingRequest>,
    /// Other gateways of the fleet have it, and its files are gone.
    pub elsewhere: bool,
}

/// An operator request that is answered when versions reach a state.
#[derive(Debug)]
pub(super) enum WaitingRequest {
    Load {
        version: Version,
        reply: Reply<LoadOutcome>,
    },
    Unload {
        version: Version,
        reply: Reply<LoadOutcome>,
    },
    Rollback {
        rollback: Box<PendingRollback>,
        reply: Reply<RolledBack>,
    },
    /// Of a version of a retired model, which is loaded first.
    Promote {
        request: Box<Promote>,
        reply: Reply<Promotion>,
    },
    LoadModel {
        actor: Actor,
        reply: Reply<()>,
    },
    UnloadModel {
        reply: Reply<()>,
    },
}

/// A rollback that waits for its versions.
#[derive(Debug)]
pub(super) struct PendingRollback {
    /// The document to go back to.
    pub document: Document,
    /// The revision that it had.
    pub restored: u64,
    /// The revision in force when it began. With another one in force it is refused.
    pub expected_revision: u64,
    /// Versions that were not loaded when it began.
    pub to_load: Vec<Version>,
    pub reason: String,
    /// Go back although nobody approved a version that would answer again.
    pub break_glass: bool,
    pub actor: Actor,
}

// === impl Model ===

impl Model {
    #[must_use]
    pub(super) fn new(name: ModelName) -> Model {
        Model::from_stored(ModelState::new(name))
    }

    /// A model as the ledger stores it. A document that cannot be read disables this model and is reported in
    /// [`Model::document_error`].
    #[must_use]
    pub(super) fn from_stored(stored: ModelState) -> Model {
        let (document, document_error) = match stored.document.as_deref().map(Document::from_json).transpose() {
            Ok(None) if stored.revision > 0 => (None, Some("it is missing in the ledger".to_owned())),
            Ok(document) => (document, None),
            Err(complaints) => (None, Some(complaints.join("; "))),
        };
        Model {
            name: stored.model.clone(),
            document,
            document_error,
            stored,
            settings: ModelSettings::default(),
            settings_source: None,
            settings_complaint: None,
            settings_missing: false,
            versions: BTreeMap::new(),
            ignored: Vec::new(),
            requested: BTreeSet::new(),
            evicted: BTreeSet::new(),
            set_aside: BTreeMap::new(),
            last_named: BTreeMap::new(),
            kept_warm: BTreeMap::new(),
            awaited: BTreeSet::new(),
            all_settled_once: false,
            auto_promote_refused: BTreeSet::new(),
            next_gate_check: None,
            waiting: Vec::new(),
            elsewhere: false,
        }
    }

    #[must_use]
    pub(super) fn id(&self, version: Version) -> VersionId {
        VersionId { model: self.name.clone(), version }
    }

    /// Whether operators and requests can see it. A model that only has a mark in the ledger is invisible.
    #[must_use]
    pub(super) fn is_visible(&self) -> bool {
        !self.versions.is_empty()
            || !self.ignored.is_empty()
            || self.document.is_some()
            || self.document_error.is_some()
    }

    #[must_use]
    pub(super) fn is_callable(&self, version: Version) -> bool {
        self.versions.get(&version).is_some_and(VersionRecord::is_callable)
    }

    /// The versions that answer requests without a version.
    #[must_use]
    pub(super) fn serving(&self) -> BTreeSet<Version> {
        self.document.as_ref().map(Document::serving).unwrap_or_default()
    }

    /// The same, and the fallback.
    #[must_use]
    pub(super) fn answering(&self) -> BTreeSet<Version> {
        self.document.as_ref().map(Document::answering).unwrap_or_default()
    }

    /// The versions that must stay loaded: those that the document names, those that a pending rollback will name, and those that the fleet's
    /// document names.
    #[must_use]
    pub(super) fn required(&self) -> BTreeSet<Version> {
        let mut required = self.document.as_ref().map(Document::named).unwrap_or_default();
        required.extend(&self.awaited);
        for request in &self.waiting {
            if let WaitingRequest::Rollback { rollback, .. } = request {
                required.extend(rollback.document.named());
            }
        }
        required
    }

    #[must_use]
    fn is_coming_back(&self) -> bool {
        self.stored.unloaded && self.waiting.iter().any(|request| matches!(request, WaitingRequest::LoadModel { .. }))
    }

    /// The versions that are loaded although the model is out: those of a retired one that are being promoted, here or by another gateway.
    fn returning(&self) -> BTreeSet<Version> {
        let version = |request: &WaitingRequest| match request {
            WaitingRequest::Promote { request, .. } => Some(request.version),
            _ => None,
        };
        self.waiting.iter().filter_map(version).chain(self.awaited.iter().copied()).collect()
    }

    /// Which versions should be loaded, and for each other version the reason why not.
    #[must_use]
    pub(super) fn wanted(&self) -> BTreeMap<Version, Result<(), UnloadReason>> {
        policy::wanted(&PolicyInput {
            found: self.versions.iter().filter(|(_, record)| record.found.is_some()).map(|(v, _)| *v).collect(),
            required: self.required(),
            keep: Some(&self.settings.versions),
            operator_unloaded: Some(&self.stored.operator_unloaded),
            requested: Some(&self.requested),
            evicted: Some(&self.evicted),
            kept_warm: self.kept_warm.keys().copied().collect(),
            out: if self.stored.retired.is_some() {
                Some(UnloadReason::Retired)
            } else if self.elsewhere {
                Some(UnloadReason::Elsewhere)
            } else {
                (self.stored.unloaded && !self.is_coming_back()).then_some(UnloadReason::ModelUnloaded)
            },
            returning: self.returning(),
        })
    }

    #[must_use]
    pub(super) fn progress(&self) -> BTreeMap<Version, Progress> {
        self.versions.iter().map(|(v, record)| (*v, record.progress())).collect()
    }

    /// Whether requests without a version could be answered if the model was published now.
    #[must_use]
    pub(super) fn can_serve(&self) -> bool {
        self.document.as_ref().is_some_and(|d| d.serving().iter().all(|v| self.is_callable(*v)))
    }

    /// The model as requests and operators see it.
    ///
    /// # Errors
    /// The versions that the document names and that are not loaded, unless `starting` or it is known why: they failed, or are being
    /// loaded again.
    pub(super) fn entry(
        &self,
        starting: bool,
        tolerance: Tolerance,
        recording: Option<&Recording>,
    ) -> Result<Entry, Vec<Version>> {
        let mut versions: BTreeMap<Version, VersionStatus> =
            self.versions.iter().map(|(v, record)| (*v, record.status(*v))).collect();
        for status in versions.values_mut() {
            let loaded = status.loaded.as_deref();
            status.notes.extend(loaded.and_then(|loaded| recording?.complaint(&self.settings.log, loaded)));
            let names = loaded.map(|loaded| self.settings.features.complaints(&loaded.facts.signature));
            status.notes.extend(names.into_iter().flatten().map(|complaint| format!("model.toml: {complaint}")));
        }
        let document = self.document.clone();
        let is_known = |r: &VersionRecord| !matches!(r.state(), State::Draining | State::Unloaded);
        let incomplete = starting || self.required().iter().all(|v| self.versions.get(v).is_some_and(is_known));
        let (name, revision) = (self.name.clone(), self.stored.revision);
        let entry = Entry::new(name, versions, document, revision, self.is_out(), incomplete)?;
        let entry = entry.with_notes(self.ignored.clone());
        let retired = self.stored.retired.clone();
        let entry =
            entry.with_retired(retired.map(|Retirement { ts: at, actor: by, reason }| Retired { at, by, reason }));
        let entry = entry.with_document_error(self.document_error.clone()).with_tolerance(Tolerance {
            rtol: self.settings.shadow_rtol.unwrap_or(tolerance.rtol),
            atol: self.settings.shadow_atol.unwrap_or(tolerance.atol),
        });
        // Without a log, the columns are hidden from what the admin plane shows.
        let base = recording.map(|recording| recording.choice.clone()).unwrap_or_default();
        let entry = entry.with_choice(self.settings.log.choice(&base)).with_features(self.settings.features.clone());
        let entry = entry.with_metrics(Arc::clone(&self.settings.metrics));
        let entry = entry.with_staleness(self.settings.staleness).with_first_day_limit(self.settings.first_day_limit);
        Ok(entry.with_streams(|loaded| recording?.stream(&self.settings, loaded)))
    }
}

// === impl WaitingRequest ===

impl WaitingRequest {
    /// Answers it with a failure.
    pub(super) fn refuse(self, failure: Failure) {
        // A send fails only when the caller no longer waits.
        match self {
            WaitingRequest::Load { reply, .. } | WaitingRequest::Unload { reply, .. } => drop(reply.send(Err(failure))),
            WaitingRequest::Rollback { reply, .. } => drop(reply.send(Err(failure))),
            WaitingRequest::Promote { reply, .. } => drop(reply.send(Err(failure))),
            WaitingRequest::LoadModel { reply, .. } | WaitingRequest::UnloadModel { reply } => {
                drop(reply.send(Err(failure)));
            }
        }
    }
}

// === refusals ===

/// A refusal because of the current state.
pub(super) fn conflict(words: impl Into<String>) -> Failure {
    Failure::new(Code::Conflict, words)
}

pub(super) fn no_model(model: &ModelName) -> Failure {
    Failure::new(Code::ModelNotFound, format!("no model is named {:?}", model.as_str()))
}

pub(super) fn no_version(model: &Model, version: Version) -> Failure {
    let known: Vec<String> = model.versions.keys().map(ToString::to_string).collect();
    let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
    Failure::new(Code::VersionNotFound, format!("model {} has no version {version}; {known}", model.name))
}

/// # Errors
/// When an operator unloaded or retired the whole model.
pub(super) fn check_model_loaded(model: &Model) -> Result<(), Failure> {
    check_not_retired(model)?;
    if model.stored.unloaded {
        Err(conflict(format!("model {} is unloaded as a whole; load the model first", model.name)))
    } else {
        Ok(())
    }
}

/// Why a document cannot name a version now.
pub(super) fn not_ready(model: &Model, version: Version) -> String {
    let Some(record) = model.versions.get(&version) else { return no_version(model, version).message };
    let stage = record.stage.map(|stage| format!(" in {}", stage.as_str())).unwrap_or_default();
    let reason = record.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("version {version} of model {} is {}{stage}{reason}", model.name, record.state())
}
