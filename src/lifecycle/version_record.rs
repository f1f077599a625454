//! What the manager knows about one version.

use super::policy::Progress;
use super::state::{IllegalMove, advance};
use crate::model::Version;
use crate::prepare::Digests;
use crate::registry::{Facts, Loaded, Stage, State, VersionStatus};
use crate::source::{Fingerprint, Found};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// One version.
#[derive(Debug)]
pub(super) struct VersionRecord {
    state: State,
    /// The stage in which it failed.
    pub stage: Option<Stage>,
    /// Why it failed, is unloaded, or is still pending.
    pub reason: Option<String>,
    pub notes: BTreeMap<Note, String>,
    pub facts: Option<Arc<Facts>>,
    /// Present exactly in the states ready and serving.
    pub loaded: Option<Arc<Loaded>>,
    /// Digests of the loaded files.
    pub digests: Option<Digests>,
    /// The directory as last reported. `None` when it is gone.
    pub found: Option<Found>,
    /// The files of the last load, successful or not.
    pub tried: Option<Fingerprint>,
    /// The files that were last compared with the loaded ones.
    pub compared: Option<Fingerprint>,
    /// A loading thread works on it.
    pub busy: bool,
    /// Its load takes long, so that nothing waits for it.
    pub long: bool,
    /// Failures in a row that are worth a retry, and when to retry.
    pub attempts: u32,
    pub retry_at: Option<Instant>,
    /// It does not fit into the memory budget. It is tried again when memory is freed.
    pub waiting_for_memory: bool,
    /// The serial of the drain that is in progress.
    pub drain: Option<u64>,
}

/// The kinds of remarks beside a version. It has at most one of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Note {
    StoredState,
    Settings,
    WarmUp,
    OtherBytes,
    BytesChanged,
    Files,
    AutoPromote,
    Lingering,
    KeptWarm,
    Mirror,
}

impl VersionRecord {
    #[must_use]
    pub(super) fn new() -> VersionRecord {
        VersionRecord {
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
            long: false,
            attempts: 0,
            retry_at: None,
            waiting_for_memory: false,
            drain: None,
        }
    }

    #[must_use]
    pub(super) fn state(&self) -> State {
        self.state
    }

    #[must_use]
    pub(super) fn is_callable(&self) -> bool {
        self.loaded.is_some()
    }

    /// Moves to another state and clears what described the state before. Returns the state before.
    pub(super) fn set_state(&mut self, to: State) -> Result<State, IllegalMove> {
        let from = self.state;
        advance(&mut self.state, to)?;
        self.stage = None;
        self.reason = None;
        self.long = false;
        if to != State::Failed {
            self.retry_at = None;
            self.waiting_for_memory = false;
        }
        Ok(from)
    }

    /// Whether its directory holds files that can be loaded.
    #[must_use]
    pub(super) fn has_files(&self) -> bool {
        self.found.as_ref().is_some_and(|f| f.has_model && f.trouble.is_none())
    }

    /// Whether a failed version is to be tried now: its files are not those that failed, or its retry is due.
    #[must_use]
    pub(super) fn is_retry_due(&self, now: Instant) -> bool {
        let changed = self.found.as_ref().is_some_and(|f| f.still && f.has_model && self.tried != Some(f.fingerprint));
        changed || self.retry_at.is_some_and(|at| at <= now)
    }

    /// Sets or removes a note.
    pub(super) fn note(&mut self, note: Note, words: Option<String>) {
        match words {
            Some(words) => drop(self.notes.insert(note, words)),
            None => drop(self.notes.remove(&note)),
        }
    }

    #[must_use]
    pub(super) fn progress(&self) -> Progress {
        match self.state {
            State::Ready | State::Serving => Progress::Ready,
            State::Pending if !self.has_files() => Progress::Stopped,
            State::Loading | State::Verifying | State::Warming if self.long => Progress::Stopped,
            State::Pending | State::Loading | State::Verifying | State::Warming => Progress::Loading,
            State::Draining | State::Unloaded | State::Failed => Progress::Stopped,
        }
    }

    #[must_use]
    pub(super) fn status(&self, version: Version) -> VersionStatus {
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
