//! The figures of versions and arms over windows of time, by segment.

use super::definition::{Kind, Metric, Metrics};
use super::estimate::{Estimate, estimate, wilson};
use super::expected::Estimates;
pub use super::expected::{CalibratedOn, Checked, EstimatedAccuracy};
use super::measure::Measured;
use super::segment::{MAX_SEGMENTS, OTHER, Segments};
use super::units::standard_error;
use crate::model::{Label, Version};
use crate::quality::{Layout, Row, Snapshot};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use utoipa::ToSchema;

/// What is asked for. Times are in microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub from: i64,
    /// Also the current time.
    pub to: i64,
    /// The length of each period. They begin at multiples of it, so the first may begin before `from`. `None`: one period.
    pub step: Option<i64>,
    /// The input to group by.
    pub by: Option<String>,
}

/// The figures over windows.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Windows {
    pub from: String,
    pub to: String,
    /// The input that rows are grouped by.
    pub by: Option<String>,
    /// The segment with the fewest rows over the whole window, and how many they are; null without `by`.
    pub smallest_segment: Option<Smallest>,
    /// By version, arm, period and segment. Periods without rows are left out.
    pub groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Smallest {
    pub segment: String,
    pub rows: u64,
}

/// One version on one arm in one period.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Group {
    #[schema(value_type = String)]
    pub version: Version,
    pub arm: String,
    pub segment: Option<String>,
    pub from: String,
    pub to: String,
    /// Answered rows.
    pub rows: u64,
    /// `key`: rows of one sticky key are taken for related; `request`: those of one request.
    pub unit: &'static str,
    pub units: u64,
    /// From 0 to 1: the share of requests that the history keeps of this version on this arm.
    pub share: f64,
    pub labels: Labels,
    /// By name: those of model.toml, and the usual ones where the outputs and labels allow them.
    pub metrics: BTreeMap<String, Estimate>,
    /// Whether probabilities are as high as labels are frequent; null without probabilities of the label 1.
    pub calibration: Option<Calibration>,
    /// The accuracy that is expected from calibrated scores, without the labels of these rows: an estimate. Null without probabilities of classes,
    /// and before enough rows of the version have labels.
    pub estimated_accuracy: Option<EstimatedAccuracy>,
}

/// How complete the labels of a period are.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Labels {
    /// Rows with any feedback, and rows with a label.
    pub told: u64,
    pub labelled: u64,
    /// From 0 to 1.
    pub labelled_share: f64,
    /// Rows that are younger than the time in which labels arrive: their labels may still come.
    pub waiting: u64,
    /// Of the rows that are old enough, the share that has a label; null where none is.
    pub settled_share: Option<f64>,
    /// Seconds in which labels arrive: the longest `label_delay` of model.toml, and at least the 95th percentile of those that arrived.
    pub delay_s: f64,
}

/// Probabilities of the label 1 against labels, in ten bins of equal width.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Calibration {
    /// Bins with rows.
    pub bins: Vec<Bin>,
    /// The mean of |predicted - observed| over rows (expected calibration error).
    pub error: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Bin {
    /// The mean probability of the bin's rows.
    pub predicted: f64,
    /// The share of the label 1 among them, with its 95 % interval.
    pub observed: f64,
    pub low: f64,
    pub high: f64,
    pub n: u64,
}

/// The most groups of one answer.
pub const MAX_GROUPS: usize = 5000;

