//! The accuracy that is expected of rows without labels, from calibrated scores (confidence-based performance estimation).
//!
//! On rows with labels, isotonic regression learns how often the predicted class is right at each score. The mean of this calibrated probability
//! over other rows is their expected accuracy. It is right as long as a score means the same as before: when the rows change, and not when the
//! relation between inputs and labels changes.

use super::definition::{Kind, Metric, Metrics};
use super::estimate::wilson;
use super::measure::is_distribution;
use super::units::standard_error;
use crate::model::Version;
use crate::quality::{LabelResult, Row, Snapshot};
use serde::Serialize;
use std::collections::HashMap;
use std::ops::Range;
use utoipa::ToSchema;

/// An estimate of the accuracy from scores alone.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EstimatedAccuracy {
    /// The mean of the calibrated probability that the predicted class is right.
    pub value: f64,
    /// The 95 % interval of the accuracy that the labels of these rows would show, if scores mean what they meant in the rows of the calibration.
    pub low: f64,
    pub high: f64,
    pub standard_error: f64,
    /// Rows with probabilities, with and without labels.
    pub n: u64,
    pub calibration: CalibratedOn,
    /// The same estimate for the rows that have a label by now, and what the labels say; null before the second such unit.
    pub labelled: Option<Checked>,
}

/// The rows with labels that the scores were calibrated on.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CalibratedOn {
    /// `earlier`: rows of the version before the period. `halves`: too few came earlier, so each half of the units is estimated from the
    /// labels of the other half.
    pub rows_are: &'static str,
    pub rows: u64,
    pub units: u64,
}

/// An estimate held against labels.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Checked {
    pub n: u64,
    pub estimated: f64,
    /// The accuracy that the labels show.
    pub realised: f64,
    /// `realised` less `estimated`, with its 95 % interval. Without 0 in it: scores do not mean any more what they meant.
    pub difference: f64,
    pub low: f64,
    pub high: f64,
}

/// Units with labels that a calibration needs.
const MIN_UNITS: usize = 100;
/// The most rows that a calibration uses: the newest.
const MAX_ROWS: usize = 20_000;
/// The two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Estimates for the groups of one answer. A calibration is made once for each version and period.
#[derive(Debug)]
pub(super) struct Estimates {
    /// The scores of each arm.
    scores: Vec<Option<Range<usize>>>,
    /// The rows of each version that have a label and are old enough, with their times, the oldest first.
    labelled: HashMap<Version, Vec<(i64, Known)>>,
    fits: HashMap<(Version, i64, i64), Option<Fit>>,
}

/// What a version's scores mean in a period.
#[derive(Debug)]
enum Fit {
    Earlier(Calibration),
    Halves([Calibration; 2]),
}

/// How often predictions are right at each score.
#[derive(Debug)]
struct Calibration {
    /// From the lowest score on.
    blocks: Vec<Block>,
    /// The rows: the unit, the block, and 1 or 0 (right or wrong) less the share of the block. Rows of a unit stand together.
    rows: Vec<(u64, usize, f64)>,
    units: usize,
    /// The variance of a sum over rows as a multiple of that of independent rows, as rows of a unit are related.
    related: f64,
}

/// Scores with one calibrated probability.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Block {
    low: f64,
    high: f64,
    right: f64,
    n: f64,
}

/// A row of the calibration: the unit, the score, and whether the predicted class was right.
type Known = (u64, f64, bool);

impl Estimates {
    /// `now` in microseconds since 1970.
    pub(super) fn new(snapshot: &Snapshot, metrics: &Metrics, now: i64) -> Estimates {
        let scores = snapshot.arms().iter().map(|arm| arm.layout.scores()).collect();
        let mut estimates = Estimates { scores, labelled: HashMap::new(), fits: HashMap::new() };
        // Labels of younger requests may still come.
        let accuracies = metrics.values().filter(|metric| metric.kind == Kind::Accuracy);
        let until = now.saturating_sub(accuracies.map(Metric::delay_us).max().unwrap_or(0));
        for row in snapshot.rows().filter(|row| row.ts <= until) {
            if let (Some(right), Some(score)) = (right(row), estimates.score(row)) {
                let version = snapshot.arm(row).version;
                estimates.labelled.entry(version).or_default().push((row.ts, (row.unit, score, right)));
            }
        }
        estimates.labelled.values_mut().for_each(|rows| rows.sort_by_key(|(ts, _)| *ts));
        estimates
    }

