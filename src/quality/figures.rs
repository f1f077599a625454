//! The figures of one version on one arm.

use super::label::{LabelResult, Predicted};
use super::units::ByUnit;
use super::window::Told;
use crate::model::Label;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Count, mean and variance of numbers that can be added and removed (Welford's recurrence, and its inverse).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moments {
    pub count: u64,
    pub mean: f64,
    /// The sum of squared differences from the mean.
    squares: f64,
}

impl Moments {
    pub fn add(&mut self, x: f64) {
        self.count += 1;
        let before = x - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (x - self.mean);
    }

    /// Removes a number that was added before.
    pub fn remove(&mut self, x: f64) {
        if self.count <= 1 {
            *self = Moments::default();
            return;
        }
        let after = x - self.mean;
        self.count -= 1;
        self.mean -= after / self.count as f64;
        // Rounding may make it negative.
        self.squares = (self.squares - after * (x - self.mean)).max(0.0);
    }

    /// The sample variance (divided by the count minus one), as SQL's `var_samp`. `None` for fewer than two numbers.
    #[must_use]
    pub fn variance(&self) -> Option<f64> {
        (self.count > 1).then(|| self.squares / (self.count - 1) as f64)
    }
}

/// The figures of one version on one arm, over the rows that the window kept.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Answered rows.
    pub predictions: u64,
    /// Rows with feedback.
    pub with_feedback: u64,
    /// Rows with a label that was not retracted.
    pub labelled: u64,
    /// Labels that could not be compared with any output.
    pub unfit: u64,
    /// Labels that were compared with a predicted class, and those that were equal to it.
    pub classified: u64,
    pub correct: u64,
    /// Absolute errors of the labels that were compared with a predicted number.
    pub error: Moments,
    /// Business values by name.
    pub values: BTreeMap<String, Moments>,
    /// How exactly the mean of each is known. Only in figures that are handed out.
    pub by_unit: BTreeMap<String, ByUnit>,
    /// Values that were not kept, because there were too many names.
    pub values_left_out: u64,
    /// Time from a prediction to the `ts` of its first feedback, in seconds.
    delay: Moments,
    /// The same in milliseconds, with two significant digits.
    delays: Histogram<u64>,
}

/// Limit for the names of business values of one version on one arm. Each name becomes two metric series.
const MAX_VALUE_NAMES: usize = 32;

impl Default for Figures {
    fn default() -> Figures {
        Figures {
            predictions: 0,
            with_feedback: 0,
            labelled: 0,
            unfit: 0,
            classified: 0,
            correct: 0,
            error: Moments::default(),
            values: BTreeMap::new(),
            by_unit: BTreeMap::new(),
            values_left_out: 0,
            delay: Moments::default(),
            // Its range grows with the recorded values.
            delays: Histogram::new(2).expect("two significant digits are supported"),
        }
    }
}

impl Figures {
    /// The share of compared classes that were correct.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        (self.classified > 0).then(|| self.correct as f64 / self.classified as f64)
    }

    #[must_use]
    pub fn mean_absolute_error(&self) -> Option<f64> {
        (self.error.count > 0).then_some(self.error.mean)
    }

    /// In seconds. `None` without feedback.
    #[must_use]
    pub fn mean_delay(&self) -> Option<f64> {
        (self.delay.count > 0).then_some(self.delay.mean)
    }

    /// In seconds, with two significant digits. `None` without feedback.
    #[must_use]
    pub fn delay_quantile(&self, quantile: f64) -> Option<f64> {
        (!self.delays.is_empty()).then(|| self.delays.value_at_quantile(quantile) as f64 / 1e3)
    }

    /// The business values that any row has. Names of which every value was retracted are left out.
    pub fn known_values(&self) -> impl Iterator<Item = (&String, &Moments)> {
        self.values.iter().filter(|(_, moments)| moments.count > 0)
    }

    /// Counts the first feedback about a prediction. Both times are in microseconds.
    pub(super) fn record_first_feedback(&mut self, predicted_at: i64, feedback_ts: i64) {
        self.with_feedback += 1;
        // Feedback with a time before the prediction comes from another clock: no delay.
        let micros = u64::try_from(feedback_ts.saturating_sub(predicted_at)).unwrap_or(0);
        self.delay.add(micros as f64 / 1e6);
        // The value always fits, because the range grows up to 2^64 ms.
        let _ = self.delays.record(micros / 1000);
    }

    pub(super) fn add(&mut self, predicted: &Predicted, feedback: &Told) {
        if let Some(label) = feedback.label() {
            self.labelled += 1;
            self.count(predicted, label, 1, Moments::add);
        }
        self.values_left_out += feedback.left_out;
        for (name, value) in feedback.values() {
            if self.values.len() < MAX_VALUE_NAMES || self.values.contains_key(name) {
                self.values.entry(name.to_owned()).or_default().add(value);
            } else {
                self.values_left_out += 1;
            }
        }
    }

    /// Removes feedback that was added before, because later feedback changes it.
    pub(super) fn remove(&mut self, predicted: &Predicted, feedback: &Told) {
        if let Some(label) = feedback.label() {
            self.labelled -= 1;
            self.count(predicted, label, -1, Moments::remove);
        }
        self.values_left_out -= feedback.left_out;
        for (name, value) in feedback.values() {
            match self.values.get_mut(name) {
                Some(moments) => moments.remove(value),
                None => self.values_left_out -= 1,
            }
        }
    }

    fn count(&mut self, predicted: &Predicted, label: &Label, by: i64, error_by: impl Fn(&mut Moments, f64)) {
        match predicted.compare(label) {
            Some(LabelResult::Class { correct }) => {
                self.classified = self.classified.saturating_add_signed(by);
                self.correct = self.correct.saturating_add_signed(if correct { by } else { 0 });
            }
            Some(LabelResult::Number { error }) if error.is_finite() => error_by(&mut self.error, error),
            // A NaN or infinite prediction has no error that can be averaged.
            None | Some(LabelResult::Number { .. }) => self.unfit = self.unfit.saturating_add_signed(by),
        }
    }
}
