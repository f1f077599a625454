//! What is known of every pair of a primary and a shadow.

use super::original::Original;
use super::worst::{self, Severity, WorstPair};
use crate::compare::{Comparison, Outcome};
use crate::model::{Answer, Failure, ModelName, Version};
use crate::registry::Loaded;
use hdrhistogram::Histogram;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many pairs were held against each other, and how many of them agreed in every output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreement {
    /// Without those in which both sides failed, which say nothing.
    pub pairs: u64,
    pub agreed: u64,
}

/// The running figures of all pairs; cheap to clone, every clone is the same. In memory only.
#[derive(Debug, Clone)]
pub struct Figures(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    /// How many of the worst pairs are kept, of each primary and shadow.
    worst: usize,
    pairs: Mutex<BTreeMap<ModelName, Vec<PairFigures>>>,
}

/// The figures of one primary and one shadow.
#[derive(Debug, Clone)]
pub struct PairFigures {
    pub primary: Version,
    pub shadow: Version,
    pub since: Timestamp,
    /// Of the last pair.
    pub until: Timestamp,
    /// Pairs, however they came out.
    pub pairs: u64,
    /// Of them, those in which every element of every output was within the tolerance.
    pub agreed: u64,
    pub primary_failed: u64,
    pub shadow_failed: u64,
    pub both_failed: u64,
    /// In the order they were first seen.
    pub outputs: Vec<OutputFigures>,
    /// Of the pairs in which both answered. A shadow's runs are interrupted by whatever is more important.
    pub primary_latency: Latency,
    pub shadow_latency: Latency,
    /// Worst first.
    pub worst: Vec<WorstPair>,
    /// Of the bytes of both versions; other bytes begin anew.
    sha256: (String, String),
}

/// One output over all pairs in which both sides answered.
#[derive(Debug, Clone, Default)]
pub struct OutputFigures {
    pub name: String,
    pub pairs: u64,
    /// Pairs in which all of its elements agreed.
    pub agreed: u64,
    /// Pairs in which it was missing on one side, or of another type or shape: nothing to hold against each other.
    pub incomparable: u64,
    pub elements: u64,
    /// Elements that do not agree.
    pub outside: u64,
    /// The largest absolute difference; `None` where nothing was measured.
    pub largest: Option<f64>,
    /// Elements NaN or infinite on one side only.
    pub nonfinite: u64,
    /// Rows whose largest element is at another place, and all rows; 0 of 0 where it is no list of scores.
    pub top1_flipped: u64,
    pub top1_rows: u64,
    measured: u64,
    /// The mean of what was measured so far.
    mean: f64,
}

/// Times inside the engine.
#[derive(Debug, Clone)]
pub struct Latency(Histogram<u64>);

/// Pairs of one model that are kept; with more, those that have been quiet longest go.
const PAIRS: usize = 64;

impl Default for Figures {
    fn default() -> Figures {
        Figures::new(20)
    }
}

impl Figures {
    /// Keeps so many of the worst pairs.
    #[must_use]
    pub fn new(worst: usize) -> Figures {
        Figures(Arc::new(Kept { worst, pairs: Mutex::default() }))
    }

    /// How a shadow agreed with any of these primaries, together.
    #[must_use]
    pub fn agreement(&self, model: &ModelName, primaries: &BTreeSet<Version>, shadow: Version) -> Agreement {
        let pairs = self.lock();
        let these = pairs.get(model).into_iter().flatten();
        let these = these.filter(|pair| pair.shadow == shadow && primaries.contains(&pair.primary));
        these.fold(Agreement::default(), |sum, pair| Agreement {
            pairs: sum.pairs + pair.pairs - pair.both_failed,
            agreed: sum.agreed + pair.agreed,
        })
    }

    /// A version came ready with these bytes: what is known of other bytes under its number says nothing of it.
    pub fn came_ready(&self, model: &ModelName, version: Version, sha256: &str) {
        let same = |of: Version, bytes: &str| of != version || bytes == sha256;
        if let Some(pairs) = self.lock().get_mut(model) {
            pairs.retain(|pair| same(pair.primary, &pair.sha256.0) && same(pair.shadow, &pair.sha256.1));
        }
    }

