//! The manager's table: every model and version it knows, as it knows them.

use super::handle::{Actor, LoadOutcome, Reply, RolledBack};
use super::keep_warm::Left;
use super::policy::{self, Known, Leave, Standing};
use super::state::{IllegalMove, advance};
use crate::compare::Tolerance;
use crate::ledger::ModelState;
use crate::model::{ModelName, Version, VersionId};
use crate::model_settings::ModelSettings;
use crate::model_settings::Recording;
use crate::prepare::Digests;
use crate::registry::{Entry, Facts, Loaded, Stage, State, VersionStatus};
use crate::route::Document;
use crate::source::{Fingerprint, Found};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// One model.
#[derive(Debug)]
pub struct Model {
    pub name: ModelName,
    /// What the ledger keeps, as parsed.
    pub document: Option<Document>,
    pub kept: ModelState,
    pub settings: ModelSettings,
    /// The text the settings were read from, or why it could not be read; to see when it changes.
    pub settings_from: Option<Result<Arc<str>, String>>,
    /// What is wrong with `model.toml`; the settings are then the last that were right.
    pub settings_complaint: Option<String>,
    /// No settings were ever right: nothing is loaded until they are.
    pub settings_missing: bool,
    pub lives: BTreeMap<Version, Life>,
    /// Loaded by an operator although `versions` leaves them out, since this process started.
    pub asked: BTreeSet<Version>,
    /// Unloaded to make room, since this process started.
    pub evicted: BTreeSet<Version>,
    /// Versions that documents named before, with when the last of them did; until they are kept warm no longer.
    pub left: BTreeMap<Version, Left>,
    /// Of them, those that are loaded only to be kept warm, with until when.
    pub warm: BTreeMap<Version, Timestamp>,
    /// All versions have been ready or failed once: the first that comes ready may serve.
    pub waited: bool,
    /// Versions that `auto_promote` was refused for: tried once, and once more with another `model.toml`.
    pub refused: BTreeSet<Version>,
    /// When it is looked again whether a version that would promote itself passes its gates.
    pub look_again: Option<Instant>,
    pub ops: Vec<Op>,
}

/// What an operator waits for.
#[derive(Debug)]
pub enum Op {
    Load { version: Version, reply: Reply<LoadOutcome> },
    Unload { version: Version, reply: Reply<LoadOutcome> },
    Rollback { wish: Box<Rollback>, reply: Reply<RolledBack> },
    LoadModel { actor: Actor, reply: Reply<()> },
    UnloadModel { reply: Reply<()> },
}

/// A rollback that waits for its versions.
#[derive(Debug)]
pub struct Rollback {
    /// What to go back to.
    pub document: Document,
    /// The revision it goes back from; with another in force, it is off.
    pub at: u64,
    /// Versions that were not loaded when it was asked for.
    pub to_load: Vec<Version>,
    pub reason: String,
    pub actor: Actor,
}

/// One version.
#[derive(Debug)]
pub struct Life {
    state: State,
    /// Where it failed.
    pub stage: Option<Stage>,
    /// Why it failed, is unloaded, or is still pending.
    pub reason: Option<String>,
    pub notes: BTreeMap<Note, String>,
    pub facts: Option<Arc<Facts>>,
    /// Present exactly in the states ready and serving.
    pub loaded: Option<Arc<Loaded>>,
    /// What the loaded bytes were.
    pub digests: Option<Digests>,
    /// As the source last had it; `None` when its directory is gone.
    pub found: Option<Found>,
    /// The files that were last loaded, or tried.
    pub tried: Option<Fingerprint>,
    /// The files that were last held against the loaded bytes.
    pub compared: Option<Fingerprint>,
    /// A loader has it.
    pub busy: bool,
    /// Failures in a row that are worth another try, and when that is.
    pub attempts: u32,
    pub retry_at: Option<Instant>,
    /// It failed because it does not fit into the budget: tried again when bytes are given back.
    pub starved: bool,
    /// Which draining its state stands for.
    pub draining: Option<u64>,
}

/// Remarks beside a version; one of each kind, so that saying it again changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    Settings,
    WarmUp,
    OtherBytes,
    BytesChanged,
    FilesGone,
    AutoPromote,
    Lingering,
    KeptWarm,
}

// === impl Life ===

impl Life {
    #[must_use]
    pub fn new() -> Life {
        Life {
            state: State::Pending,
            stage: None,
            reason: None,
            notes: BTreeMap::new(),
            facts: None,
            loaded: None,
            digests: None,
            found: None,
            tried: None,
            compared: None,
            busy: false,
            attempts: 0,
            retry_at: None,
            starved: false,
            draining: None,
        }
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    #[must_use]
    pub fn is_callable(&self) -> bool {
        self.loaded.is_some()
    }

    /// Moves on, and forgets what was said of the state before. Answers where it came from.
    pub fn go(&mut self, to: State) -> Result<State, IllegalMove> {
        let from = self.state;
        advance(&mut self.state, to)?;
        self.stage = None;
        self.reason = None;
        if to != State::Failed {
            self.retry_at = None;
            self.starved = false;
        }
        Ok(from)
    }

    /// Whether there are files to load.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.found.as_ref().is_some_and(|f| f.has_model && f.trouble.is_none())
    }

