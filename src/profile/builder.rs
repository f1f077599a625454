//! Makes the profile of one column from its values.

use super::format::{Bins, ColumnProfile, Profile};
use crate::columns::{Cell, Kind};
use std::collections::HashMap;

/// Collects the values of one column: moments of all, counts of the most frequent texts, and a uniform sample of numbers (Vitter's algorithm
/// R) from which the bins are made. Its memory is bounded by the size of the sample, and by [`Builder::MAX_DISTINCT`] texts.
#[derive(Debug, Clone)]
pub struct Builder {
    rows: u64,
    sample: Vec<f64>,
    most: usize,
    random: fastrand::Rng,
    texts: HashMap<Box<str>, u64>,
    rest: u64,
    missing: u64,
    /// Of all finite numbers: count, mean, and the sum of squared differences (Welford).
    finite: u64,
    mean: f64,
    squares: f64,
    min: f64,
    max: f64,
    /// Any value was a text or a boolean.
    has_texts: bool,
}

/// Bins of a numeric column.
const BINS: usize = 20;
/// A column of numbers with at most this many different ones is categorical, where enough rows show it.
const FEW_VALUES: usize = 20;
const ENOUGH_ROWS: usize = 100;
/// Values of a categorical column that are written.
const TOP: usize = 50;

impl Builder {
    /// Texts that are told apart; more are counted as the rest.
    const MAX_DISTINCT: usize = 1000;

    /// `most`: numbers that the sample keeps. The same values in the same order give the same profile.
    #[must_use]
    pub fn new(most: usize) -> Builder {
        Builder {
            rows: 0,
            sample: Vec::new(),
            most: most.max(1),
            random: fastrand::Rng::with_seed(0x5eed),
            texts: HashMap::new(),
            rest: 0,
            missing: 0,
            finite: 0,
            mean: 0.0,
            squares: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            has_texts: false,
        }
    }

    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds the value of a row.
    pub fn add(&mut self, cell: Cell) {
        self.rows += 1;
        match cell {
            Cell::Number(number) => {
                if number.is_nan() {
                    self.missing += 1;
                }
                self.add_number(number);
            }
            Cell::Missing | Cell::Hidden => {
                self.missing += 1;
                self.add_number(f64::NAN);
            }
            Cell::Bool(bool) => self.add_text(if bool { "true" } else { "false" }),
            Cell::Text(text) => self.add_text(&String::from_utf8_lossy(text)),
        }
    }

    fn add_number(&mut self, number: f64) {
        if number.is_finite() {
            self.finite += 1;
            let before = number - self.mean;
            self.mean += before / self.finite as f64;
            self.squares += before * (number - self.mean);
            self.min = self.min.min(number);
            self.max = self.max.max(number);
        }
        if self.sample.len() < self.most {
            self.sample.push(number);
        } else {
            let at = self.random.u64(0..self.rows);
            if let Some(kept) = usize::try_from(at).ok().and_then(|at| self.sample.get_mut(at)) {
                *kept = number;
            }
        }
    }

    fn add_text(&mut self, text: &str) {
        self.has_texts = true;
        if let Some(count) = self.texts.get_mut(text) {
            *count += 1;
        } else if self.texts.len() < Builder::MAX_DISTINCT && text.len() <= Profile::MAX_TEXT {
            self.texts.insert(text.into(), 1);
        } else {
            self.rest += 1;
        }
    }

    /// The profile of the values so far. `kind`: of the column, where it is known.
    #[must_use]
    pub fn finish(&self, kind: Option<Kind>) -> ColumnProfile {
        if self.has_texts || matches!(kind, Some(Kind::Text | Kind::Bool)) {
            // Numbers beside texts, as in a CSV file, are counted with the rest.
            return self.categorical();
        }
        let mut finite: Vec<f64> = self.sample.iter().copied().filter(|number| number.is_finite()).collect();
        finite.sort_by(f64::total_cmp);
        let missing = self.sample.iter().filter(|number| number.is_nan()).count() as u64;
        let nonfinite = self.sample.len() as u64 - missing - finite.len() as u64;
        let distinct = finite.chunk_by(|a, b| a == b).count();
        let few = distinct <= FEW_VALUES && (finite.len() >= ENOUGH_ROWS || kind == Some(Kind::Integer));
        let bins = if few && distinct > 0 {
            let values = finite.chunk_by(|a, b| a == b).map(|same| ((same[0] + 0.0).to_string(), same.len() as u64));
            let mut values: Vec<_> = values.collect();
            values.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            Bins::Categorical { values, rest: 0 }
        } else {
            numeric(&finite)
        };
        let known = self.finite > 0;
        ColumnProfile {
            count: self.sample.len() as u64,
            missing,
            nonfinite,
            bins,
            mean: known.then_some(self.mean),
            variance: (self.finite > 1).then(|| self.squares / (self.finite - 1) as f64),
            min: known.then_some(self.min),
            max: known.then_some(self.max),
        }
    }

    fn categorical(&self) -> ColumnProfile {
        let mut values: Vec<(String, u64)> = self.texts.iter().map(|(text, n)| (text.to_string(), *n)).collect();
        values.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        let beyond: u64 = values.iter().skip(TOP).map(|(_, n)| n).sum();
        values.truncate(TOP);
        // The sample's numbers stand for all numbers that were seen.
        let counted: u64 = values.iter().map(|(_, n)| n).sum::<u64>() + beyond + self.rest + self.missing;
        let numbers = self.rows.saturating_sub(counted);
        ColumnProfile {
            count: counted + numbers,
            missing: self.missing,
            nonfinite: 0,
            bins: Bins::Categorical { values, rest: beyond + self.rest + numbers },
            mean: None,
            variance: None,
            min: None,
            max: None,
        }
    }
}

/// Bins of nearly equal mass, from sorted numbers. A number that is more frequent than a bin begins a bin of its own.
fn numeric(sorted: &[f64]) -> Bins {
    let mut edges: Vec<f64> = Vec::new();
    for i in 1..BINS {
        let Some(edge) = sorted.get(sorted.len() * i / BINS) else { break };
        if *edge > sorted[0] && edges.last().is_none_or(|last| edge > last) {
            edges.push(*edge);
        }
    }
    let mut counts = vec![0; edges.len() + 1];
    for number in sorted {
        counts[edges.partition_point(|edge| edge <= number)] += 1;
    }
    Bins::Numeric { edges, counts }
}
