//! Compares the arms of a split, with intervals that hold at every look.

use super::definition::{Kind, Metric, Metrics};
use super::sequence::Sequence;
use super::sides::{Cuped, Difference, Sides, measure, on_two_sides, oriented};
use super::windows::{time, usual};
use crate::model::Version;
use crate::quality::{Row, Snapshot};
use crate::route::SampleRatio;
use serde::Serialize;
use std::collections::HashSet;
use utoipa::ToSchema;

/// What is compared. Times are in microseconds since 1970.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The arms of the split with a weight, in the document's order.
    pub arms: Vec<SetupArm>,
    /// When the split began.
    pub began: i64,
    pub now: i64,
    /// The probability of any error in all comparisons together.
    pub alpha: f64,
}

#[derive(Debug, Clone)]
pub struct SetupArm {
    pub name: String,
    pub version: Version,
    pub weight: f64,
}

/// The comparison of the arms of a split.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Experiment {
    /// `key`: each sticky key counts once; `request`: each request.
    pub unit: &'static str,
    pub began: String,
    pub until: String,
    /// The probability that any of the intervals ever misses the true difference.
    pub alpha: f64,
    /// Comparisons that share it, so that each interval holds with a probability of 1 - alpha / comparisons.
    pub comparisons: usize,
    /// The arm that the others are compared with: the one named `control`, else the first.
    pub control: String,
    pub arms: Vec<ArmUnits>,
    /// Whether the arms got as many units as their weights ask for.
    pub sample_ratio: Ratio,
    /// Units with requests on two arms. They do not count.
    pub units_on_two_arms: u64,
    pub metrics: Vec<MetricResult>,
    /// What was found, in a sentence for each comparison.
    pub summary: Vec<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ArmUnits {
    pub arm: String,
    #[schema(value_type = String)]
    pub version: Version,
    pub weight: f64,
    pub units: u64,
    pub rows: u64,
    /// From 0 to 1: the share of requests that the history keeps of this arm.
    pub share: f64,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Ratio {
    pub chi_squared: f64,
    pub p_value: f64,
    /// `ok`, `mismatch` or `too_few`.
    pub verdict: &'static str,
}

/// One metric on all arms.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MetricResult {
    pub metric: String,
    pub kind: &'static str,
    pub better: &'static str,
    /// Only requests that are at least this old count.
    pub label_delay_s: f64,
    pub arms: Vec<ArmResult>,
    /// Each other arm with the control.
    pub comparisons: Vec<Comparison>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ArmResult {
    pub arm: String,
    /// Units with an outcome, and their rows.
    pub units: u64,
    pub rows: u64,
    /// The mean over units of the mean of each; null without any.
    pub mean: Option<f64>,
    pub standard_error: Option<f64>,
}

/// The difference of one arm to the control.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Comparison {
    pub arm: String,
    /// The arm's mean minus that of the control, with CUPED where it is used. Null without outcomes on both.
    pub difference: Option<f64>,
    /// The interval, which holds at every look. Null while there are too few units.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// The same relative to the control's mean; null where that may be zero.
    pub relative: Option<f64>,
    pub relative_low: Option<f64>,
    pub relative_high: Option<f64>,
    /// `better`, `worse`, `undecided` or `too_few`.
    pub verdict: &'static str,
    pub words: String,
    /// Null where units have no values from before.
    pub cuped: Option<Cuped>,
}