/// The figures of a model. `all` also has rows from before the window: scores are calibrated on those with labels.
///
/// # Errors
/// In words, where the input to group by is not kept, or where there would be too many groups.
pub fn windows(all: &Snapshot, metrics: &Metrics, ask: &Ask) -> Result<Windows, String> {
    let snapshot = &all.since(ask.from);
    let segments = ask.by.as_deref().map(|by| Segments::new(snapshot, by).ok_or_else(|| not_kept(snapshot, by)));
    // Without any row there is nothing to say about a column.
    let segments = if snapshot.rows().next().is_none() { None } else { segments.transpose()? };
    let in_window = || snapshot.rows().filter(|row| row.ts < ask.to);
    let mut sizes: HashMap<String, u64> = HashMap::new();
    if let Some(segments) = &segments {
        for row in in_window() {
            *sizes.entry(segments.of(row, snapshot)).or_default() += 1;
        }
    }
    let mut by_size: Vec<(u64, String)> = sizes.into_iter().map(|(segment, rows)| (rows, segment)).collect();
    by_size.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let own: BTreeSet<String> = by_size.iter().take(MAX_SEGMENTS).map(|(_, segment)| segment.clone()).collect();
    let mut groups: BTreeMap<(Version, &str, i64, Option<String>), Vec<&Row>> = BTreeMap::new();
    for row in in_window() {
        let arm = snapshot.arm(row);
        let period = ask.step.map_or(ask.from, |step| row.ts.div_euclid(step) * step);
        let segment = segments.as_ref().map(|segments| {
            let segment = segments.of(row, snapshot);
            if own.contains(&segment) { segment } else { OTHER.to_owned() }
        });
        groups.entry((arm.version, &*arm.name, period, segment)).or_default().push(row);
        if groups.len() > MAX_GROUPS {
            return Err(format!("more than {MAX_GROUPS} groups: ask for a shorter window or a longer step"));
        }
    }
    let mut estimates = Estimates::new(all, metrics, ask.to);
    let group = |((version, arm, period, segment), rows): ((Version, &str, i64, Option<String>), Vec<&Row>)| {
        let end = ask.step.map_or(ask.to, |step| (period + step).min(ask.to));
        let kept = rows.first().map_or(1.0, |row| snapshot.arm(row).share());
        Group {
            version,
            arm: arm.to_owned(),
            segment,
            from: time(period),
            to: time(end),
            rows: rows.len() as u64,
            unit: if rows.iter().any(|row| row.is_key) { "key" } else { "request" },
            units: rows.iter().map(|row| row.unit).collect::<BTreeSet<u64>>().len() as u64,
            share: kept,
            labels: labels(&rows, metrics, ask.to),
            metrics: figures(snapshot, metrics, &rows, kept, ask.to),
            calibration: calibration(snapshot, metrics, &rows),
            estimated_accuracy: estimates.of(version, (period, end), &rows),
        }
    };
    Ok(Windows {
        from: time(ask.from),
        to: time(ask.to),
        by: ask.by.clone(),
        smallest_segment: by_size.pop().map(|(rows, segment)| Smallest { segment, rows }),
        groups: groups.into_iter().map(group).collect(),
    })
}

/// Columns that a message lists.
const LISTED: usize = 20;

fn not_kept(snapshot: &Snapshot, by: &str) -> String {
    let known: BTreeSet<&str> =
        snapshot.arms().iter().flat_map(|arm| arm.layout.cells.iter().map(|name| &**name)).collect();
    let by: String = by.chars().take(80).collect();
    if known.is_empty() {
        return format!(
            "rows cannot be grouped by {by:?}: no input of this model has a fixed number of elements in a row"
        );
    }
    let listed: Vec<&str> = known.iter().copied().take(LISTED).collect();
    let more = known.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "rows cannot be grouped by {by:?}; the inputs that are kept are {}{more}. At most {} columns of inputs are kept of a row, in the order of \
         the signature, and {} of an input with more than {} elements; none of optional inputs, and none that the log drops, hashes or masks",
        listed.join(", "),
        Layout::MAX_CELLS,
        Layout::MAX_OF_WIDE,
        Layout::WIDE
    )
}

pub(super) fn time(us: i64) -> String {
    Timestamp::from_microsecond(us).unwrap_or_default().to_string()
}

