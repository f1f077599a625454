//! Gates: conditions that a candidate must meet in a replay.

use super::error::Error;
use std::fmt;

/// One condition, such as `within_tolerance>=0.999`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    figure: Figure,
    operator: Operator,
    number: f64,
}

/// The result of a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub gate: Gate,
    pub passed: bool,
    /// `None` if there was no data. The gate fails in that case.
    pub found: Option<f64>,
}

/// The figures that a gate can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// The share of logged elements that the candidate reproduces within the tolerance. Elements of failed requests and of outputs with
    /// another shape count as different.
    WithinTolerance,
    /// The share of requests in which all elements are within the tolerance.
    Agreement,
    /// The share of requests that failed on the candidate.
    Failed,
    /// The share of score rows whose largest element is at another index.
    Top1Flipped,
    Accuracy,
    MeanAbsoluteError,
    /// The 99th percentile of the candidate's run times, in microseconds, alone on this machine.
    P99Us,
    /// The candidate's time per row divided by that of the version that answered, where both ran alternately on one thread.
    TimeRatio,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    AtLeast,
    AtMost,
    Above,
    Below,
}

impl Figure {
    const ALL: [Figure; 8] = [
        Figure::WithinTolerance,
        Figure::Agreement,
        Figure::Failed,
        Figure::Top1Flipped,
        Figure::Accuracy,
        Figure::MeanAbsoluteError,
        Figure::P99Us,
        Figure::TimeRatio,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Figure::WithinTolerance => "within_tolerance",
            Figure::Agreement => "agreement",
            Figure::Failed => "failed",
            Figure::Top1Flipped => "top1_flipped",
            Figure::Accuracy => "accuracy",
            Figure::MeanAbsoluteError => "mean_absolute_error",
            Figure::P99Us => "p99_us",
            Figure::TimeRatio => "time_ratio",
        }
    }
}

impl Operator {
    /// Longer signs first, because `>=` begins with `>`.
    const ALL: [(&'static str, Operator); 4] =
        [(">=", Operator::AtLeast), ("<=", Operator::AtMost), (">", Operator::Above), ("<", Operator::Below)];

    fn holds(self, found: f64, number: f64) -> bool {
        match self {
            Operator::AtLeast => found >= number,
            Operator::AtMost => found <= number,
            Operator::Above => found > number,
            Operator::Below => found < number,
        }
    }
}

impl Gate {
    /// Parses `NAME>=NUMBER`, or the same with `<=`, `>` or `<`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Gate, Error> {
        let usage = |why: &str| Error::Usage(format!("the gate {text:?} {why}"));
        let parts = Operator::ALL.iter().find_map(|(sign, operator)| {
            let (name, number) = text.split_once(sign)?;
            Some((name.trim(), *operator, number.trim()))
        });
        let (name, operator, number) =
            parts.ok_or_else(|| usage("has no operator: expected >=, <=, > or <, such as within_tolerance>=0.999"))?;
        let figure = Figure::ALL.into_iter().find(|figure| figure.as_str() == name).ok_or_else(|| {
            let known = Figure::ALL.map(Figure::as_str).join(", ");
            usage(&format!("uses {name:?}: expected one of {known}"))
        })?;
        let number: Option<f64> = number.parse().ok().filter(|number: &f64| number.is_finite());
        let number = number.ok_or_else(|| usage("does not end in a number"))?;
        Ok(Gate { figure, operator, number })
    }

    /// Judges the gate. `found` returns the value of a figure.
    pub(super) fn judge(self, found: impl Fn(Figure) -> Option<f64>) -> Verdict {
        let found = found(self.figure);
        let passed = found.is_some_and(|found| self.operator.holds(found, self.number));
        Verdict { gate: self, passed, found }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = Operator::ALL.iter().find(|(_, operator)| *operator == self.operator).map_or("", |(sign, _)| sign);
        write!(f, "{}{sign}{}", self.figure.as_str(), self.number)
    }
}
