//! Sums by unit, in maps that use the hashes as they are.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// By the hash of a unit.
pub(super) type ByUnit<T> = HashMap<u64, T, BuildHasherDefault<Given>>;

/// A set of units.
pub type Units = std::collections::HashSet<u64, BuildHasherDefault<Given>>;

/// Units are hashes already.
#[derive(Debug, Default)]
pub struct Given(u64);

impl Hasher for Given {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used: units are written as one number.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, unit: u64) {
        // Requests have 32 random bits, and the table looks at both ends.
        self.0 = unit ^ unit.rotate_left(32);
    }
}

/// The number of units, and the standard error of an estimate whose error is the sum of these influences: √(Σ (sum of a unit)² · K / (K - 1)).
/// `None` for fewer than two units.
pub(super) fn standard_error(influences: impl Iterator<Item = (u64, f64)>) -> (usize, Option<f64>) {
    let mut sums: ByUnit<f64> = ByUnit::default();
    for (unit, influence) in influences {
        *sums.entry(unit).or_default() += influence;
    }
    let units = sums.len() as f64;
    let squares: f64 = sums.values().map(|sum| sum * sum).sum();
    (sums.len(), (sums.len() > 1).then(|| (squares * units / (units - 1.0)).sqrt()))
}
