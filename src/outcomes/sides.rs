//! The sides of a comparison: what each measures, and their difference.

use super::auc::auc;
use super::definition::{Kind, Metric};
use super::measure::{Measure, Measured};
use super::sequence::Sequence;
use super::units::{ByUnit, Units, standard_error};
use crate::quality::{Row, Snapshot};
use serde::Serialize;
use utoipa::ToSchema;

/// How much the values of the same units from before the split explain (CUPED).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Cuped {
    /// Units with values from before.
    pub units: u64,
    /// The share of the variance that they explain.
    pub variance_explained: f64,
}

/// One side of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Side {
    pub units: u64,
    pub rows: u64,
    pub mean: Option<f64>,
    pub standard_error: Option<f64>,
}

/// The difference of two sides and its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Units that each side needs before an interval is given: for shares, which the interval treats as if four more had been seen, and for
/// other numbers, which may be far from normal.
const MIN_UNITS_SHARE: u64 = 50;
const MIN_UNITS: u64 = 200;
/// Units with values from before that CUPED needs, and their least share of all.
const MIN_CUPED: usize = 200;
const MIN_CUPED_SHARE: f64 = 0.1;

/// What is known of one unit.
#[derive(Debug, Clone, Copy, Default)]
struct UnitValues {
    side: usize,
    sum: f64,
    rows: u32,
    before: f64,
    rows_before: u32,
}

/// One metric on several sides.
#[derive(Debug, Clone)]
pub struct Sides {
    pub sides: Vec<Side>,
    pub cuped: Option<Cuped>,
    /// How far the mean of each side is moved by CUPED.
    pub(super) adjusted: Vec<Side>,
    pub(super) needs: u64,
}

/// Measures a metric on several sides. `side` gives the side of a row at or after `began`; rows before it are used for CUPED. Units in
/// `excluded` do not count.
#[must_use]
pub fn measure(
    snapshot: &Snapshot,
    metric: &Metric,
    sides: usize,
    (began, now): (i64, i64),
    excluded: &Units,
    side: impl Fn(&Row) -> Option<usize>,
) -> Sides {
    let measured = Measured::new(metric, snapshot);
    let until = now.saturating_sub(metric.delay_us());
    let old_enough = snapshot.rows().filter(|row| row.ts <= until && !excluded.contains(&row.unit));
    let needs = if metric.kind.is_share() { MIN_UNITS_SHARE } else { MIN_UNITS };
    if metric.kind == Kind::Auc {
        let mut scored = vec![Vec::new(); sides];
        for row in old_enough.filter(|row| row.ts >= began) {
            if let (Some(at), Measure::Scored(score, one)) = (side(row), measured.of(row)) {
                scored[at].push((measured.unit(row), score, one));
            }
        }
        let of_side = |mut rows: Vec<(u64, f64, bool)>| {
            let n = rows.len() as u64;
            let Some((area, influences)) = auc(&mut rows) else { return Side { rows: n, ..Side::default() } };
            let (units, standard_error) = standard_error(influences.into_iter());
            Side { units: units as u64, rows: n, mean: Some(area), standard_error }
        };
        let sides: Vec<Side> = scored.into_iter().map(of_side).collect();
        return Sides { adjusted: sides.clone(), sides, cuped: None, needs };
    }
    let mut units: ByUnit<UnitValues> = ByUnit::default();
    let mut before: ByUnit<(f64, u32)> = ByUnit::default();
    for row in old_enough {
        let unit = measured.unit(row);
        if row.ts < began {
            if let Measure::Number(x) = measured.of(row) {
                let (sum, rows) = before.entry(unit).or_default();
                (*sum, *rows) = (*sum + x, *rows + 1);
            }
            continue;
        }
        let Some(side) = side(row) else { continue };
        let measure = measured.of(row);
        let (x, counts) = match measure {
            Measure::Number(x) if metric.kind == Kind::Sum => (x / snapshot.arm(row).share(), true),
            Measure::Number(x) => (x, true),
            // A unit without any value has a total of zero.
            _ => (0.0, metric.kind == Kind::Sum),
        };
        if counts {
            let known = units.entry(unit).or_insert(UnitValues { side, ..UnitValues::default() });
            (known.sum, known.rows) = (known.sum + x, known.rows + 1);
        }
    }
    let mut values: Vec<UnitValues> = units
        .into_iter()
        .map(|(unit, mut known)| {
            if let Some((sum, rows)) = before.get(&unit) {
                (known.before, known.rows_before) = (sum / f64::from(*rows), *rows);
            }
            known.sum /= if metric.kind == Kind::Sum { 1.0 } else { f64::from(known.rows) };
            known
        })
        .collect();
    // The order of a map must not change the sums.
    values.sort_by(|a, b| a.sum.total_cmp(&b.sum));
    if let Some(quantile) = metric.winsorize {
        winsorize(&mut values, quantile);
    }
    let plain = of_sides(&values, sides, metric.kind, |unit| unit.sum);
    let cuped = fit(&values, sides);
    let adjusted = cuped.map_or_else(
        || plain.clone(),
        |(theta, mean, _)| {
            let adjust = |unit: &UnitValues| if unit.rows_before > 0 { theta * (unit.before - mean) } else { 0.0 };
            of_sides(&values, sides, metric.kind, |unit| unit.sum - adjust(unit))
        },
    );
    Sides { sides: plain, cuped: cuped.map(|(_, _, cuped)| cuped), adjusted, needs }
}

