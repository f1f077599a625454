//! The pairs with the largest differences.

use super::{Comparison, Outcome, Pair};
use crate::model::{Answer, Code, Failure, RequestId};
use crate::tensor::Tensor;
use jiff::Timestamp;
use std::cmp::Ordering;
use std::time::Duration;

/// A pair that does not agree.
#[derive(Debug, Clone)]
pub struct WorstPair {
    /// The request, whose inputs are in the prediction log under this id.
    pub request_id: RequestId,
    pub at: Timestamp,
    /// The primary's arm.
    pub arm: String,
    /// The difference in words.
    pub words: String,
    pub primary: Side,
    pub shadow: Side,
    severity: Severity,
}

/// The result of one side.
#[derive(Debug, Clone)]
pub enum Side {
    Answered(Answer),
    /// The size in bytes of an answer that is too large to keep.
    TooLarge(usize),
    Failed {
        code: Code,
        message: String,
    },
}

/// How bad a difference is. The worst is that one side failed. Next are outputs that cannot be compared or are not finite on one
/// side. All others are ordered by the largest difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Severity {
    class: u8,
    largest: f64,
}

/// Limit for the kept outputs of one side: twice the size of a thousand classes in double precision.
const MAX_KEPT_BYTES: usize = 16 << 10;

impl WorstPair {
    pub(super) fn new(pair: &Pair, severity: Severity) -> WorstPair {
        let words = match (pair.comparison, pair.primary, pair.shadow) {
            (Some(comparison), ..) => comparison.to_string(),
            (None, _, Err(failure)) => format!("the shadow failed: {}", failure.message),
            (None, Err(failure), _) => format!("the primary failed: {}", failure.message),
            (None, Ok(_), Ok(_)) => String::new(),
        };
        WorstPair {
            request_id: pair.request_id.clone(),
            at: pair.at,
            arm: pair.arm.to_owned(),
            words,
            primary: Side::of(pair.primary),
            shadow: Side::of(pair.shadow),
            severity,
        }
    }
}

impl Side {
    fn of(outcome: Result<(&Answer, Duration), &Failure>) -> Side {
        match outcome {
            Err(failure) => Side::Failed { code: failure.code, message: failure.message.clone() },
            Ok((answer, _)) => match answer.outputs.iter().map(|(_, tensor)| Tensor::size(tensor)).sum() {
                bytes if bytes > MAX_KEPT_BYTES => Side::TooLarge(bytes),
                _ => Side::Answered(answer.clone()),
            },
        }
    }
}

impl Severity {
    /// `None` means that one side failed.
    pub fn of(comparison: Option<&Comparison>) -> Severity {
        let Some(comparison) = comparison else { return Severity { class: 2, largest: 0.0 } };
        let of = |outcome: &Outcome| match outcome {
            outcome if outcome.agrees() => Severity { class: 0, largest: 0.0 },
            Outcome::Elements(elements) if elements.nonfinite == 0 => {
                Severity { class: 0, largest: elements.largest.unwrap_or(elements.outside as f64) }
            }
            _ => Severity { class: 1, largest: 0.0 },
        };
        let all = comparison.outputs.iter().map(|output| of(&output.outcome));
        all.max_by(Severity::compare).unwrap_or(Severity { class: 0, largest: 0.0 })
    }

    fn compare(a: &Severity, b: &Severity) -> Ordering {
        a.class.cmp(&b.class).then(a.largest.total_cmp(&b.largest))
    }
}

/// Inserts a pair if it is among the `limit` worst. The list is sorted, worst first; of equal pairs the earlier ones stay.
pub(super) fn keep(worst: &mut Vec<WorstPair>, limit: usize, severity: Severity, pair: impl FnOnce() -> WorstPair) {
    let at = worst.partition_point(|known| Severity::compare(&known.severity, &severity) != Ordering::Less);
    if at < limit {
        worst.insert(at, pair());
        worst.truncate(limit);
    }
}