fn labels(rows: &[&Row], metrics: &Metrics, now: i64) -> Labels {
    let label = |row: &Row| row.outcome.as_ref().and_then(|outcome| outcome.label()).map(|_: &Label| ());
    let mut delays: Vec<i64> = rows
        .iter()
        .filter(|row| label(row).is_some())
        .filter_map(|row| Some(row.outcome.as_ref()?.first_ts.saturating_sub(row.ts).max(0)))
        .collect();
    delays.sort_unstable();
    let usual = delays.get((delays.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
    let longest = metrics.values().map(Metric::delay_us).max().unwrap_or(0);
    let delay = usual.max(longest);
    let settled = |row: &&&Row| now.saturating_sub(row.ts) >= delay;
    let of_settled = rows.iter().filter(settled).count() as u64;
    let labelled_settled = rows.iter().filter(settled).filter(|row| label(row).is_some()).count() as u64;
    Labels {
        told: rows.iter().filter(|row| row.outcome.is_some()).count() as u64,
        labelled: delays.len() as u64,
        labelled_share: delays.len() as f64 / rows.len().max(1) as f64,
        waiting: rows.len() as u64 - of_settled,
        settled_share: (of_settled > 0).then(|| labelled_settled as f64 / of_settled as f64),
        delay_s: delay as f64 / 1e6,
    }
}

/// The usual metrics of a model, for names that its model.toml does not use.
pub(super) fn usual(snapshot: &Snapshot, metrics: &Metrics) -> Metrics {
    let any = |has: fn(&Layout) -> bool| snapshot.arms().iter().any(|arm| has(&arm.layout));
    let mut kinds = vec![Kind::Accuracy];
    if any(|layout| layout.scores().is_some()) {
        kinds.extend([Kind::Auc, Kind::LogLoss, Kind::Brier]);
    }
    if any(|layout| layout.number().is_some()) {
        kinds.extend([Kind::Mae, Kind::Rmse, Kind::Bias]);
    }
    let of_labels = kinds.into_iter().map(|kind| (kind.as_str().to_owned(), Metric::of(kind)));
    let values = snapshot
        .value_names()
        .iter()
        .map(|name| (format!("values.{name}"), Metric { value: Some(name.to_string()), ..Metric::of(Kind::Mean) }));
    of_labels.chain(values).filter(|(name, _)| !metrics.contains_key(name)).collect()
}

fn figures(snapshot: &Snapshot, metrics: &Metrics, rows: &[&Row], share: f64, now: i64) -> BTreeMap<String, Estimate> {
    let usual = usual(snapshot, metrics);
    let figure = |(name, metric): (&String, &Metric)| {
        let measured = Measured::new(metric, snapshot);
        let old_enough = |row: &&Row| now.saturating_sub(row.ts) >= metric.delay_us();
        (name.clone(), estimate(&measured, rows.iter().copied().filter(old_enough), share))
    };
    // Of a class, the errors of numbers say nothing, and the other way round.
    let says_something = |(_, found): &(String, Estimate)| found.n > 0;
    metrics.iter().map(figure).chain(usual.iter().map(figure).filter(says_something)).collect()
}

fn calibration(snapshot: &Snapshot, metrics: &Metrics, rows: &[&Row]) -> Option<Calibration> {
    let of_probabilities = |metric: &&Metric| matches!(metric.kind, Kind::Brier | Kind::LogLoss | Kind::Auc);
    let usual = Metric::of(Kind::Brier);
    let metric = metrics.values().filter(of_probabilities).min_by_key(|metric| metric.kind == Kind::Auc);
    let measured = Measured::new(metric.unwrap_or(&usual), snapshot);
    let mut bins: [Vec<(u64, f64, bool)>; 10] = Default::default();
    for row in rows {
        if let Some((p, one)) = measured.probability(row) {
            // A probability of exactly 1 is in the last bin.
            let at = (0..9).find(|at| p < f64::from(at + 1) / 10.0).unwrap_or(9);
            bins[usize::try_from(at).unwrap_or(9)].push((measured.unit(row), p, one));
        }
    }
    let all: usize = bins.iter().map(Vec::len).sum();
    let bin = |rows: &Vec<(u64, f64, bool)>| {
        let n = rows.len() as f64;
        let predicted = rows.iter().map(|(_, p, _)| p).sum::<f64>() / n;
        let hit = |one: bool| f64::from(u8::from(one));
        let observed = rows.iter().map(|(.., one)| hit(*one)).sum::<f64>() / n;
        let influences = rows.iter().map(|(unit, _, one)| (*unit, (hit(*one) - observed) / n));
        let (units, error) = standard_error(influences);
        let (low, high) = wilson(observed, error.unwrap_or(0.0), rows.len(), units);
        Bin { predicted, observed, low, high, n: rows.len() as u64 }
    };
    let bins: Vec<Bin> = bins.iter().filter(|rows| !rows.is_empty()).map(bin).collect();
    let error = bins.iter().map(|bin| (bin.predicted - bin.observed).abs() * bin.n as f64).sum::<f64>() / all as f64;
    (all > 0).then_some(Calibration { bins, error })
}
