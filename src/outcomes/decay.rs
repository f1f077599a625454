//! Whether a version has become worse than it was in training, or than the version before it.

use super::definition::{Better, Metric, Metrics};
use super::estimate::{Estimate, estimate};
use super::experiment::show;
use super::measure::Measured;
use super::windows::usual;
use crate::model::Version;
use crate::quality::{Row, Snapshot};
use std::collections::BTreeMap;

/// One metric of a version that has become worse.
#[derive(Debug, Clone, PartialEq)]
pub struct Decay {
    pub version: Version,
    pub metric: String,
    pub what: Against,
    /// Since when at the latest, in microseconds since 1970: the first of the requests that show it.
    pub since: i64,
    pub words: String,
}

/// What a version is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// The metric of the same name in the lineage of the version.
    Training,
    /// The version that served before, over as long a time.
    Predecessor,
}

/// How far back is looked, in microseconds: a week.
const WINDOW_US: i64 = 7 * 86_400_000_000;
/// Standard errors of a difference that is told. One comparison is that far off by chance once in 30,000 times, because looks are many.
const ERRORS: f64 = 4.0;
/// Units that each side needs.
const MIN_UNITS: u64 = 100;

/// The metrics in which a version is worse beyond doubt. `training`: the metrics of its lineage. `predecessor`: the version that served before.
/// Only requests that are at least `label_delay` old count, of the last week; of the predecessor those of its last week before the version's first request.
#[must_use]
pub fn decay(
    snapshot: &Snapshot,
    metrics: &Metrics,
    version: Version,
    training: &BTreeMap<String, f64>,
    predecessor: Option<Version>,
    now: i64,
) -> Vec<Decay> {
    let of = |version: Version| snapshot.rows().filter(move |row| snapshot.arm(row).version == version);
    let Some(first) = of(version).map(|row| row.ts).min() else { return Vec::new() };
    let usual = usual(snapshot, metrics);
    let mut found = Vec::new();
    for (name, metric) in metrics.iter().chain(&usual).filter(|(_, metric)| metric.kind.better().is_some()) {
        let until = now.saturating_sub(metric.delay_us());
        let rows = || of(version).filter(move |row| row.ts <= until && row.ts >= until.saturating_sub(WINDOW_US));
        let live = figure(snapshot, metric, rows());
        let since = rows().map(|row| row.ts).min().unwrap_or(now);
        let mut note = |what: Against, than: f64, error: f64| {
            if let Some(interval) = worse(metric, &live, than, error) {
                let value = live.value.map(show).unwrap_or_default();
                let words = format!(
                    "{name} of version {version} is {value} ({interval}) over {} units of the last week, worse than {} {}",
                    live.units,
                    show(than),
                    what.words()
                );
                found.push(Decay { version, metric: name.clone(), what, since, words });
            }
        };
        if let Some(than) = training.get(name) {
            note(Against::Training, *than, 0.0);
        }
        if let Some(before) = predecessor {
            let rows = of(before).filter(|row| row.ts < first && row.ts >= first.saturating_sub(WINDOW_US));
            let before = figure(snapshot, metric, rows);
            if let (Some(than), Some(error), true) = (before.value, before.standard_error, before.units >= MIN_UNITS) {
                note(Against::Predecessor, than, error);
            }
        }
    }
    found
}

impl Against {
    const fn words(self) -> &'static str {
        match self {
            Against::Training => "in training",
            Against::Predecessor => "of the version before",
        }
    }
}

fn figure<'r>(snapshot: &Snapshot, metric: &Metric, rows: impl Iterator<Item = &'r Row>) -> Estimate {
    estimate(&Measured::new(metric, snapshot), rows, 1.0)
}

/// Whether a figure is worse than a value with this standard error. Returns its 95 % interval in words.
fn worse(metric: &Metric, live: &Estimate, than: f64, error: f64) -> Option<String> {
    let (value, own) = (live.value?, live.standard_error?);
    let difference = match metric.better {
        Better::Higher => value - than,
        Better::Lower => than - value,
    };
    let beyond_doubt = live.units >= MIN_UNITS && difference < -ERRORS * own.hypot(error);
    beyond_doubt
        .then(|| format!("95 % interval {} to {}", show(live.low.unwrap_or(value)), show(live.high.unwrap_or(value))))
}