/// Moves values beyond the quantiles to them, over all sides together, so that equal sides stay equal. `values` are sorted.
fn winsorize(values: &mut [UnitValues], quantile: f64) {
    let Some(last) = values.len().checked_sub(1) else { return };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number from 0 to `last`")]
    let at = |q: f64| ((last as f64 * q).round().clamp(0.0, last as f64)) as usize;
    let (low, high) = (values[at(1.0 - quantile)].sum, values[at(quantile)].sum);
    for unit in values {
        unit.sum = unit.sum.clamp(low, high);
    }
}

fn of_sides(values: &[UnitValues], sides: usize, kind: Kind, value: impl Fn(&UnitValues) -> f64) -> Vec<Side> {
    let of = |side: usize| {
        let units = || values.iter().filter(|unit| unit.side == side);
        let n = units().count() as f64;
        let rows = units().map(|unit| u64::from(unit.rows)).sum();
        if n == 0.0 {
            return Side { rows, ..Side::default() };
        }
        let mean = units().map(&value).sum::<f64>() / n;
        let squares: f64 = units().map(|unit| (value(unit) - mean).powi(2)).sum();
        let variance = if kind.is_share() {
            // As if two more units at 0 and two at 1 had been seen: rare events that nobody has seen yet are not impossible.
            let (n, squares) = (n + 4.0, squares + 2.0 * mean.powi(2) + 2.0 * (1.0 - mean).powi(2));
            squares / n
        } else {
            squares / (n - 1.0)
        };
        let error = (n > 1.0).then(|| (variance / n).sqrt());
        let (mean, error) = if kind == Kind::Rmse {
            // The delta method for a square root.
            (mean.max(0.0).sqrt(), error.filter(|_| mean > 0.0).map(|error| error / (2.0 * mean.sqrt())))
        } else {
            (mean, error)
        };
        Side { units: units().count() as u64, rows, mean: Some(mean), standard_error: error }
    };
    (0..sides).map(of).collect()
}

