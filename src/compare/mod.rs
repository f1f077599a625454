//! compare: how far two answers to the same inputs are apart; pure.
//!
//! - [`compare`] holds what came against what was expected, output by output, and says how far apart they are as
//!   numbers ([`Elements`]) and in words (`Display`).
//! - Floating-point elements agree as `numpy.isclose(got, expected, rtol, atol, equal_nan=True)` has it; all others
//!   agree when they are equal.
//! - [`PairFigures`] is what many such pairs come to: running figures and the worst pairs.
//! - Golden answers, shadows and replay all ask here, so that "the same answer" means one thing.
//!
//! Uses: model, tensor.
//!
//! Invariant: nothing here knows where the answers came from.
//!
//! To add a measure: a field of [`Elements`], counted in `elements.rs`, and its words in its `Display`.

mod elements;
mod pairs;
#[cfg(test)]
mod tests;
mod words;
mod worst;

pub use pairs::{Agreement, Latency, OutputFigures, Pair, PairFigures};
pub use worst::{Side, WorstPair};

use crate::model::Answer;
use crate::tensor::{DataType, Shape, Tensor};

/// How far apart two floating-point numbers may be: `|got - expected| <= atol + rtol * |expected|`
/// (<https://numpy.org/doc/stable/reference/generated/numpy.isclose.html>).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    pub rtol: f64,
    pub atol: f64,
}

impl Default for Tolerance {
    /// numpy's.
    fn default() -> Self {
        Tolerance { rtol: 1e-5, atol: 1e-8 }
    }
}

/// Two answers held against each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The expected outputs in their order, then those nobody expected.
    pub outputs: Vec<OutputComparison>,
    pub tolerance: Tolerance,
}

/// One output of both answers.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputComparison {
    pub name: String,
    pub outcome: Outcome,
}

/// How an output compares.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Expected, and not there.
    Missing,
    /// There, and not expected.
    Extra,
    Datatype {
        expected: DataType,
        got: DataType,
    },
    Shape {
        expected: Shape,
        got: Shape,
    },
    /// Same type and shape, so element by element.
    Elements(Elements),
}

/// Two tensors of one type and shape, element by element.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Elements {
    pub count: usize,
    /// Pairs that are numbers and finite on both sides: those `largest` and `mean` are over.
    pub measured: usize,
    /// Elements that do not agree.
    pub outside: usize,
    /// The largest and the mean absolute difference of those measured; `None` where there is none, and for booleans and
    /// strings.
    pub largest: Option<f64>,
    pub mean: Option<f64>,
    /// Pairs of which one side only is NaN or infinite, or that are infinities of opposite signs.
    pub nonfinite: usize,
    /// The element furthest outside the tolerance.
    pub worst: Option<Worst>,
    /// For floating-point outputs of two and more dimensions: how often the largest along the last one is another.
    pub top1: Option<Top1>,
}

/// One element that does not agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Worst {
    /// Its place, outermost dimension first.
    pub index: Vec<usize>,
    pub expected: String,
    pub got: String,
}

/// Rows whose largest element, the predicted class in a classifier, is at another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Top1 {
    pub flipped: usize,
    pub rows: usize,
}

/// Holds `got` against `expected`. Outputs are matched by name; a name stands once on each side.
pub fn compare<E: AsRef<str>, G: AsRef<str>>(
    expected: &[(E, Tensor)],
    got: &[(G, Tensor)],
    tolerance: Tolerance,
) -> Comparison {
    let expected_ones = expected.iter().map(|(name, expected)| {
        let name = name.as_ref();
        let outcome = match got.iter().find(|(other, _)| other.as_ref() == name) {
            None => Outcome::Missing,
            Some((_, got)) => outcome(expected, got, tolerance),
        };
        OutputComparison { name: name.to_owned(), outcome }
    });
    let unexpected = got
        .iter()
        .map(|(name, _)| name.as_ref())
        .filter(|name| !expected.iter().any(|(other, _)| other.as_ref() == *name))
        .map(|name| OutputComparison { name: name.to_owned(), outcome: Outcome::Extra });
    Comparison { outputs: expected_ones.chain(unexpected).collect(), tolerance }
}

/// Holds one engine's answer against another's.
#[must_use]
pub fn compare_answers(expected: &Answer, got: &Answer, tolerance: Tolerance) -> Comparison {
    compare(&expected.outputs, &got.outputs, tolerance)
}

impl Comparison {
    /// Whether every output is there on both sides and every element within the tolerance.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.outputs.iter().all(|output| output.outcome.agrees())
    }
}

impl Outcome {
    #[must_use]
    pub fn agrees(&self) -> bool {
        matches!(self, Outcome::Elements(elements) if elements.outside == 0)
    }
}

impl Elements {
    /// The share of elements that agree; of none, all do.
    #[must_use]
    pub fn share_within(&self) -> f64 {
        if self.count == 0 { 1.0 } else { (self.count - self.outside) as f64 / self.count as f64 }
    }
}

impl Top1 {
    /// The share of rows whose largest element is at another place; of none, none is.
    #[must_use]
    pub fn share_flipped(self) -> f64 {
        if self.rows == 0 { 0.0 } else { self.flipped as f64 / self.rows as f64 }
    }
}

fn outcome(expected: &Tensor, got: &Tensor, tolerance: Tolerance) -> Outcome {
    if expected.datatype() != got.datatype() {
        Outcome::Datatype { expected: expected.datatype(), got: got.datatype() }
    } else if expected.shape() != got.shape() {
        Outcome::Shape { expected: expected.shape().clone(), got: got.shape().clone() }
    } else {
        Outcome::Elements(elements::compare(expected, got, tolerance))
    }
}
