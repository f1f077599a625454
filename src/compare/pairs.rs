//! Figures over many pairs of answers, for shadows and replay.

use super::worst::{self, Severity, WorstPair};
use super::{Comparison, Outcome, Spread};
use crate::model::{Answer, Failure, RequestId, Version};
use hdrhistogram::Histogram;
use jiff::Timestamp;
use std::time::Duration;

/// How many pairs were compared, and how many of them agreed in every output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreement {
    /// Without the pairs in which both sides failed, because these show nothing.
    pub pairs: u64,
    pub agreed: u64,
}

impl Agreement {
    /// The sum with other pairs.
    #[must_use]
    pub fn and(self, more: Agreement) -> Agreement {
        Agreement { pairs: self.pairs + more.pairs, agreed: self.agreed + more.agreed }
    }
}

/// One request that was run on both sides.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    pub request_id: &'a RequestId,
    /// The arm of the primary.
    pub arm: &'a str,
    pub at: Timestamp,
    /// The answer and the time inside the engine.
    pub primary: Result<(&'a Answer, Duration), &'a Failure>,
    pub shadow: Result<(&'a Answer, Duration), &'a Failure>,
    /// `None` unless both sides answered.
    pub comparison: Option<&'a Comparison>,
    /// Runs of both sides, one directly after the other on one thread. `None` for most pairs.
    pub alternated: Option<Alternation>,
}

/// A run of both sides on one thread. Which of them runs first alternates from one to the next.
#[derive(Debug, Clone, Copy)]
pub struct Alternation {
    pub primary: Duration,
    pub shadow: Duration,
    pub rows: usize,
}

/// Times inside the engine per row, of both sides, from runs that took turns on one thread. Times that were measured elsewhere cannot be compared:
/// a caller's run and a shadow's have other priorities, caches and neighbours.
#[derive(Debug, Clone, Default)]
pub struct Alternated {
    /// In nanoseconds per row.
    primary: Latency,
    shadow: Latency,
}

/// The figures of one primary and one shadow.
#[derive(Debug, Clone)]
pub struct PairFigures {
    pub primary: Version,
    pub shadow: Version,
    pub since: Timestamp,
    /// The time of the last pair.
    pub until: Timestamp,
    /// All pairs, whatever their result.
    pub pairs: u64,
    /// Pairs in which every element of every output was within the tolerance.
    pub agreed: u64,
    pub primary_failed: u64,
    pub shadow_failed: u64,
    pub both_failed: u64,
    /// In the order of first appearance.
    pub outputs: Vec<OutputFigures>,
    /// Over the pairs in which both sides answered. The two cannot be compared: threads of higher priority interrupt a shadow's runs.
    pub primary_latency: Latency,
    pub shadow_latency: Latency,
    /// These can be compared.
    pub alternated: Alternated,
    /// Worst first.
    pub worst: Vec<WorstPair>,
    /// The SHA-256 of the model files of the primary and the shadow.
    pub sha256: (String, String),
}

/// The figures of one output, over all pairs in which both sides answered.
#[derive(Debug, Clone, Default)]
pub struct OutputFigures {
    pub name: String,
    pub pairs: u64,
    /// Pairs in which all elements of this output agreed.
    pub agreed: u64,
    /// Pairs in which the output was absent on one side, or had another type or shape.
    pub incomparable: u64,
    pub elements: u64,
    /// Elements that do not agree.
    pub outside: u64,
    /// The largest absolute difference. `None` where nothing was measured.
    pub largest: Option<f64>,
    /// Elements that are NaN or infinite on one side only.
    pub nonfinite: u64,
    /// Rows whose largest element is at another index, and all rows. Both are 0 if the output is not a list of scores.
    pub top1_flipped: u64,
    pub top1_rows: u64,
    measured: u64,
    /// The mean absolute difference of the measured elements.
    mean: f64,
    /// Of the primary's values.
    spread: Spread,
}

/// Times inside the engine.
#[derive(Debug, Clone)]
pub struct Latency(Histogram<u64>);

impl PairFigures {
    /// Figures without any pair.
    #[must_use]
    pub fn new(primary: Version, shadow: Version, sha256: (String, String), since: Timestamp) -> PairFigures {
        PairFigures {
            primary,
            shadow,
            since,
            until: since,
            pairs: 0,
            agreed: 0,
            primary_failed: 0,
            shadow_failed: 0,
            both_failed: 0,
            outputs: Vec::new(),
            primary_latency: Latency::default(),
            shadow_latency: Latency::default(),
            alternated: Alternated::default(),
            worst: Vec::new(),
            sha256,
        }
    }

    /// The share of comparable pairs that agreed. `None` without comparable pairs.
    #[must_use]
    pub fn agreement(&self) -> Option<f64> {
        let Agreement { pairs, agreed } = self.comparable();
        (pairs > 0).then(|| agreed as f64 / pairs as f64)
    }

    /// The pairs in which at least one side answered.
    #[must_use]
    pub fn comparable(&self) -> Agreement {
        Agreement { pairs: self.pairs - self.both_failed, agreed: self.agreed }
    }

    /// Adds a pair. It is kept if it is among the `max_worst` worst pairs.
    pub fn record(&mut self, max_worst: usize, pair: &Pair) {
        self.pairs += 1;
        self.until = self.until.max(pair.at);
        if let Some(alternation) = &pair.alternated {
            self.alternated.record(alternation);
        }
        match (pair.primary, pair.shadow) {
            (Ok((_, primary)), Ok((_, shadow))) => {
                self.primary_latency.record(primary);
                self.shadow_latency.record(shadow);
            }
            (Err(_), Ok(_)) => self.primary_failed += 1,
            (Ok(_), Err(_)) => self.shadow_failed += 1,
            (Err(_), Err(_)) => {
                self.both_failed += 1;
                return;
            }
        }
        let agreed = pair.comparison.is_some_and(Comparison::agrees);
        self.agreed += u64::from(agreed);
        for output in pair.comparison.iter().flat_map(|comparison| &comparison.outputs) {
            self.output(&output.name).record(&output.outcome);
        }
        if !agreed {
            // The scales change with every pair, so the pairs that are kept are ranked again.
            let scale = |name: &str| self.outputs.iter().find(|o| o.name == name).map_or(1.0, OutputFigures::scale);
            worst::rank(&mut self.worst, &scale);
            let severity = Severity::of(pair.comparison, &scale);
            worst::keep(&mut self.worst, max_worst, severity, || WorstPair::new(pair, severity));
        }
    }

    fn output(&mut self, name: &str) -> &mut OutputFigures {
        let at = self.outputs.iter().position(|output| output.name == name).unwrap_or_else(|| {
            self.outputs.push(OutputFigures { name: name.to_owned(), ..OutputFigures::default() });
            self.outputs.len() - 1
        });
        &mut self.outputs[at]
    }
}

impl OutputFigures {
    fn record(&mut self, outcome: &Outcome) {
        self.pairs += 1;
        self.agreed += u64::from(outcome.agrees());
        let Outcome::Elements(elements) = outcome else {
            self.incomparable += 1;
            return;
        };
        self.spread.merge(&elements.spread);
        self.elements += elements.count as u64;
        self.outside += elements.outside as u64;
        self.nonfinite += elements.nonfinite as u64;
        if let (Some(largest), Some(mean)) = (elements.largest, elements.mean) {
            self.largest = Some(self.largest.map_or(largest, |known| known.max(largest)));
            self.measured += elements.measured as u64;
            self.mean += (mean - self.mean) * (elements.measured as f64 / self.measured as f64);
        }
        if let Some(top1) = elements.top1 {
            self.top1_flipped += top1.flipped as u64;
            self.top1_rows += top1.rows as u64;
        }
    }

    /// The mean absolute difference of the measured elements. `None` where nothing was measured.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.measured > 0).then_some(self.mean)
    }

    /// What a difference of this output is measured by: the standard deviation of the primary's values, or where they are all equal the largest
    /// difference.
    fn scale(&self) -> f64 {
        self.spread.deviation().or(self.largest.filter(|largest| *largest > 0.0)).unwrap_or(1.0)
    }

    /// The share of elements that agree. 1 without elements.
    #[must_use]
    pub fn share_within(&self) -> f64 {
        if self.elements == 0 { 1.0 } else { (self.elements - self.outside) as f64 / self.elements as f64 }
    }
}

