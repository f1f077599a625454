//! The tests behind guardrails: a ratio of the candidate to the control, and a share that is compared with a limit.
//!
//! Where keys are counted, each has two parts (docs/EVIDENCE.md): over the step each key is bad at most once, and each period counts every
//! key again. Half of α is for the step and half for its periods, of which the j-th has the part 1/(j(j+1)): these parts add up to 1
//! however many periods there are.

use super::sequence::{Counts, RateSequence, RatioSequence};
use crate::telemetry::Unit;

/// One of the two tests.
#[derive(Debug, Clone)]
pub(crate) enum Test {
    Ratio(Box<Ratio>),
    Share(Box<Share>),
}

/// A ratio with its limit.
#[derive(Debug, Clone)]
pub(crate) struct Ratio {
    limit: f64,
    /// Requests, or keys and those of them that were bad.
    pub(super) candidate: Counts,
    pub(super) control: Counts,
    /// The control must not be bad too many times as often as the candidate.
    reversed: bool,
    /// Over the whole step.
    of_step: RatioSequence,
    /// Where keys are counted.
    of_period: Option<Period<RatioSequence>>,
}

/// A share with its limit.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    limit: f64,
    of_step: RateSequence,
    of_period: Option<Period<RateSequence>>,
}

/// The keys of one period. Each key counts once, with its first request of the period.
#[derive(Debug, Clone)]
struct Period<S> {
    /// From 0.
    number: u32,
    bad: (u64, u64),
    sequence: S,
}

/// What a test says at a level α.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// The values that are not rejected.
    pub(crate) interval: (f64, f64),
    /// Whether the whole interval lies above the limit.
    pub(crate) exceeds: bool,
    /// The keys of the candidate and of the control that were bad in the current period, where these decide.
    pub(crate) in_period: Option<(u64, u64)>,
}

/// The part of a test that exceeds its limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Step,
    Period,
}

/// Keys that must be bad before a guardrail is violated: one caller cannot have a rollout moved back.
const MIN_BAD_KEYS: u64 = 3;

impl Test {
    pub(super) fn ratio(limit: f64, unit: Unit) -> Test {
        Test::Ratio(Box::new(Ratio::new(limit, unit, false)))
    }

    /// The control must not be bad too many times as often as the candidate.
    pub(super) fn reversed_ratio(limit: f64, unit: Unit) -> Test {
        Test::Ratio(Box::new(Ratio::new(limit, unit, true)))
    }

    pub(super) fn share(limit: f64, unit: Unit) -> Test {
        let of_period = (unit == Unit::Key).then(|| Period::new(0, RateSequence::default()));
        Test::Share(Box::new(Share { limit, of_step: RateSequence::default(), of_period }))
    }

    pub(super) fn begin_period(&mut self, number: u32) {
        match self {
            Test::Ratio(ratio) => ratio.begin_period(number),
            Test::Share(share) => {
                if share.of_period.is_some() {
                    share.of_period = Some(Period::new(number, RateSequence::default()));
                }
            }
        }
    }

    /// Whether the whole interval lies above the limit.
    pub(super) fn exceeds(&self, alpha: f64) -> bool {
        match self {
            Test::Ratio(ratio) => ratio.exceeding_part(alpha).is_some(),
            Test::Share(share) => share.exceeding_part(alpha).is_some(),
        }
    }

    pub(crate) fn verdict(&self, alpha: f64) -> Verdict {
        match self {
            Test::Ratio(ratio) => ratio.verdict(alpha),
            Test::Share(share) => share.verdict(alpha),
        }
    }

    /// The candidate's counts, and those of the control where it is compared with it.
    pub(crate) fn counts(&self) -> (Counts, Option<Counts>) {
        match self {
            Test::Ratio(ratio) => (ratio.candidate, Some(ratio.control)),
            Test::Share(share) => (share.of_step.counts(), None),
        }
    }
}

impl<S> Period<S> {
    fn new(number: u32, sequence: S) -> Period<S> {
        Period { number, bad: (0, 0), sequence }
    }

    /// The level of this period.
    fn level(&self, alpha: f64) -> f64 {
        let j = f64::from(self.number) + 1.0;
        alpha / 2.0 / (j * (j + 1.0))
    }
}

// === impl Ratio ===

impl Ratio {
    fn new(limit: f64, unit: Unit, reversed: bool) -> Ratio {
        let of_step = RatioSequence::new(limit);
        let of_period = (unit == Unit::Key).then(|| Period::new(0, of_step.clone()));
        Ratio { limit, candidate: Counts::default(), control: Counts::default(), reversed, of_step, of_period }
    }

