//! A figure of a group of rows, with its 95 % interval.

use super::auc::{Scored, auc};
use super::definition::Kind;
use super::measure::{Measure, Measured};
use super::units::{ByUnit, standard_error};
use crate::quality::Row;
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};
use utoipa::ToSchema;

/// A figure with its interval. Rows of one unit are taken for related.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Estimate {
    pub kind: &'static str,
    /// Null before the first row that counts, and for `auc` before both labels have come.
    pub value: Option<f64>,
    /// The 95 % interval; null for fewer than two units.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub standard_error: Option<f64>,
    /// Rows that count.
    pub n: u64,
    /// Sticky keys, or requests, that these rows belong to.
    pub units: u64,
    /// Rows whose outcome cannot be compared with what the metric is about.
    pub unfit: u64,
}

/// The two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The figure of a metric over rows. `share`: the share of requests that is kept, for totals.
pub(super) fn estimate<'r>(measured: &Measured, rows: impl Iterator<Item = &'r Row>, share: f64) -> Estimate {
    let kind = measured.metric.kind;
    let mut not_comparable = 0;
    let mut numbers: Vec<(u64, f64)> = Vec::new();
    let mut scored: Vec<Scored> = Vec::new();
    // A unit without any value has a total of zero.
    let mut totals: ByUnit<f64> = ByUnit::default();
    for row in rows {
        let unit = measured.unit(row);
        match measured.of(row) {
            Measure::Number(x) => numbers.push((unit, x)),
            Measure::Scored(score, one) => scored.push((unit, score, one)),
            Measure::Unfit => not_comparable += 1,
            Measure::Nothing => {}
        }
        if kind == Kind::Sum {
            totals.entry(unit).or_default();
        }
    }
    let mut found = Estimate {
        kind: kind.as_str(),
        value: None,
        low: None,
        high: None,
        standard_error: None,
        n: (numbers.len() + scored.len()) as u64,
        units: 0,
        unfit: not_comparable,
    };
    if kind == Kind::Auc {
        let n = scored.len();
        let Some((area, influences)) = auc(&mut scored) else { return found };
        found.value = Some(area);
        found.spread(n, influences.into_iter(), |value, error, t, _| logit_interval(value, error, t));
        return found;
    }
    if kind == Kind::Sum {
        for (unit, x) in &numbers {
            *totals.entry(*unit).or_default() += x / share;
        }
        numbers = totals.into_iter().collect();
    }
    let n = numbers.len();
    if n == 0 {
        return found;
    }
    let mean = numbers.iter().map(|(_, x)| x).sum::<f64>() / n as f64;
    found.value = Some(mean);
    let influences = numbers.iter().map(|(unit, x)| (*unit, (x - mean) / n as f64));
    match kind {
        Kind::Accuracy | Kind::Proportion => {
            found.spread(n, influences, |p, error, _, units| wilson(p, error, n, units));
        }
        Kind::Rmse => {
            found.spread(n, influences, |mean, error, t, _| {
                ((mean - t * error).max(0.0).sqrt(), (mean + t * error).sqrt())
            });
            found.value = Some(mean.sqrt());
            // The delta method for a square root.
            found.standard_error = found.standard_error.filter(|_| mean > 0.0).map(|error| error / (2.0 * mean.sqrt()));
        }
        _ => found.spread(n, influences, |mean, error, t, _| (mean - t * error, mean + t * error)),
    }
    found
}

impl Estimate {
    /// Sets the units, the standard error and the interval.
    fn spread(
        &mut self,
        n: usize,
        influences: impl Iterator<Item = (u64, f64)>,
        interval: impl Fn(f64, f64, f64, usize) -> (f64, f64),
    ) {
        let (units, error) = standard_error(influences);
        debug_assert!(units <= n);
        self.units = units as u64;
        self.standard_error = error;
        if let (Some(value), Some(error)) = (self.value, error) {
            let (low, high) = interval(value, error, t_quantile(units), units);
            (self.low, self.high) = (Some(low), Some(high));
        }
    }
}

/// The 97.5 % quantile of Student's distribution for this many units.
fn t_quantile(units: usize) -> f64 {
    if units > 1000 {
        return Z;
    }
    StudentsT::new(0.0, 1.0, (units.max(2) - 1) as f64).map_or(Z, |t| t.inverse_cdf(0.975))
}

/// Wilson's interval for a share of `n` rows. Where rows of one unit are related, with the number of independent rows that would have this
/// standard error; where all rows are equal, with the number of units.
pub(super) fn wilson(p: f64, error: f64, n: usize, units: usize) -> (f64, f64) {
    let spread = p * (1.0 - p);
    let n = if error > 0.0 { (spread / (error * error)).clamp(1.0, n as f64) } else { units as f64 };
    let z2 = Z * Z / n;
    let half = Z * (spread / n + z2 / (4.0 * n)).sqrt();
    // Rounding may leave the value itself outside.
    let (low, high) = ((p + z2 / 2.0 - half) / (1.0 + z2), (p + z2 / 2.0 + half) / (1.0 + z2));
    (low.clamp(0.0, p), high.clamp(p, 1.0))
}

/// An interval for an area from 0 to 1, on the scale of its logit.
fn logit_interval(area: f64, error: f64, t: f64) -> (f64, f64) {
    if area <= 0.0 || area >= 1.0 {
        return ((area - t * error).clamp(0.0, 1.0), (area + t * error).clamp(0.0, 1.0));
    }
    let (logit, half) = ((area / (1.0 - area)).ln(), t * error / (area * (1.0 - area)));
    let back = |x: f64| 1.0 / (1.0 + (-x).exp());
    (back(logit - half), back(logit + half))
}
