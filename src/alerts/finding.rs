//! What rooms report, and what becomes of it.

use super::rule::{Rule, Severity};
use crate::model::{ModelName, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// Something that is wrong now. A source reports it again with every look, as long as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub about: About,
    pub severity: Severity,
    /// One sentence: what is wrong.
    pub summary: String,
    /// One sentence: how likely it is that this is a false alarm, and what was counted.
    pub how_sure: String,
    /// One sentence: what an operator can do. Commands stand in backticks.
    pub what_to_do: String,
    /// Since when, where the source knows it.
    pub since: Option<Timestamp>,
    /// The time range that a new training set should have, for rules that ask for retraining. `None`: the last 30 days.
    pub training: Option<(Timestamp, Timestamp)>,
}

/// What identifies an alert: two findings that agree in all of it are one alert.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct About {
    pub rule: Rule,
    #[serde(default)]
    pub model: Option<ModelName>,
    #[serde(default)]
    pub version: Option<Version>,
    /// Tells findings of one rule and version apart, such as the name of a token or of a column. Empty where there is one only.
    #[serde(default)]
    pub subject: String,
}

impl About {
    /// About the server as a whole, or about `subject` in it.
    #[must_use]
    pub fn server(rule: Rule, subject: &str) -> About {
        About { rule, model: None, version: None, subject: subject.to_owned() }
    }

    /// About a model.
    #[must_use]
    pub fn model(rule: Rule, model: &ModelName) -> About {
        About { rule, model: Some(model.clone()), version: None, subject: String::new() }
    }

    /// About a version.
    #[must_use]
    pub fn version(rule: Rule, model: &ModelName, version: Version) -> About {
        About { rule, model: Some(model.clone()), version: Some(version), subject: String::new() }
    }
}

/// The time of a look.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For what people read.
    pub ts: Timestamp,
    /// For what has to last: the clock of `ts` may be set.
    pub at: Instant,
}

impl Now {
    #[must_use]
    pub fn read() -> Now {
        // Microseconds, as the audit trail has them.
        let now = Timestamp::now();
        Now { ts: Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now), at: Instant::now() }
    }
}

/// Lists what is wrong now.
pub struct Source {
    /// The rules that it reports. No other source reports them.
    pub rules: &'static [Rule],
    pub look: Look,
}

/// Returns everything that is wrong, or `None` where that is not known at the moment, such as while models are loaded at the start: alerts then
/// neither begin nor end. It is called on the thread `alerts`, every few seconds, and may block it for a moment. A source that finds the same again may
/// return the same list: thousands of findings are not copied with every look.
pub type Look = Box<dyn FnMut(Now) -> Option<Arc<Vec<Finding>>> + Send>;

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// A change of the audit trail that came just before an alert. It need not be the cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeBefore {
    /// The number of the event.
    pub id: u64,
    pub ts: Timestamp,
    pub actor: String,
    pub action: String,
    pub reason: Option<String>,
}

/// A finding that lasted, with what is known about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Of this occurrence: the same finding gets another id when it begins again.
    pub id: String,
    pub about: About,
    /// As it was when the alert began.
    pub severity: Severity,
    pub since: Timestamp,
    /// `None` while it fires.
    pub until: Option<Timestamp>,
    pub summary: String,
    pub how_sure: String,
    pub what_to_do: String,
    pub change_before: Option<ChangeBefore>,
    pub training: Option<(Timestamp, Timestamp)>,
    /// How often it began within the last hour; above 1 it ends only after a longer time.
    pub begun: u32,
    /// Whether its begin, and its end, are in the outbox.
    pub told: Told,
}

/// What the targets know of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    #[default]
    Nothing,
    Begin,
    End,
}

impl Alert {
    #[must_use]
    pub fn is_firing(&self) -> bool {
        self.until.is_none()
    }

    /// The page of the console about it.
    #[must_use]
    pub fn link(&self) -> String {
        match &self.about.model {
            Some(model) => format!("/models/{model}"),
            None => "/alerts".to_owned(),
        }
    }
}
