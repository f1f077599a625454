//! What is known of one version on one arm.

use super::fit::{Fit, Predicted};
use crate::model::{Feedback, Label};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Count, mean and variance, to which numbers can be added and from which they can be taken again (Welford's recurrence, and the
/// same backwards).
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

    /// Takes away a number that was added before.
    pub fn take(&mut self, x: f64) {
        if self.count <= 1 {
            *self = Moments::default();
            return;
        }
        let after = x - self.mean;
        self.count -= 1;
        self.mean -= after / self.count as f64;
        // Rounding may carry it below.
        self.squares = (self.squares - after * (x - self.mean)).max(0.0);
    }

    /// The sample variance (divided by one less than the count), as SQL's `var_samp`; `None` of fewer than two.
    #[must_use]
    pub fn variance(&self) -> Option<f64> {
        (self.count > 1).then(|| self.squares / (self.count - 1) as f64)
    }
}

/// The figures of one version on one arm, over what the window kept.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Rows that were answered.
    pub predictions: u64,
    /// Of them, those that something was told about.
    pub told: u64,
    /// And those with a label.
    pub labelled: u64,
    /// Labels that fit none of the outputs.
    pub unfit: u64,
    /// Labels that were held against a class, and how many of them it was.
    pub classified: u64,
    pub right: u64,
    /// Absolute differences of labels held against a number.
    pub error: Moments,
    /// Business values by name.
    pub values: BTreeMap<String, Moments>,
    /// Values under more names than are kept.
    pub values_left_out: u64,
    /// From a prediction to the `ts` of the first feedback about it, in seconds,
    delay: Moments,
    /// and in milliseconds, to two digits.
    delays: Histogram<u64>,
}

/// Names of business values kept of one version on one arm: each becomes two series of metrics.
const VALUES: usize = 32;

impl Default for Figures {
    fn default() -> Figures {
        Figures {
            predictions: 0,
            told: 0,
            labelled: 0,
            unfit: 0,
            classified: 0,
            right: 0,
            error: Moments::default(),
            values: BTreeMap::new(),
            values_left_out: 0,
            delay: Moments::default(),
            // It grows with what it is given.
            delays: Histogram::new(2).expect("two digits are within what the histogram can"),
        }
    }
}

impl Figures {
    /// The share of labels held against a class that it was.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        (self.classified > 0).then(|| self.right as f64 / self.classified as f64)
    }

    #[must_use]
    pub fn mean_absolute_error(&self) -> Option<f64> {
        (self.error.count > 0).then_some(self.error.mean)
    }

    /// In seconds; `None` while there is none.
    #[must_use]
    pub fn mean_delay(&self) -> Option<f64> {
        (self.delay.count > 0).then_some(self.delay.mean)
    }

    /// In seconds, to two digits.
    #[must_use]
    pub fn delay_quantile(&self, quantile: f64) -> Option<f64> {
        (!self.delays.is_empty()).then(|| self.delays.value_at_quantile(quantile) as f64 / 1e3)
    }

    /// Something was told for the first time about a prediction made at `ts`, with this `ts` of its own.
    pub(super) fn told_first(&mut self, ts: i64, told: i64) {
        self.told += 1;
        // Told of before it was predicted, by a clock that differs: at once.
        let micros = u64::try_from(told - ts).unwrap_or(0);
        self.delay.add(micros as f64 / 1e6);
        // Fails only past 2^64 ms.
        let _ = self.delays.record(micros / 1000);
    }

    pub(super) fn add(&mut self, predicted: &Predicted, told: &Feedback) {
        if let Some(label) = &told.label {
            self.labelled += 1;
            self.count(predicted, label, 1, Moments::add);
        }
        for (name, value) in &told.values {
            if self.values.len() < VALUES || self.values.contains_key(name) {
                self.values.entry(name.clone()).or_default().add(*value);
            } else {
                self.values_left_out += 1;
            }
        }
    }

    /// Takes away what was added, as something later was told about the same prediction.
    pub(super) fn take(&mut self, predicted: &Predicted, told: &Feedback) {
        if let Some(label) = &told.label {
            self.labelled -= 1;
            self.count(predicted, label, -1, Moments::take);
        }
        for (name, value) in &told.values {
            match self.values.get_mut(name) {
                Some(moments) => moments.take(*value),
                None => self.values_left_out -= 1,
            }
        }
    }

    fn count(&mut self, predicted: &Predicted, label: &Label, by: i64, error_by: impl Fn(&mut Moments, f64)) {
        match predicted.against(label) {
            Some(Fit::Class { right }) => {
                self.classified = self.classified.saturating_add_signed(by);
                self.right = self.right.saturating_add_signed(if right { by } else { 0 });
            }
            Some(Fit::Number { error }) if error.is_finite() => error_by(&mut self.error, error),
            // A prediction that is no number is not off by any.
            None | Some(Fit::Number { .. }) => self.unfit = self.unfit.saturating_add_signed(by),
        }
    }
}