    /// The estimate for rows of a version from a period. `None` without probabilities, and where too few rows have labels.
    pub(super) fn of(&mut self, version: Version, period: (i64, i64), rows: &[&Row]) -> Option<EstimatedAccuracy> {
        let scored: Vec<(&Row, f64)> = rows.iter().filter_map(|row| Some((*row, self.score(row)?))).collect();
        if scored.is_empty() {
            return None;
        }
        let (from, to) = period;
        let labelled = self.labelled.get(&version).map_or(&[][..], Vec::as_slice);
        let fit = self.fits.entry((version, from, to)).or_insert_with(|| Fit::of(labelled, from, to)).as_ref()?;
        let all: Vec<(u64, f64)> = scored.iter().map(|(row, score)| (row.unit, *score)).collect();
        let (value, error) = fit.mean(&all, true);
        let (low, high) = wilson(value, error, all.len(), all.len());
        Some(EstimatedAccuracy {
            value,
            low,
            high,
            standard_error: error,
            n: all.len() as u64,
            calibration: fit.made_of(),
            labelled: checked(fit, &scored),
        })
    }

    /// The probability that a row's outputs give to the class that they predict. `None` where they are no probabilities of classes.
    fn score(&self, row: &Row) -> Option<f64> {
        let each = row.numbers.get(self.scores.get(usize::from(row.arm))?.clone()?)?;
        if !is_distribution(each) {
            return None;
        }
        let top = each.iter().copied().fold(0.0, f64::max);
        let predicted = row.predicted.class().and_then(|class| (0..each.len()).find(|i| *i as f64 == class));
        Some(predicted.map_or(top, |class| each[class]).clamp(0.0, 1.0))
    }
}

/// Whether the predicted class of a row is right. `None` without a label that can be compared with it.
fn right(row: &Row) -> Option<bool> {
    match row.predicted.compare(row.outcome.as_ref()?.label()?)? {
        LabelResult::Class { correct } => Some(correct),
        LabelResult::Number { .. } => None,
    }
}

/// The half that a unit belongs to.
fn half(unit: u64) -> usize {
    usize::from(unit.count_ones() % 2 == 1)
}

/// The estimate for the rows with labels against their labels.
fn checked(fit: &Fit, scored: &[(&Row, f64)]) -> Option<Checked> {
    let known: Vec<(u64, f64, bool)> =
        scored.iter().filter_map(|(row, score)| Some((row.unit, *score, right(row)?))).collect();
    let n = known.len() as f64;
    let of_known: Vec<(u64, f64)> = known.iter().map(|(unit, score, _)| (*unit, *score)).collect();
    let share = |right: bool| f64::from(u8::from(right));
    let realised = known.iter().map(|(.., right)| share(*right)).sum::<f64>() / n;
    let off = |(unit, score, right): &(u64, f64, bool)| (*unit, share(*right) - fit.at(*unit, *score));
    let difference = known.iter().map(|known| off(known).1).sum::<f64>() / n;
    let spread = known.iter().map(|known| (off(known).0, (off(known).1 - difference) / n));
    let own = standard_error(spread).1?;
    let (estimated, of_calibration) = fit.mean(&of_known, false);
    let width = Z * own.hypot(of_calibration);
    Some(Checked {
        n: known.len() as u64,
        estimated,
        realised,
        difference,
        low: difference - width,
        high: difference + width,
    })
}

impl Fit {
    /// From rows with labels, the oldest first, for a period. `None` where too few units have labels.
    fn of(rows: &[(i64, Known)], from: i64, to: i64) -> Option<Fit> {
        let newest_before = |until: i64| {
            let end = rows.partition_point(|(ts, _)| *ts < until);
            rows[end.saturating_sub(MAX_ROWS)..end].iter().map(|(_, known)| *known)
        };
        if let Some(earlier) = Calibration::new(newest_before(from).collect()) {
            return Some(Fit::Earlier(earlier));
        }
        let (first, second): (Vec<Known>, Vec<Known>) = newest_before(to).partition(|(unit, ..)| half(*unit) == 0);
        Some(Fit::Halves([Calibration::new(first)?, Calibration::new(second)?]))
    }

    /// The calibration for a unit: never one that its own labels are in, where it is of the same period.
    fn for_unit(&self, unit: u64) -> &Calibration {
        match self {
            Fit::Earlier(calibration) => calibration,
            Fit::Halves(halves) => &halves[1 - half(unit)],
        }
    }

    fn at(&self, unit: u64, score: f64) -> f64 {
        let calibration = self.for_unit(unit);
        calibration.blocks[calibration.block(score)].right
    }

