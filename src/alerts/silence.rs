//! Silences: alerts that nobody is to be told of for a while.

use super::finding::About;
use super::rule::Rule;
use crate::access::Pattern;
use crate::model::Version;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The most silences at the same time.
pub const MOST_SILENCES: usize = 1_000;
/// The longest time of a silence: one that is forgotten must end.
pub const LONGEST_SILENCE: Duration = Duration::from_hours(365 * 24);

/// Holds back the begin of alerts that fit. An alert that was told before gets its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    pub id: String,
    pub matcher: Matcher,
    pub until: Timestamp,
    pub reason: String,
    pub created_by: String,
    pub created_at: Timestamp,
}

/// Which alerts: all that is given must fit, and something must be given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Matcher {
    #[serde(default)]
    pub rule: Option<Rule>,
    /// A name or a pattern such as `fraud-*`.
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub version: Option<Version>,
}

impl Matcher {
    /// Whether an alert fits. A pattern that cannot be read, which only another program can have stored, fits nothing.
    #[must_use]
    pub fn fits(&self, about: &About) -> bool {
        let Matcher { rule, model, version } = self;
        let of_model = |pattern: &String| {
            let pattern: Option<Pattern> = pattern.parse().ok();
            about.model.as_ref().is_some_and(|model| pattern.is_some_and(|pattern| pattern.fits(model.as_str())))
        };
        rule.is_none_or(|rule| rule == about.rule)
            && model.as_ref().is_none_or(of_model)
            && version.is_none_or(|version| about.version == Some(version))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Matcher::default()
    }
}

impl Silence {
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        now < self.until
    }
}