impl Alternated {
    pub fn record(&mut self, alternation: &Alternation) {
        let Alternation { primary, shadow, rows } = alternation;
        let rows = *rows.max(&1) as u128;
        self.primary.record_number(primary.as_nanos() / rows);
        self.shadow.record_number(shadow.as_nanos() / rows);
    }

    /// How often both sides ran.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.primary.0.len()
    }

    /// Medians in microseconds per row: of the primary, and of the shadow. `None` without runs.
    #[must_use]
    pub fn us_per_row(&self) -> Option<(f64, f64)> {
        let median = |latency: &Latency| latency.quantile_us(0.5).map(|ns| ns as f64 / 1e3);
        Some((median(&self.primary)?, median(&self.shadow)?))
    }

    /// The shadow's time divided by the primary's, at a quantile. `None` without runs.
    #[must_use]
    pub fn ratio(&self, quantile: f64) -> Option<f64> {
        Some(self.shadow.quantile_us(quantile)? as f64 / self.primary.quantile_us(quantile)? as f64)
    }

    /// The same for the means, on which single long runs have more influence.
    #[must_use]
    pub fn ratio_of_means(&self) -> Option<f64> {
        Some(self.shadow.mean_us()? / self.primary.mean_us()?)
    }
}

impl Default for Latency {
    fn default() -> Latency {
        // Two significant digits from 1 µs on. The range grows with the recorded values.
        Latency(Histogram::new(2).expect("two significant digits are supported"))
    }
}

impl Latency {
    /// Adds one run.
    pub fn record(&mut self, took: Duration) {
        self.record_number(took.as_micros());
    }

    fn record_number(&mut self, number: u128) {
        // The value always fits, because the range grows up to 2^64.
        let _ = self.0.record(u64::try_from(number).unwrap_or(u64::MAX).max(1));
    }

    /// In microseconds. `None` without runs.
    #[must_use]
    pub fn mean_us(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.mean())
    }

    /// In microseconds, with two significant digits. `None` without runs.
    #[must_use]
    pub fn quantile_us(&self, quantile: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile))
    }
}