    /// The mean probability of rows, and its standard error: from the calibration, and with `outcomes` also from the chance that is in the
    /// outcomes of these rows.
    fn mean(&self, rows: &[(u64, f64)], outcomes: bool) -> (f64, f64) {
        let n = rows.len() as f64;
        let parts: Vec<&Calibration> = match self {
            Fit::Earlier(calibration) => vec![calibration],
            Fit::Halves(halves) => halves.iter().collect(),
        };
        let (mut sum, mut variance) = (0.0, 0.0);
        for part in parts {
            let mut weights = vec![0.0; part.blocks.len()];
            for (_, score) in rows.iter().filter(|(unit, _)| std::ptr::eq(self.for_unit(*unit), part)) {
                weights[part.block(*score)] += 1.0 / n;
            }
            let of_blocks = || weights.iter().zip(&part.blocks);
            sum += of_blocks().map(|(weight, block)| weight * block.right).sum::<f64>();
            variance += part.variance(&weights);
            if outcomes {
                let chance = of_blocks().map(|(weight, block)| weight / n * block.right * (1.0 - block.right));
                variance += part.related * chance.sum::<f64>();
            }
        }
        (sum.clamp(0.0, 1.0), variance.sqrt())
    }

    fn made_of(&self) -> CalibratedOn {
        let (rows_are, parts) = match self {
            Fit::Earlier(calibration) => ("earlier", std::slice::from_ref(calibration)),
            Fit::Halves(halves) => ("halves", &halves[..]),
        };
        CalibratedOn {
            rows_are,
            rows: parts.iter().map(|part| part.rows.len() as u64).sum(),
            units: parts.iter().map(|part| part.units as u64).sum(),
        }
    }
}

impl Calibration {
    /// `None` for too few units.
    fn new(mut known: Vec<Known>) -> Option<Calibration> {
        known.sort_by(|a, b| a.1.total_cmp(&b.1));
        let blocks = isotonic(&known);
        let mut calibration = Calibration { blocks, rows: Vec::with_capacity(known.len()), units: 0, related: 1.0 };
        for (unit, score, right) in known {
            let block = calibration.block(score);
            let rest = f64::from(u8::from(right)) - calibration.blocks[block].right;
            calibration.rows.push((unit, block, rest));
        }
        calibration.rows.sort_by_key(|(unit, ..)| *unit);
        calibration.units = calibration.rows.chunk_by(|a, b| a.0 == b.0).count();
        if calibration.units < MIN_UNITS {
            return None;
        }
        let alone: f64 = calibration.rows.iter().map(|(.., rest)| rest * rest).sum();
        let together = calibration.of_units(|_| 1.0);
        if alone > 0.0 {
            calibration.related = (together / alone).max(1.0);
        }
        Some(calibration)
    }

    /// The block of a score. Scores between two blocks belong to the nearer one.
    fn block(&self, score: f64) -> usize {
        let above = self.blocks.partition_point(|block| block.high < score);
        if above == 0 {
            return 0;
        }
        match self.blocks.get(above) {
            Some(block) if block.low <= score || block.low - score < score - self.blocks[above - 1].high => above,
            _ => above - 1,
        }
    }

    /// The sum over units of (the weighted sum of a unit's rows)².
    fn of_units(&self, weight: impl Fn(usize) -> f64) -> f64 {
        let of_unit =
            |rows: &[(u64, usize, f64)]| rows.iter().map(|(_, block, rest)| weight(*block) * rest).sum::<f64>();
        self.rows.chunk_by(|a, b| a.0 == b.0).map(|rows| of_unit(rows).powi(2)).sum()
    }

    /// The variance of the weighted mean of the blocks' probabilities.
    fn variance(&self, weights: &[f64]) -> f64 {
        let units = self.units as f64;
        self.of_units(|block| weights[block] / self.blocks[block].n) * units / (units - 1.0)
    }
}

/// Isotonic regression by pooling adjacent violators. `known` are sorted by their scores; equal scores are in one block.
fn isotonic(known: &[Known]) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for equal in known.chunk_by(|a, b| a.1 == b.1) {
        let n = equal.len() as f64;
        let hits = equal.iter().filter(|(.., right)| *right).count() as f64;
        let (low, high) = (equal[0].1, equal[0].1);
        let mut new = Block { low, high, right: hits / n, n };
        while let Some(last) = blocks.last().filter(|last| last.right >= new.right) {
            let n = last.n + new.n;
            new = Block { low: last.low, high: new.high, right: (last.right * last.n + new.right * new.n) / n, n };
            blocks.pop();
        }
        blocks.push(new);
    }
    blocks
}
