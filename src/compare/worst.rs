//! The pairs with the largest differences.

use super::{Comparison, Outcome, OutputComparison, Pair};
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
    /// The difference. `None` where one side failed.
    comparison: Option<Comparison>,
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
/// side. All others are ordered by the largest difference, measured by the scale of its output: a difference of 0.98 is large for a
/// probability and small for a price.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Severity {
    class: u8,
    largest: f64,
}

/// Limit for the kept outputs of one side: twice the size of a thousand classes in double precision.
const MAX_KEPT_BYTES: usize = 16 << 10;

impl WorstPair {
    pub(super) fn new(pair: &Pair, severity: Severity) -> WorstPair {
        WorstPair {
            request_id: pair.request_id.clone(),
            at: pair.at,
            arm: pair.arm.to_owned(),
            comparison: pair.comparison.cloned(),
            primary: Side::of(pair.primary),
            shadow: Side::of(pair.shadow),
            severity,
        }
    }

    /// The difference in words.
    #[must_use]
    pub fn words(&self) -> String {
        self.words_without(&|_| false, false)
    }

    /// The difference in words, without the values of some outputs, and without messages of failures, which may quote inputs.
    #[must_use]
    pub fn words_without(&self, hides: &dyn Fn(&str) -> bool, hide_messages: bool) -> String {
        let failed = |side: &str, message: &str| {
            if hide_messages { format!("the {side} failed") } else { format!("the {side} failed: {message}") }
        };
        match (&self.comparison, &self.primary, &self.shadow) {
            (Some(comparison), ..) => comparison.without(hides).to_string(),
            (None, _, Side::Failed { message, .. }) => failed("shadow", message),
            (None, Side::Failed { message, .. }, _) => failed("primary", message),
            (None, ..) => String::new(),
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
    /// `None` means that one side failed. `scale` returns what the differences of an output are measured by.
    pub fn of(comparison: Option<&Comparison>, scale: &dyn Fn(&str) -> f64) -> Severity {
        let Some(comparison) = comparison else { return Severity { class: 2, largest: 0.0 } };
        let of = |output: &OutputComparison| match &output.outcome {
            outcome if outcome.agrees() => Severity { class: 0, largest: 0.0 },
            Outcome::Elements(elements) if elements.nonfinite == 0 => {
                // Booleans and texts have no difference, but a share of elements that differ.
                let share = elements.outside as f64 / elements.count.max(1) as f64;
                Severity { class: 0, largest: elements.largest.map_or(share, |largest| largest / scale(&output.name)) }
            }
            _ => Severity { class: 1, largest: 0.0 },
        };
        let all = comparison.outputs.iter().map(of);
        all.max_by(Severity::compare).unwrap_or(Severity { class: 0, largest: 0.0 })
    }

    fn compare(a: &Severity, b: &Severity) -> Ordering {
        a.class.cmp(&b.class).then(a.largest.total_cmp(&b.largest))
    }
}

/// Ranks the pairs again, for other scales. Pairs that are equally bad keep their order.
pub(super) fn rank(worst: &mut [WorstPair], scale: &dyn Fn(&str) -> f64) {
    for pair in worst.iter_mut() {
        pair.severity = Severity::of(pair.comparison.as_ref(), scale);
    }
    worst.sort_by(|a, b| Severity::compare(&b.severity, &a.severity));
}

/// Inserts a pair if it is among the `limit` worst. The list is sorted, worst first; of equal pairs the earlier ones stay.
pub(super) fn keep(worst: &mut Vec<WorstPair>, limit: usize, severity: Severity, pair: impl FnOnce() -> WorstPair) {
    let at = worst.partition_point(|known| Severity::compare(&known.severity, &severity) != Ordering::Less);
    if at < limit {
        worst.insert(at, pair());
        worst.truncate(limit);
    }
}