/// Compares the arms of a split.
///
/// # Errors
/// In words, where there are fewer than two arms.
pub fn experiment(snapshot: &Snapshot, metrics: &Metrics, setup: &Setup) -> Result<Experiment, String> {
    let names = &setup.arms;
    if names.len() < 2 {
        return Err("an experiment needs a split with at least two arms that have a weight".to_owned());
    }
    let place = |arm: &crate::quality::history::ArmOf| {
        names.iter().position(|known| known.name == *arm.name && known.version == arm.version)
    };
    let places: Vec<Option<usize>> = snapshot.arms().iter().map(place).collect();
    let side = |row: &Row| places.get(usize::from(row.arm)).copied().flatten();
    let after = || snapshot.rows().filter(|row| row.ts >= setup.began);
    let excluded = on_two_sides(after(), side);
    let control = names.iter().position(|arm| arm.name == "control").unwrap_or(0);
    let halvings = |at: usize| {
        let of_arm = snapshot.arms().iter().zip(&places).filter(|(_, place)| **place == Some(at));
        of_arm.map(|(arm, _)| arm.halvings).max().unwrap_or(0)
    };
    let all_halvings: Vec<u32> = (0..names.len()).map(halvings).collect();
    // Arms are compared over the same sample of requests.
    let most = all_halvings.iter().copied().max().unwrap_or(0);
    let units_of = |at: usize, halvings: u32| {
        let rows = after().filter(|row| side(row) == Some(at) && row.is_within(halvings));
        rows.map(|row| row.unit).collect::<HashSet<u64>>().len() as u64
    };
    let counts: Vec<u64> = (0..names.len()).map(|at| units_of(at, most)).collect();
    let weights: Vec<f64> = names.iter().map(|arm| arm.weight).collect();
    let ratio = SampleRatio::of(&weights, &counts);
    let usual = if metrics.is_empty() { usual(snapshot, metrics) } else { Metrics::new() };
    let chosen = || metrics.iter().chain(&usual).filter(|(_, metric)| metric.kind != Kind::Bias);
    let comparisons = chosen().count() * (names.len() - 1);
    let sequence = Sequence::new(setup.alpha / comparisons.max(1) as f64);
    let mut results = Vec::new();
    for (name, metric) in chosen() {
        let sides = measure(snapshot, metric, names.len(), (setup.began, setup.now), &excluded, side);
        results.push(result(name, metric, &sides, names, control, sequence));
    }
    let arms = names.iter().enumerate().map(|(at, arm)| ArmUnits {
        arm: arm.name.clone(),
        version: arm.version,
        weight: arm.weight,
        units: units_of(at, all_halvings[at]),
        rows: after().filter(|row| side(row) == Some(at)).count() as u64,
        share: (-f64::from(all_halvings[at])).exp2(),
    });
    let mut summary: Vec<String> =
        results.iter().flat_map(|result| result.comparisons.iter().map(|c| c.words.clone())).collect();
    if ratio.verdict.as_str() == "mismatch" {
        let words = "The arms did not get the shares that their weights ask for: the comparison is not to be trusted.";
        summary.insert(0, words.to_owned());
    }
    Ok(Experiment {
        unit: if after().any(|row| row.is_key) { "key" } else { "request" },
        began: time(setup.began),
        until: time(setup.now),
        alpha: setup.alpha,
        comparisons,
        control: names[control].name.clone(),
        arms: arms.collect(),
        sample_ratio: Ratio { chi_squared: ratio.chi_squared, p_value: ratio.p_value, verdict: ratio.verdict.as_str() },
        units_on_two_arms: excluded.len() as u64,
        metrics: results,
        summary,
    })
}

fn result(
    name: &str,
    metric: &Metric,
    sides: &Sides,
    names: &[SetupArm],
    control: usize,
    sequence: Sequence,
) -> MetricResult {
    let arms = names.iter().zip(&sides.sides).map(|(arm, side)| ArmResult {
        arm: arm.name.clone(),
        units: side.units,
        rows: side.rows,
        mean: side.mean,
        standard_error: side.standard_error,
    });
    let others = (0..names.len()).filter(|at| *at != control);
    let comparisons = others.map(|at| comparison(name, metric, sides, names, (at, control), sequence)).collect();
    MetricResult {
        metric: name.to_owned(),
        kind: metric.kind.as_str(),
        better: metric.better.as_str(),
        label_delay_s: metric.label_delay.as_secs_f64(),
        arms: arms.collect(),
        comparisons,
    }
}

fn comparison(
    name: &str,
    metric: &Metric,
    sides: &Sides,
    names: &[SetupArm],
    (at, control): (usize, usize),
    sequence: Sequence,
) -> Comparison {
    let found = sides.difference(at, control, sequence);
    let relative = sides.relative(at, control, sequence);
    let (arm, with) = (&names[at].name, &names[control].name);
    let verdict = found.map_or("too_few", |found| verdict(metric, found));
    let words = match found {
        None => {
            let (has, needs) = (sides.units(at).0.min(sides.units(control).0), sides.needs);
            format!(
                "{name}: too few units with an outcome to compare {arm} with {with} ({has} of {needs} on the smaller arm)."
            )
        }
        Some(Difference { value, low, high }) => {
            match verdict {
                "better" | "worse" => {
                    // The verdict is beyond doubt, so both ends have one sign.
                    let (direction, least, most) =
                        if value > 0.0 { ("higher", low, high) } else { ("lower", -high, -low) };
                    format!(
                        "{name} of {arm} is {direction} than that of {with} by {} (between {} and {}): {arm} is {verdict}.",
                        show(value.abs()),
                        show(least),
                        show(most)
                    )
                }
                _ => format!(
                    "{name}: no difference of {arm} to {with} is shown; {arm} less {with} is between {} and {}.",
                    show(low),
                    show(high)
                ),
            }
        }
    };
    let plain = sides.adjusted[at].mean.zip(sides.adjusted[control].mean).map(|(a, b)| a - b);
    Comparison {
        arm: arm.clone(),
        difference: plain,
        low: found.map(|found| found.low),
        high: found.map(|found| found.high),
        relative: relative.map(|found| found.value),
        relative_low: relative.map(|found| found.low),
        relative_high: relative.map(|found| found.high),
        verdict,
        words,
        cuped: sides.cuped,
    }
}

/// Whether a difference is shown.
fn verdict(metric: &Metric, found: Difference) -> &'static str {
    let (low, high) = oriented(metric, found);
    if low > 0.0 {
        "better"
    } else if high < 0.0 {
        "worse"
    } else {
        "undecided"
    }
}

/// A number with four significant digits.
#[must_use]
pub fn show(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return x.to_string();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number from 0 to 12")]
    let digits = (3.0 - x.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{x:.digits$}")
}
