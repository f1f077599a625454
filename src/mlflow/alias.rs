//! What an alias of MLflow changes here. The decision is pure; `follow.rs` carries it out.

use super::memory::VersionNews;
use crate::model::{ArmName, Version};
use crate::registry::{State, VersionStatus};
use crate::route::Document;
use serde::{Deserialize, Serialize};

/// What became of an alias since it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// It is carried over as soon as its version is ready.
    Waiting,
    Applied,
    /// It is tried again when a check shows that it would not be refused any more.
    Refused,
    /// A person changed the same thing after the alias had moved.
    Superseded,
}

/// An alias, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Followed {
    /// `None`: the alias was removed, and its label has to be.
    pub version: Option<Version>,
    pub outcome: Outcome,
    /// A sentence for operators.
    pub message: String,
    /// What the traffic document had when the alias moved.
    pub found: Found,
    /// The text of a tag that is to be written on MLflow's version.
    pub untold: Option<String>,
}

/// The part of a traffic document that an alias changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    pub label: Option<Version>,
    /// The split in words. `None` without a document.
    pub split: Option<String>,
}

/// What is so now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now<'n> {
    pub document: Option<&'n Document>,
    pub status: Option<&'n VersionStatus>,
    pub version: Option<&'n VersionNews>,
    /// Whether the model is retired here. An alias does not bring it back.
    pub retired: bool,
    /// Whether a change that was refused may be checked again.
    pub look_again: bool,
}

/// What to do about an alias.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// Its state and the sentence about it.
    Is(Outcome, String),
    /// The alias was removed, and nothing of it is left here.
    Forget,
    /// Put this document in force.
    Put(Box<Document>),
    /// Promote the version. First `check` what a promotion would say, because one was refused.
    Promote {
        version: Version,
        check: bool,
    },
}

/// The label of an alias. `None` where its name can be none.
#[must_use]
pub(super) fn label_of(alias: &str) -> Option<String> {
    alias.parse::<ArmName>().ok().map(|_| alias.to_owned())
}

impl Found {
    pub(super) fn of(alias: &str, document: Option<&Document>) -> Found {
        let label = document.and_then(|document| document.labels.get(alias).copied());
        Found { label, split: document.map(Document::show_split) }
    }
}

impl Followed {
    /// An alias that moved, or was removed.
    pub(super) fn moved(alias: &str, version: Option<Version>, document: Option<&Document>) -> Followed {
        let found = Found::of(alias, document);
        Followed { version, outcome: Outcome::Waiting, message: String::new(), found, untold: None }
    }

    /// Whether something is left to do.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.outcome, Outcome::Waiting | Outcome::Refused)
    }

    /// What to do now. `promotes`: the alias is a promotion.
    pub(super) fn next(&self, alias: &str, promotes: bool, now: Now<'_>) -> Step {
        if !self.is_open() {
            return Step::Nothing;
        }
        let Some(version) = self.version else { return self.remove_label(alias, now.document) };
        let label = label_of(alias);
        let has_label = |document: &Document| {
            label.as_ref().is_none_or(|label| document.labels.get(label.as_str()) == Some(&version))
        };
        if now.document.is_some_and(|document| has_label(document) && (!promotes || document.serves_alone(version))) {
            if label.is_none() && !promotes {
                return Step::Is(Outcome::Refused, no_label(alias));
            }
            let words = if promotes { "it serves all requests without a version" } else { "the label is set" };
            return Step::Is(Outcome::Applied, words.to_owned());
        }
        if let Some(words) = self.superseded(alias, promotes, version, now.document) {
            return Step::Is(Outcome::Superseded, words);
        }
        match readiness(version, now) {
            Err((outcome, words)) => Step::Is(outcome, words),
            Ok(()) if self.outcome == Outcome::Refused && !now.look_again => Step::Nothing,
            Ok(()) if promotes => Step::Promote { version, check: self.outcome == Outcome::Refused },
            Ok(()) => match (now.document, label) {
                (_, None) => Step::Is(Outcome::Refused, no_label(alias)),
                (None, _) => Step::Is(Outcome::Waiting, "the model has no traffic document yet".to_owned()),
                (Some(document), Some(label)) => {
                    let mut next = document.clone();
                    next.labels.insert(label, version);
                    Step::Put(Box::new(next))
                }
            },
        }
    }

    fn remove_label(&self, alias: &str, document: Option<&Document>) -> Step {
        let Some(document) = document else { return Step::Forget };
        match document.labels.get(alias) {
            Some(version) if Some(*version) == self.found.label => {
                let mut next = document.clone();
                next.labels.remove(alias);
                Step::Put(Box::new(next))
            }
            _ => Step::Forget,
        }
    }

    /// Whether somebody changed after the alias had moved what the alias changes.
    fn superseded(&self, alias: &str, promotes: bool, version: Version, document: Option<&Document>) -> Option<String> {
        let document = document?;
        let found = Found::of(alias, Some(document));
        if promotes {
            // The first document is one that the gateway makes itself.
            let before = self.found.split.as_ref()?;
            let is_changed = found.split.as_ref() != Some(before) && !document.serves_alone(version);
            let split = found.split.unwrap_or_default();
            return is_changed.then(|| {
                format!("the traffic was changed to {split} after the alias had moved; move the alias again to promote version {version}")
            });
        }
        let is_changed = self.found.split.is_some() && found.label != self.found.label;
        let words = "the label was changed after the alias had moved; move the alias again to set it".to_owned();
        is_changed.then_some(words)
    }
}

/// Whether the version can get traffic now. If not, whether that is a refusal or takes time.
fn readiness(version: Version, now: Now<'_>) -> Result<(), (Outcome, String)> {
    if let Some(why) = now.version.and_then(|news| news.unusable.as_ref()) {
        return Err((Outcome::Refused, format!("version {version} cannot be served here: {why}")));
    }
    if now.retired {
        let words = format!("the model is retired here; `sluicegate promote` with version {version} brings it back");
        return Err((Outcome::Refused, words));
    }
    let Some(status) = now.status else {
        return Err((Outcome::Waiting, format!("version {version} is not here yet")));
    };
    match status.state {
        State::Ready | State::Serving => Ok(()),
        State::Failed => {
            let stage = status.stage.map_or("load", |stage| stage.as_str());
            let reason = status.reason.as_deref().unwrap_or("the reason is not known");
            Err((Outcome::Refused, format!("version {version} failed in {stage}: {reason}")))
        }
        State::Unloaded | State::Draining => {
            Err((Outcome::Refused, format!("version {version} is {}: load it, and it is carried over", status.state)))
        }
        State::Pending | State::Loading | State::Verifying | State::Warming => {
            let why = status.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            Err((Outcome::Waiting, format!("version {version} is {}{why}", status.state)))
        }
    }
}

fn no_label(alias: &str) -> String {
    let alias = super::api::shown(alias);
    format!("{alias:?} cannot be a label: a letter or digit, then up to 63 letters, digits, '.', '_' or '-'")
}
