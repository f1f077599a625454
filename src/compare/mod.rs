//! compare: measures the differences between two answers to the same inputs; pure.
//!
//! - [`compare`] compares an answer with the expected one, output by output. It returns the differences as numbers ([`Elements`])
//!   and in words (`Display`).
//! - Floating-point elements agree if `numpy.isclose(got, expected, rtol, atol, equal_nan=True)` is true. All other elements agree
//!   if they are equal.
//! - [`PairFigures`] sums up many pairs: running figures and the worst pairs.
//! - Golden answers, shadows and replay all use this room, so that "the same answer" has one meaning.
//!
//! Uses: model, tensor.
//!
//! Invariant: nothing here depends on the origin of the answers.
//!
//! To add a measure: a field of [`Elements`], counted in `elements.rs`, and its text in `display.rs`.

mod display;
mod elements;
mod pairs;
#[cfg(test)]
mod tests;
mod worst;

pub use pairs::{Agreement, Alternated, Alternation, Latency, OutputFigures, Pair, PairFigures};
pub use worst::{Side, WorstPair};

use crate::model::Answer;
use crate::tensor::{DataType, Shape, Tensor};

/// The allowed difference of two floating-point numbers: `|got - expected| <= atol + rtol * |expected|`
/// (<https://numpy.org/doc/stable/reference/generated/numpy.isclose.html>).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    pub rtol: f64,
    pub atol: f64,
}

impl Tolerance {
    /// How far the results of a row may differ between a run of this row and a run of many. Engines sum in another order where there are more
    /// rows. FP16 has three decimal digits.
    #[must_use]
    pub fn of_rounding(datatypes: impl IntoIterator<Item = DataType>) -> Tolerance {
        if datatypes.into_iter().any(|datatype| datatype == DataType::Fp16) {
            Tolerance { rtol: 1e-2, atol: 1e-3 }
        } else {
            Tolerance { rtol: 1e-4, atol: 1e-5 }
        }
    }
}

impl Default for Tolerance {
    /// The defaults of numpy.
    fn default() -> Self {
        Tolerance { rtol: 1e-5, atol: 1e-8 }
    }
}

/// The result of comparing two answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The expected outputs in their order, then the unexpected ones.
    pub outputs: Vec<OutputComparison>,
    pub tolerance: Tolerance,
}

/// The result for one output.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputComparison {
    pub name: String,
    pub outcome: Outcome,
}

/// How an output differs.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Expected, but absent.
    Missing,
    /// Present, but not expected.
    Extra,
    Datatype {
        expected: DataType,
        got: DataType,
    },
    Shape {
        expected: Shape,
        got: Shape,
    },
    /// Both have the same type and shape, so they are compared element by element.
    Elements(Elements),
}

/// The differences between two tensors of one type and shape.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Elements {
    pub count: usize,
    /// Pairs of numbers that are finite on both sides. `largest` and `mean` are over these.
    pub measured: usize,
    /// Elements that do not agree.
    pub outside: usize,
    /// The largest and the mean absolute difference of the measured pairs. `None` without any, and for booleans and strings.
    pub largest: Option<f64>,
    pub mean: Option<f64>,
    /// Pairs in which only one side is NaN or infinite, or with infinities of opposite signs.
    pub nonfinite: usize,
    /// The element furthest outside the tolerance.
    pub worst: Option<Worst>,
    /// How far the expected finite numbers lie apart, for the scale of this output.
    pub spread: Spread,
    /// For floating-point outputs of two or more dimensions: how often the largest element of a row is at another index.
    pub top1: Option<Top1>,
}

/// Count, mean and spread of numbers (Welford's recurrence), which can be added up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spread {
    count: u64,
    mean: f64,
    /// The sum of squared differences from the mean.
    squares: f64,
}

/// One element that does not agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Worst {
    /// Outermost dimension first.
    pub index: Vec<usize>,
    pub expected: String,
    pub got: String,
}

/// Rows whose largest element (the predicted class of a classifier) is at another index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Top1 {
    pub flipped: usize,
    pub rows: usize,
}

/// Compares `got` with `expected`. Outputs are matched by name. Names are unique on each side.
pub fn compare<E: AsRef<str>, G: AsRef<str>>(
    expected: &[(E, Tensor)],
    got: &[(G, Tensor)],
    tolerance: Tolerance,
) -> Comparison {
    let matched = expected.iter().map(|(name, expected)| {
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
    Comparison { outputs: matched.chain(unexpected).collect(), tolerance }
}

/// Compares the outputs of two answers.
#[must_use]
pub fn compare_answers(expected: &Answer, got: &Answer, tolerance: Tolerance) -> Comparison {
    compare(&expected.outputs, &got.outputs, tolerance)
}

impl Comparison {
    /// Whether both sides have the same outputs, and every element is within the tolerance.
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
    /// The share of elements that agree. 1 for an empty tensor.
    #[must_use]
    pub fn share_within(&self) -> f64 {
        if self.count == 0 { 1.0 } else { (self.count - self.outside) as f64 / self.count as f64 }
    }
}

impl Spread {
    fn add(&mut self, x: f64) {
        self.count += 1;
        let before = x - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (x - self.mean);
    }

    /// Adds the numbers of another spread (Chan, Golub and `LeVeque`, "Updating formulae and a pairwise algorithm", 1979).
    fn merge(&mut self, other: &Spread) {
        let count = self.count + other.count;
        if count == 0 {
            return;
        }
        let (apart, share) = (other.mean - self.mean, other.count as f64 / count as f64);
        self.squares += other.squares + apart * apart * self.count as f64 * share;
        self.mean += apart * share;
        self.count = count;
    }

    /// The standard deviation. `None` without numbers, where all are equal, and where they are too large for it.
    fn deviation(&self) -> Option<f64> {
        let deviation = (self.squares / self.count as f64).sqrt();
        (deviation.is_finite() && deviation > 0.0).then_some(deviation)
    }
}

impl Top1 {
    /// The share of rows whose largest element is at another index. 0 without rows.
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