/// The slope of the units' values on those from before, the mean of these, and what they explain (Deng, Xu, Kohavi and Walker, *Improving the
/// sensitivity of online controlled experiments*, WSDM 2013). The slope is that within the sides, so that a difference of the sides does not
/// move it.
fn fit(values: &[UnitValues], sides: usize) -> Option<(f64, f64, Cuped)> {
    let known: Vec<&UnitValues> = values.iter().filter(|unit| unit.rows_before > 0).collect();
    if known.len() < MIN_CUPED || (known.len() as f64) < MIN_CUPED_SHARE * values.len() as f64 {
        return None;
    }
    let (mut covariance, mut variance) = (0.0, 0.0);
    for side in 0..sides {
        let of_side = || known.iter().filter(|unit| unit.side == side);
        let n = of_side().count().max(1) as f64;
        let mean = of_side().map(|unit| unit.sum).sum::<f64>() / n;
        let mean_before = of_side().map(|unit| unit.before).sum::<f64>() / n;
        covariance += of_side().map(|unit| (unit.sum - mean) * (unit.before - mean_before)).sum::<f64>();
        variance += of_side().map(|unit| (unit.before - mean_before).powi(2)).sum::<f64>();
    }
    if variance <= 0.0 {
        return None;
    }
    let theta = covariance / variance;
    let mean = known.iter().map(|unit| unit.before).sum::<f64>() / known.len() as f64;
    let mut total = 0.0;
    for side in 0..sides {
        let of_side = || values.iter().filter(|unit| unit.side == side);
        let mean = of_side().map(|unit| unit.sum).sum::<f64>() / of_side().count().max(1) as f64;
        total += of_side().map(|unit| (unit.sum - mean).powi(2)).sum::<f64>();
    }
    let explained = if total > 0.0 { (theta * covariance / total).clamp(0.0, 1.0) } else { 0.0 };
    Some((theta, mean, Cuped { units: known.len() as u64, variance_explained: explained }))
}

impl Sides {
    /// The difference of a side to the control, with an interval that holds at every look. `None` while there are too few units, or where
    /// nothing varies.
    #[must_use]
    pub fn difference(&self, side: usize, control: usize, sequence: Sequence) -> Option<Difference> {
        let (a, b) = (self.adjusted[side], self.adjusted[control]);
        let error = a.standard_error?.hypot(b.standard_error?);
        if a.units.min(b.units) < self.needs || error == 0.0 || !error.is_finite() {
            return None;
        }
        let value = a.mean? - b.mean?;
        let half = sequence.width(effective(a.units, b.units)) * error;
        Some(Difference { value, low: value - half, high: value + half })
    }

    /// The same relative to the control's mean, by the delta method. `None` where that may be zero.
    pub(super) fn relative(&self, side: usize, control: usize, sequence: Sequence) -> Option<Difference> {
        let difference = self.difference(side, control, sequence)?;
        let (a, b) = (self.adjusted[side], self.adjusted[control]);
        let (base, error) = (b.mean?, b.standard_error?);
        let width = sequence.width(effective(a.units, b.units));
        if base.abs() <= width * error {
            return None;
        }
        let ratio = 1.0 + difference.value / base;
        let error = (a.standard_error? / base).hypot(ratio * error / base);
        let value = difference.value / base.abs();
        Some(Difference { value, low: value - width * error, high: value + width * error })
    }

    /// How many units a side has, and how many it needs before there is an interval.
    #[must_use]
    pub fn units(&self, side: usize) -> (u64, u64) {
        (self.sides[side].units, self.needs)
    }
}

fn effective(a: u64, b: u64) -> f64 {
    let (a, b) = (a as f64, b as f64);
    a * b / (a + b)
}

/// The units with rows on two sides.
#[must_use]
pub fn on_two_sides<'r>(rows: impl Iterator<Item = &'r Row>, side: impl Fn(&Row) -> Option<usize>) -> Units {
    let mut first: ByUnit<usize> = ByUnit::default();
    let mut found = Units::default();
    for row in rows {
        let Some(at) = side(row) else { continue };
        if *first.entry(row.unit).or_insert(at) != at {
            found.insert(row.unit);
        }
    }
    found
}

/// The interval of a difference, turned so that more is better.
#[must_use]
pub fn oriented(metric: &Metric, found: Difference) -> (f64, f64) {
    if metric.better.sign() > 0.0 { (found.low, found.high) } else { (-found.high, -found.low) }
}