    /// All pairs of a model, by shadow and primary.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> Vec<PairFigures> {
        let mut pairs = self.lock().get(model).cloned().unwrap_or_default();
        pairs.sort_by_key(|pair| (pair.shadow, pair.primary));
        pairs
    }

    /// Takes in one pair. `comparison` where both sides answered.
    pub(super) fn record(
        &self,
        original: &Original,
        shadow: &Loaded,
        outcome: Result<(&Answer, Duration), &Failure>,
        comparison: Option<&Comparison>,
    ) {
        let mut models = self.lock();
        let pairs = models.entry(original.model.clone()).or_default();
        let sha256 = (original.facts.sha256.clone(), shadow.facts.sha256.clone());
        let of_these = |pair: &PairFigures| (pair.primary, pair.shadow) == (original.primary, shadow.version);
        pairs.retain(|pair| !of_these(pair) || pair.sha256 == sha256);
        if !pairs.iter().any(of_these) {
            if pairs.len() >= PAIRS
                && let Some(quiet) = (0..pairs.len()).min_by_key(|i| pairs[*i].until)
            {
                pairs.remove(quiet);
            }
            pairs.push(PairFigures::new(original.primary, shadow.version, sha256));
        }
        if let Some(pair) = pairs.iter_mut().find(|pair| of_these(pair)) {
            pair.record(self.0.worst, original, outcome, comparison);
        }
    }

    /// As if so many pairs had been compared, of versions with these bytes: for tests of those who read them.
    #[cfg(test)]
    pub(crate) fn pretend(
        &self,
        model: &ModelName,
        (primary, shadow): (Version, Version),
        sha256: (String, String),
        Agreement { pairs, agreed }: Agreement,
    ) {
        let mut models = self.lock();
        let known = models.entry(model.clone()).or_default();
        known.retain(|pair| (pair.primary, pair.shadow) != (primary, shadow));
        known.push(PairFigures { pairs, agreed, ..PairFigures::new(primary, shadow, sha256) });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, Vec<PairFigures>>> {
        self.0.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PairFigures {
    fn new(primary: Version, shadow: Version, sha256: (String, String)) -> PairFigures {
        let now = Timestamp::now();
        PairFigures {
            primary,
            shadow,
            since: now,
            until: now,
            pairs: 0,
            agreed: 0,
            primary_failed: 0,
            shadow_failed: 0,
            both_failed: 0,
            outputs: Vec::new(),
            primary_latency: Latency::default(),
            shadow_latency: Latency::default(),
            worst: Vec::new(),
            sha256,
        }
    }

    /// Of the pairs that say anything, the share that agreed; `None` while there is none.
    #[must_use]
    pub fn agreement(&self) -> Option<f64> {
        let said = self.pairs - self.both_failed;
        (said > 0).then(|| self.agreed as f64 / said as f64)
    }

    fn record(
        &mut self,
        worst: usize,
        original: &Original,
        outcome: Result<(&Answer, Duration), &Failure>,
        comparison: Option<&Comparison>,
    ) {
        self.pairs += 1;
        self.until = Timestamp::now();
        match (&original.outcome, outcome) {
            (Ok(_), Ok((_, took))) => {
                self.primary_latency.record(original.infer);
                self.shadow_latency.record(took);
            }
            (Err(_), Ok(_)) => self.primary_failed += 1,
            (Ok(_), Err(_)) => self.shadow_failed += 1,
            (Err(_), Err(_)) => {
                self.both_failed += 1;
                return;
            }
        }
        let agreed = comparison.is_some_and(Comparison::agrees);
        self.agreed += u64::from(agreed);
        for output in comparison.iter().flat_map(|comparison| &comparison.outputs) {
            self.output(&output.name).record(&output.outcome);
        }
        if !agreed {
            let severity = Severity::of(comparison);
            let got = outcome.map(|(answer, _)| answer);
            worst::keep(&mut self.worst, worst, severity, || {
                let (id, arm) = (original.request_id.clone(), original.arm.clone());
                WorstPair::new(id, arm, original.outcome.as_ref(), got, comparison, severity)
            });
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
        self.elements += elements.count as u64;
        self.outside += elements.outside as u64;
        self.nonfinite += elements.nonfinite as u64;
        if let (Some(largest), Some(mean)) = (elements.largest, elements.mean) {
            self.largest = Some(self.largest.map_or(largest, |most| most.max(largest)));
            self.measured += elements.measured as u64;
            self.mean += (mean - self.mean) * (elements.measured as f64 / self.measured as f64);
        }
        if let Some(top1) = elements.top1 {
            self.top1_flipped += top1.flipped as u64;
            self.top1_rows += top1.rows as u64;
        }
    }

    /// The mean absolute difference of everything measured.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.measured > 0).then_some(self.mean)
    }

    /// The share of elements that agree; of none, all do.
    #[must_use]
    pub fn share_within(&self) -> f64 {
        if self.elements == 0 { 1.0 } else { (self.elements - self.outside) as f64 / self.elements as f64 }
    }
}

impl Default for Latency {
    fn default() -> Latency {
        // Two digits, from 1 µs on; it grows with what it is given.
        Latency(Histogram::new(2).expect("two digits are within what the histogram can"))
    }
}

impl Latency {
    fn record(&mut self, took: Duration) {
        // Fails only past 2^64 µs.
        let _ = self.0.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// In microseconds; `None` while there is none.
    #[must_use]
    pub fn mean_us(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.mean())
    }

    /// In microseconds, to two digits; `None` while there is none.
    #[must_use]
    pub fn quantile_us(&self, quantile: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile))
    }
}