    /// Takes a note, or takes it away.
    pub fn note(&mut self, note: Note, words: Option<String>) {
        match words {
            Some(words) => drop(self.notes.insert(note, words)),
            None => drop(self.notes.remove(&note)),
        }
    }

    fn standing(&self) -> Standing {
        match self.state {
            State::Ready | State::Serving => Standing::Ready,
            State::Pending if !self.has_files() => Standing::Out,
            State::Pending | State::Loading | State::Verifying | State::Warming => Standing::Coming,
            State::Draining | State::Unloaded | State::Failed => Standing::Out,
        }
    }

    fn status(&self, version: Version) -> VersionStatus {
        VersionStatus {
            version,
            state: self.state,
            stage: self.stage,
            reason: self.reason.clone(),
            notes: self.notes.values().cloned().collect(),
            facts: self.facts.clone(),
            loaded: self.loaded.clone(),
        }
    }
}

// === impl Model ===

impl Model {
    #[must_use]
    pub fn new(name: ModelName) -> Model {
        let kept = ModelState {
            model: name.clone(),
            revision: 0,
            document: None,
            taken_out: false,
            highest_served: None,
            operator_unloaded: BTreeSet::new(),
            auto_promoted: BTreeSet::new(),
            artifacts: BTreeMap::new(),
        };
        Model {
            name,
            document: None,
            kept,
            settings: ModelSettings::default(),
            settings_from: None,
            settings_complaint: None,
            settings_missing: false,
            lives: BTreeMap::new(),
            asked: BTreeSet::new(),
            evicted: BTreeSet::new(),
            left: BTreeMap::new(),
            warm: BTreeMap::new(),
            waited: false,
            refused: BTreeSet::new(),
            look_again: None,
            ops: Vec::new(),
        }
    }

    #[must_use]
    pub fn id(&self, version: Version) -> VersionId {
        VersionId { model: self.name.clone(), version }
    }

    #[must_use]
    pub fn is_callable(&self, version: Version) -> bool {
        self.lives.get(&version).is_some_and(Life::is_callable)
    }

    /// The versions callers of this model reach un-asked now.
    #[must_use]
    pub fn serving(&self) -> BTreeSet<Version> {
        self.document.as_ref().map(Document::serving).unwrap_or_default()
    }

    /// The versions that may not go: those the document names, and those a rollback under way will name.
    #[must_use]
    pub fn named(&self) -> BTreeSet<Version> {
        let mut named = self.document.as_ref().map(Document::named).unwrap_or_default();
        for op in &self.ops {
            if let Op::Rollback { wish, .. } = op {
                named.extend(wish.document.named());
            }
        }
        named
    }

    #[must_use]
    pub fn is_coming_back(&self) -> bool {
        self.kept.taken_out && self.ops.iter().any(|op| matches!(op, Op::LoadModel { .. }))
    }

    /// Which versions ought to be loaded; for each of the others, why not.
    #[must_use]
    pub fn wanted(&self) -> BTreeMap<Version, Result<(), Leave>> {
        policy::wanted(&Known {
            found: self.lives.iter().filter(|(_, life)| life.found.is_some()).map(|(v, _)| *v).collect(),
            named: self.named(),
            keep: Some(&self.settings.versions),
            operator_unloaded: Some(&self.kept.operator_unloaded),
            asked: Some(&self.asked),
            evicted: Some(&self.evicted),
            warm: self.warm.keys().copied().collect(),
            taken_out: self.kept.taken_out && !self.is_coming_back(),
        })
    }

    #[must_use]
    pub fn standings(&self) -> BTreeMap<Version, Standing> {
        self.lives.iter().map(|(v, life)| (*v, life.standing())).collect()
    }

    /// Whether un-pinned requests can be answered, were the model published as it is.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.document.as_ref().is_some_and(|d| d.serving().iter().all(|v| self.is_callable(*v)))
    }

    /// The model as requests and operators see it.
    ///
    /// # Errors
    /// The versions the document names that are not loaded, unless `starting`.
    pub fn entry(
        &self,
        starting: bool,
        tolerance: Tolerance,
        recording: Option<&Recording>,
    ) -> Result<Entry, Vec<Version>> {
        let mut versions: BTreeMap<Version, VersionStatus> =
            self.lives.iter().map(|(v, life)| (*v, life.status(*v))).collect();
        for status in versions.values_mut() {
            let loaded = status.loaded.as_deref();
            status.notes.extend(loaded.and_then(|loaded| recording?.complaint(&self.settings.log, loaded)));
        }
        let document = self.document.clone();
        let entry =
            Entry::new(self.name.clone(), versions, document, self.kept.revision, self.kept.taken_out, starting)?;
        let entry = entry.with_tolerance(Tolerance {
            rtol: self.settings.shadow_rtol.unwrap_or(tolerance.rtol),
            atol: self.settings.shadow_atol.unwrap_or(tolerance.atol),
        });
        Ok(entry.with_streams(|loaded| recording?.stream(&self.settings.log, loaded)))
    }
}
