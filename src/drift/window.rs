//! The windows in which rows are counted.

use serde::{Deserialize, Serialize};

/// A window of time. Windows of one kind follow each other without overlap, from 1970 on (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    Hour,
    Day,
    Week,
    FourWeeks,
}

impl Window {
    pub const ALL: [Window; 4] = [Window::Hour, Window::Day, Window::Week, Window::FourWeeks];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Window::Hour => "hour",
            Window::Day => "day",
            Window::Week => "week",
            Window::FourWeeks => "four_weeks",
        }
    }

    /// For a sentence.
    #[must_use]
    pub const fn shown(self) -> &'static str {
        match self {
            Window::FourWeeks => "four weeks",
            other => other.as_str(),
        }
    }

    #[must_use]
    pub const fn hours(self) -> i64 {
        match self {
            Window::Hour => 1,
            Window::Day => 24,
            Window::Week => 7 * 24,
            Window::FourWeeks => 28 * 24,
        }
    }

    /// The number of the window that holds an hour, which counts from 1970.
    pub(super) const fn of_hour(self, hour: i64) -> i64 {
        hour.div_euclid(self.hours())
    }

    /// Windows of this kind in a year.
    pub(super) fn per_year(self) -> f64 {
        365.25 * 24.0 / self.hours() as f64
    }

    /// The probability of a false alarm in one window of this kind: a quarter of what is accepted in a year, over all windows of the year.
    pub(super) fn alpha(self, per_year: f64) -> f64 {
        (per_year / Window::ALL.len() as f64 / self.per_year()).clamp(1e-12, 0.5)
    }
}

/// Microseconds of an hour.
pub(super) const HOUR: i64 = 3600 * 1_000_000;
