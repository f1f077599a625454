//! What a metric measures of one row.

use super::definition::{Kind, Metric, UnitOf};
use crate::model::Label;
use crate::quality::{LabelResult, Layout, Row, Snapshot};
use std::ops::Range;

/// A metric applied to the rows of a snapshot.
#[derive(Debug)]
pub(super) struct Measured<'m> {
    pub(super) metric: &'m Metric,
    value: Option<u16>,
    /// The output of each arm that it is about.
    places: Vec<Option<Place>>,
}

/// Where the output of a row is.
#[derive(Debug, Clone)]
enum Place {
    /// One number: a prediction, or the probability (or score) of the label 1.
    One(usize),
    /// A probability for each class.
    Each(Range<usize>),
}

/// What one row says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Measure {
    Number(f64),
    /// For AUC: the score, and whether the label is 1.
    Scored(f64, bool),
    /// No outcome yet, or it was retracted.
    Nothing,
    /// The outcome cannot be compared with what the metric is about.
    Unfit,
}

/// Probabilities are taken to be at least this far from 0, so that the log loss is finite (as scikit-learn does for doubles).
const CLIP: f64 = 1e-15;
/// Rounding of probabilities.
const ROUNDING: f64 = 1e-4;

impl<'m> Measured<'m> {
    pub(super) fn new(metric: &'m Metric, snapshot: &Snapshot) -> Measured<'m> {
        let value = metric.value.as_ref().and_then(|name| snapshot.value_number(name));
        let places = snapshot.arms().iter().map(|arm| place(metric, &arm.layout)).collect();
        Measured { metric, value, places }
    }

    /// The unit of a row.
    pub(super) fn unit(&self, row: &Row) -> u64 {
        match self.metric.unit {
            UnitOf::Key => row.unit,
            UnitOf::Request => row.request(),
        }
    }

    pub(super) fn of(&self, row: &Row) -> Measure {
        let metric = self.metric;
        if metric.kind.needs_value() {
            let value = self.value.and_then(|number| row.outcome.as_ref()?.value(number)).or(metric.absent);
            return match value {
                None => Measure::Nothing,
                Some(value) if metric.kind == Kind::Proportion && !(0.0..=1.0).contains(&value) => Measure::Unfit,
                Some(value) => Measure::Number(value),
            };
        }
        let Some(label) = row.outcome.as_ref().and_then(|outcome| outcome.label()) else { return Measure::Nothing };
        let place = self.places.get(usize::from(row.arm)).and_then(Option::as_ref);
        let measured = match metric.kind {
            Kind::Accuracy => match row.predicted.compare(label) {
                Some(LabelResult::Class { correct }) => Some(Measure::Number(f64::from(u8::from(correct)))),
                _ => None,
            },
            Kind::Auc => place.and_then(|place| auc(place, row, label)),
            Kind::LogLoss => place.and_then(|place| log_loss(place, row, label)),
            Kind::Brier => place.and_then(|place| brier(place, row, label)),
            Kind::Mae => place.and_then(|place| error(place, row, label)).map(f64::abs).map(Measure::Number),
            Kind::Rmse => place.and_then(|place| error(place, row, label)).map(|e| Measure::Number(e * e)),
            Kind::Bias => place.and_then(|place| error(place, row, label)).map(Measure::Number),
            Kind::Proportion | Kind::Mean | Kind::Sum => None,
        };
        let finite =
            |measure: &Measure| !matches!(measure, Measure::Number(x) | Measure::Scored(x, _) if !x.is_finite());
        measured.filter(finite).unwrap_or(Measure::Unfit)
    }

    /// The probability of the label 1 and whether the label is 1, where the metric's output is one.
    pub(super) fn probability(&self, row: &Row) -> Option<(f64, bool)> {
        let label = row.outcome.as_ref()?.label()?;
        let place = self.places.get(usize::from(row.arm))?.as_ref()?;
        Some((one_probability(place, row)?, is_one(label)?))
    }
}

/// Where the output is that a metric is about.
fn place(metric: &Metric, layout: &Layout) -> Option<Place> {
    if !metric.kind.takes_output() {
        return None;
    }
    if let Some((name, index)) = &metric.output {
        let (_, place) = layout.outputs.iter().find(|(known, _)| **known == **name)?;
        return (*index < place.len()).then(|| Place::One(place.start + index));
    }
    match metric.kind {
        Kind::Mae | Kind::Rmse | Kind::Bias => layout.number().map(Place::One),
        _ => match layout.scores() {
            // Of two scores, the second is that of the label 1.
            Some(scores) if scores.len() == 2 => Some(Place::One(scores.start + 1)),
            Some(scores) if metric.kind != Kind::Auc => Some(Place::Each(scores)),
            _ => None,
        },
    }
}

/// Whether a label is 1 or 0. `None` for any other.
fn is_one(label: &Label) -> Option<bool> {
    match label {
        Label::Number(n) if *n == 1.0 => Some(true),
        Label::Number(n) if *n == 0.0 => Some(false),
        Label::Text(text) => match text.trim() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        },
        Label::Number(_) => None,
    }
}

fn number_of(label: &Label) -> Option<f64> {
    match label {
        Label::Number(n) => Some(*n),
        Label::Text(text) => text.trim().parse().ok(),
    }
}

fn auc(place: &Place, row: &Row, label: &Label) -> Option<Measure> {
    let Place::One(at) = place else { return None };
    Some(Measure::Scored(*row.numbers.get(*at)?, is_one(label)?))
}

/// A probability of the label 1.
fn one_probability(place: &Place, row: &Row) -> Option<f64> {
    let Place::One(at) = place else { return None };
    let p = *row.numbers.get(*at)?;
    (-ROUNDING..=1.0 + ROUNDING).contains(&p).then(|| p.clamp(0.0, 1.0))
}

/// The probabilities of all classes, and the class of the label.
fn probabilities<'r>(range: &Range<usize>, row: &'r Row, label: &Label) -> Option<(&'r [f64], usize)> {
    let each = row.numbers.get(range.clone())?;
    let class = number_of(label)?;
    let class = (0..each.len()).find(|i| *i as f64 == class)?;
    is_distribution(each).then_some((each, class))
}

/// Whether numbers are the probabilities of all classes.
pub(super) fn is_distribution(each: &[f64]) -> bool {
    each.iter().all(|p| (-ROUNDING..=1.0 + ROUNDING).contains(p)) && (each.iter().sum::<f64>() - 1.0).abs() < 0.01
}

fn log_loss(place: &Place, row: &Row, label: &Label) -> Option<Measure> {
    let p = match place {
        Place::One(_) => {
            let p = one_probability(place, row)?;
            if is_one(label)? { p } else { 1.0 - p }
        }
        Place::Each(range) => {
            let (each, class) = probabilities(range, row, label)?;
            each[class]
        }
    };
    Some(Measure::Number(-p.clamp(CLIP, 1.0 - CLIP).ln()))
}

fn brier(place: &Place, row: &Row, label: &Label) -> Option<Measure> {
    let hit = |is: bool| f64::from(u8::from(is));
    Some(Measure::Number(match place {
        Place::One(_) => (one_probability(place, row)? - hit(is_one(label)?)).powi(2),
        Place::Each(range) => {
            let (each, class) = probabilities(range, row, label)?;
            each.iter().enumerate().map(|(i, p)| (p - hit(i == class)).powi(2)).sum()
        }
    }))
}

/// The prediction minus the label.
fn error(place: &Place, row: &Row, label: &Label) -> Option<f64> {
    let Place::One(at) = place else { return None };
    Some(row.numbers.get(*at)? - number_of(label)?)
}