    /// Adds requests.
    pub(super) fn observe(&mut self, candidate: Counts, control: Counts) {
        self.candidate.add(candidate);
        self.control.add(control);
        let (one, other) = self.in_order(candidate, control);
        self.of_step.observe(one, other);
    }

    /// The side that must not be bad too often comes first.
    fn in_order<T>(&self, candidate: T, control: T) -> (T, T) {
        if self.reversed { (control, candidate) } else { (candidate, control) }
    }

    /// Adds keys that were bad for the first time in the step, and keys that were bad in this period.
    pub(super) fn observe_keys(&mut self, exposure: f64, in_step: (u64, u64), in_period: (u64, u64)) {
        self.of_step.observe_bad(exposure, in_step.0, in_step.1);
        if let Some(period) = &mut self.of_period {
            period.sequence.observe_bad(exposure, in_period.0, in_period.1);
            period.bad = (period.bad.0 + in_period.0, period.bad.1 + in_period.1);
        }
    }

    /// Adds new keys of the step and keys of this period, of the candidate and of the control, where it matters how many there were.
    pub(super) fn observe_counted_keys(&mut self, in_step: (Counts, Counts), in_period: (Counts, Counts)) {
        let (one, other) = self.in_order(in_step.0, in_step.1);
        self.of_step.observe(one, other);
        let (one, other) = self.in_order(in_period.0, in_period.1);
        if let Some(period) = &mut self.of_period {
            period.sequence.observe(one, other);
            period.bad = (period.bad.0 + in_period.0.bad, period.bad.1 + in_period.1.bad);
        }
    }

    fn begin_period(&mut self, number: u32) {
        if self.of_period.is_some() {
            self.of_period = Some(Period::new(number, RatioSequence::new(self.limit)));
        }
    }

    fn exceeding_part(&self, alpha: f64) -> Option<Part> {
        let Some(period) = &self.of_period else {
            return self.of_step.exceeds_limit(alpha).then_some(Part::Step);
        };
        let many = |candidate, control| self.in_order(candidate, control).0 >= MIN_BAD_KEYS;
        if many(self.candidate.bad, self.control.bad) && self.of_step.exceeds_limit(alpha / 2.0) {
            return Some(Part::Step);
        }
        let exceeds = many(period.bad.0, period.bad.1) && period.sequence.exceeds_limit(period.level(alpha));
        exceeds.then_some(Part::Period)
    }

    fn verdict(&self, alpha: f64) -> Verdict {
        let part = self.exceeding_part(alpha);
        let (interval, in_period) = match (&self.of_period, part) {
            (None, _) => (self.of_step.interval(alpha), None),
            (Some(period), Some(Part::Period)) => (period.sequence.interval(period.level(alpha)), Some(period.bad)),
            (Some(_), _) => (self.of_step.interval(alpha / 2.0), None),
        };
        Verdict { interval, exceeds: part.is_some(), in_period }
    }

    /// The upper end of the interval over the whole step.
    pub(super) fn upper_end(&self, alpha: f64) -> f64 {
        self.of_step.interval(alpha).1
    }
}

// === impl Share ===

impl Share {
    pub(super) fn observe(&mut self, in_step: Counts, in_period: Counts) {
        self.of_step.observe(in_step);
        if let Some(period) = &mut self.of_period {
            period.sequence.observe(in_period);
        }
    }

    fn exceeding_part(&self, alpha: f64) -> Option<Part> {
        let Some(period) = &self.of_period else {
            return self.of_step.exceeds(self.limit, alpha).then_some(Part::Step);
        };
        let many = |sequence: &RateSequence| sequence.counts().bad >= MIN_BAD_KEYS;
        if many(&self.of_step) && self.of_step.exceeds(self.limit, alpha / 2.0) {
            return Some(Part::Step);
        }
        let exceeds = many(&period.sequence) && period.sequence.exceeds(self.limit, period.level(alpha));
        exceeds.then_some(Part::Period)
    }

    fn verdict(&self, alpha: f64) -> Verdict {
        let part = self.exceeding_part(alpha);
        let (interval, in_period) = match (&self.of_period, part) {
            (None, _) => (self.of_step.interval(alpha), None),
            (Some(period), Some(Part::Period)) => {
                let bad = period.sequence.counts().bad;
                (period.sequence.interval(period.level(alpha)), Some((bad, 0)))
            }
            (Some(_), _) => (self.of_step.interval(alpha / 2.0), None),
        };
        Verdict { interval, exceeds: part.is_some(), in_period }
    }
}
