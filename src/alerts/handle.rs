//! The handle: what the admin plane reads and changes.

use super::book::{Book, hex};
use super::finding::Alert;
use super::message::{Message, Sender};
use super::rule::Rule;
use super::sender::{Outlet, Status};
use super::silence::{MOST_SILENCES, Matcher, Silence};
use super::store::Store;
use super::target::Kind;
use crate::model::ModelName;
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shows alerts and changes silences. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Alerts(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub book: Arc<Mutex<Book>>,
    pub silences: Mutex<Vec<Silence>>,
    pub store: Arc<Store>,
    pub outlets: Vec<Arc<Outlet>>,
    pub sender: Sender,
}

/// A target and its messages.
#[derive(Debug, Clone)]
pub struct TargetStatus {
    pub name: String,
    pub kind: Kind,
    /// Messages in the outbox; `None` where it cannot be read.
    pub waiting: Option<usize>,
    pub status: Status,
}

/// Why a silence was not made, removed, or a test not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlertsError {
    #[error("there are {MOST_SILENCES} silences, which is the limit; remove those that nobody needs")]
    TooMany,
    #[error("no silence has the id {0:?}")]
    NoSilence(String),
    #[error("no target is named {name:?}; the targets are {known}")]
    NoTarget { name: String, known: String },
    #[error("the database of alerts cannot be written: {0}")]
    NotStored(String),
}

impl Alerts {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silences_locked(&self) -> MutexGuard<'_, Vec<Silence>> {
        self.0.silences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Visits those that fire, and then those that ended, newest first; each with the silence that holds it back. Returns the number of findings for
    /// which there was no room. Nothing is copied: with thousands of alerts, a caller shows some of them.
    pub fn visit(&self, mut each: impl FnMut(&Alert, Option<&Silence>)) -> usize {
        let silences = self.silences_in_force();
        let book = self.book();
        let mut firing: Vec<&Alert> = book.firing().collect();
        firing.sort_by(|a, b| b.since.cmp(&a.since).then_with(|| a.about.cmp(&b.about)));
        for alert in firing {
            each(alert, silences.iter().find(|silence| silence.matcher.fits(&alert.about)));
        }
        book.ended().for_each(|alert| each(alert, None));
        book.untracked()
    }

    /// The rules of the alerts that fire and are not silenced, by model.
    #[must_use]
    pub fn firing_rules(&self) -> HashMap<ModelName, BTreeSet<Rule>> {
        let silences = self.silences_in_force();
        let book = self.book();
        let mut rules: HashMap<ModelName, BTreeSet<Rule>> = HashMap::new();
        for alert in book.firing().filter(|alert| !silences.iter().any(|silence| silence.matcher.fits(&alert.about))) {
            if let Some(model) = &alert.about.model {
                rules.entry(model.clone()).or_default().insert(alert.about.rule);
            }
        }
        rules
    }

    fn silences_in_force(&self) -> Vec<Silence> {
        let now = Timestamp::now();
        self.silences_locked().iter().filter(|silence| silence.holds(now)).cloned().collect()
    }

    /// In the order in which they were made. Those that are over may still be among them for some seconds.
    #[must_use]
    pub fn silences(&self) -> Vec<Silence> {
        self.silences_locked().clone()
    }

    /// Makes a silence. It is stored when this returns. Blocks on the file system.
    ///
    /// # Errors
    /// When there are too many, or it cannot be stored.
    pub fn silence(
        &self,
        matcher: Matcher,
        until: Timestamp,
        reason: String,
        by: String,
    ) -> Result<Silence, AlertsError> {
        let mut silences = self.silences_locked();
        if silences.len() >= MOST_SILENCES {
            return Err(AlertsError::TooMany);
        }
        let id = hex(&fastrand::u64(..).to_be_bytes());
        let silence = Silence { id, matcher, until, reason, created_by: by, created_at: Timestamp::now() };
        self.0.store.put_silence(&silence).map_err(|e| AlertsError::NotStored(e.to_string()))?;
        silences.push(silence.clone());
        Ok(silence)
    }

    /// Ends a silence. Alerts that it held back and that still fire are told now.
    ///
    /// # Errors
    /// When there is none with this id, or the change cannot be stored.
    pub fn end_silence(&self, id: &str) -> Result<Silence, AlertsError> {
        let mut silences = self.silences_locked();
        let Some(at) = silences.iter().position(|silence| silence.id == id) else {
            return Err(AlertsError::NoSilence(id.chars().take(80).collect()));
        };
        self.0.store.remove_silence(id).map_err(|e| AlertsError::NotStored(e.to_string()))?;
        Ok(silences.remove(at))
    }

    #[must_use]
    pub fn targets(&self) -> Vec<TargetStatus> {
        let of = |outlet: &Arc<Outlet>| TargetStatus {
            name: outlet.target.name.clone(),
            kind: outlet.target.kind,
            waiting: self.0.store.waiting(&outlet.target.name).ok(),
            status: outlet.status().clone(),
        };
        self.0.outlets.iter().map(of).collect()
    }

    /// Sends a test to a target, past the outbox. `Ok(Err)`: it was not delivered, and why. Blocks as long as the target's time limit.
    ///
    /// # Errors
    /// When there is no such target.
    pub fn test(&self, name: &str) -> Result<Result<(), String>, AlertsError> {
        let Some(outlet) = self.0.outlets.iter().find(|outlet| outlet.target.name == name) else {
            let known: Vec<&str> = self.0.outlets.iter().map(|outlet| outlet.target.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(AlertsError::NoTarget { name: name.chars().take(80).collect(), known });
        };
        Ok(outlet.try_now(&Message::test(&self.0.sender, Timestamp::now())))
    }
}
