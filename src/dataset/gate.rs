//! What a candidate has to show in a replay.

use super::error::Error;
use std::fmt;

/// One condition, such as `within_tolerance>=0.999`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    figure: Figure,
    operator: Operator,
    number: f64,
}

/// How a gate was decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub gate: Gate,
    pub passed: bool,
    /// `None`: there was nothing to judge by, and the gate failed for that.
    pub found: Option<f64>,
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// The share of logged elements that the candidate gives too; those it failed to give, or gave in another shape, it does not.
    WithinTolerance,
    /// The share of requests in which all of them are.
    Agreement,
    /// The share of requests the candidate failed.
    Failed,
    /// The share of rows of scores whose largest is another.
    Top1Flipped,
    Accuracy,
    MeanAbsoluteError,
    /// Of the candidate's runs, in microseconds.
    P99Us,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    AtLeast,
    AtMost,
    Above,
    Below,
}

impl Figure {
    const ALL: [Figure; 7] = [
        Figure::WithinTolerance,
        Figure::Agreement,
        Figure::Failed,
        Figure::Top1Flipped,
        Figure::Accuracy,
        Figure::MeanAbsoluteError,
        Figure::P99Us,
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
        }
    }
}

impl Operator {
    /// Longer ones first: `>=` begins as `>` does.
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
    /// Reads `NAME>=NUMBER`, or with `<=`, `>` or `<`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Gate, Error> {
        let usage = |why: &str| Error::Usage(format!("the gate {text:?} {why}"));
        let parts = Operator::ALL.iter().find_map(|(sign, operator)| {
            let (name, number) = text.split_once(sign)?;
            Some((name.trim(), *operator, number.trim()))
        });
        let (name, operator, number) = parts
            .ok_or_else(|| usage("has no operator: expected such as within_tolerance>=0.999, with >=, <=, > or <"))?;
        let figure = Figure::ALL.into_iter().find(|figure| figure.as_str() == name).ok_or_else(|| {
            let known = Figure::ALL.map(Figure::as_str).join(", ");
            usage(&format!("asks for {name:?}: expected one of {known}"))
        })?;
        let number: Option<f64> = number.parse().ok().filter(|number: &f64| number.is_finite());
        let number = number.ok_or_else(|| usage("does not end in a number"))?;
        Ok(Gate { figure, operator, number })
    }

    /// Decides it, by what was found of each figure.
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
