//! How fast a version was on its first day, and whether it is slower now.
//!
//! Compared are points of five minutes. Such points are noisy and related: load goes up and down with the hour, and one bad point follows another. So
//! nothing is concluded from single points. A version is slower when one of these is true:
//!
//! - Three quarters of the last 24 hours are slower than three quarters of the first day were, and their median is at least the limit ([`LIMIT`] unless
//!   the model has another one) times that of the first day. Both have a whole daily cycle.
//! - Three quarters of the last six hours are slower than the limit times what one in twenty points of the first day was: a large change is said sooner.

use super::series::Point;
use serde::{Deserialize, Serialize};

/// How many times the median of the first day is slower, where a model has no limit of its own.
pub const LIMIT: f64 = 1.5;
/// Lengths in seconds: of the first day and the last, and of the hours in which a large change is seen.
const DAY: u32 = 86_400;
const HOURS: u32 = 6 * 3600;
/// Points that a day needs, and that the last hours need.
const MIN_POINTS: usize = 72;
const MIN_POINTS_OF_HOURS: usize = 36;
/// The points of a last day are at least so many seconds apart, the first from the last: not of its busiest hours alone.
const SPREAD: u32 = 18 * 3600;
/// Requests that a point needs for its median, and for its 99th percentile.
const MIN_REQUESTS: u32 = 20;
const MIN_REQUESTS_P99: u32 = 200;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    P50,
    P99,
    /// The time in the engine for each row: what a version costs.
    Engine,
}

/// The points of a first day.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Usual {
    pub points: u32,
    pub median: f64,
    /// A quarter of the points is above it.
    pub upper_quartile: f64,
    /// One in twenty points is above it.
    pub high: f64,
}

/// How fast a version was at first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FirstDay {
    /// Seconds since 1970.
    pub from: u32,
    pub to: u32,
    pub p50: Option<Usual>,
    pub p99: Option<Usual>,
    pub engine: Option<Usual>,
}

/// A measure now, against the first day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    pub measure: Measure,
    pub first: Usual,
    /// The median of the last 24 hours; `None` where they have too few points.
    pub now: Option<f64>,
    pub slower: bool,
}

impl Measure {
    pub const ALL: [Measure; 3] = [Measure::P50, Measure::P99, Measure::Engine];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Measure::P50 => "p50_us",
            Measure::P99 => "p99_us",
            Measure::Engine => "engine_us_per_row",
        }
    }

    /// In words, for messages.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Measure::P50 => "the median latency",
            Measure::P99 => "the 99th percentile of the latency",
            Measure::Engine => "the time in the engine for each row",
        }
    }

    /// In microseconds. `None` where the point has too few requests for it.
    fn of(self, point: &Point) -> Option<f64> {
        let least = if self == Measure::P99 { MIN_REQUESTS_P99 } else { MIN_REQUESTS };
        let us = match self {
            Measure::P50 => f64::from(point.p50_us),
            Measure::P99 => f64::from(point.p99_us),
            Measure::Engine => f64::from(point.engine_ns_per_row) / 1e3,
        };
        (point.requests >= least && us > 0.0).then_some(us)
    }
}

impl FirstDay {
    /// From the coarse points of all arms of a version, in the order of their time. `None` before the day is over, and where it has too few points: it
    /// goes on then until there are enough.
    pub(super) fn of(points: &[Point], now: u32) -> Option<FirstDay> {
        let first = points.first()?;
        let from = first.ts.saturating_sub(first.span);
        let enough = points.iter().filter(|point| Measure::P50.of(point).is_some()).nth(MIN_POINTS - 1)?;
        let to = from.saturating_add(DAY).max(enough.ts);
        if now <= to {
            return None;
        }
        let day: Vec<Point> = points.iter().filter(|point| point.ts <= to).copied().collect();
        let usual = |measure: Measure| {
            let values = values(&day, measure);
            let at = |share: f64| quantile(&values, share);
            let points = u32::try_from(values.len()).unwrap_or(u32::MAX);
            (values.len() >= MIN_POINTS).then(|| Usual {
                points,
                median: at(0.5),
                upper_quartile: at(0.75),
                high: at(0.95),
            })
        };
        Some(FirstDay { from, to, p50: usual(Measure::P50), p99: usual(Measure::P99), engine: usual(Measure::Engine) })
    }

    fn usual(&self, measure: Measure) -> Option<Usual> {
        match measure {
            Measure::P50 => self.p50,
            Measure::P99 => self.p99,
            Measure::Engine => self.engine,
        }
    }

    /// What was read from a file is used only if it can be compared with.
    pub(super) fn is_sound(&self) -> bool {
        let sound = |usual: &Usual| {
            let ordered = usual.median <= usual.upper_quartile && usual.upper_quartile <= usual.high;
            usual.median > 0.0 && ordered && usual.high.is_finite()
        };
        self.from < self.to && [self.p50, self.p99, self.engine].iter().flatten().all(sound)
    }

    /// The last 24 hours against this day. `points` are coarse ones of all arms of the version, in the order of their time. `limit`: as [`LIMIT`].
    pub(super) fn compare(&self, points: &[Point], now: u32, limit: f64) -> Vec<Compared> {
        let last = |seconds: u32| -> Vec<Point> {
            let within = |point: &&Point| point.ts > self.to && point.ts <= now && now - point.ts < seconds;
            points.iter().filter(within).copied().collect()
        };
        let (day, hours) = (last(DAY), last(HOURS));
        let spread = day.last().zip(day.first()).map_or(0, |(last, first)| last.ts - first.ts);
        let compared = |measure: Measure| {
            let first = self.usual(measure)?;
            let (day, hours) = (values(&day, measure), values(&hours, measure));
            let now = (day.len() >= MIN_POINTS && spread >= SPREAD).then(|| quantile(&day, 0.5));
            let slower =
                now.is_some_and(|median| median >= limit * first.median && quantile(&day, 0.25) > first.upper_quartile);
            let much_slower = hours.len() >= MIN_POINTS_OF_HOURS && quantile(&hours, 0.25) > limit * first.high;
            Some(Compared { measure, first, now, slower: slower || much_slower })
        };
        Measure::ALL.into_iter().filter_map(compared).collect()
    }
}

fn values(points: &[Point], measure: Measure) -> Vec<f64> {
    let mut values: Vec<f64> = points.iter().filter_map(|point| measure.of(point)).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values, at least one.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place from 0 to `last`")]
    let at = (last as f64 * share).round() as usize;
    sorted.get(at.min(last)).copied().unwrap_or(0.0)
}
