//! Business values summed by unit: the sticky key of a row, or the request where it has none. Rows of one user are related, so the
//! standard error of a mean comes from how the users differ (docs/EVIDENCE.md).

use std::collections::{BTreeMap, HashMap};
use xxhash_rust::xxh3::xxh3_64;

/// The values of one version on one arm, by name and unit.
#[derive(Debug, Default)]
pub(super) struct Units {
    by_name: BTreeMap<Box<str>, HashMap<Unit, Sum>>,
    /// Units of all names together; a unit counts for each of its names.
    held: usize,
    /// Only units whose hash begins with this many zero bits are kept.
    halvings: u32,
    any_key: bool,
}

/// A hash of the key or of the request id.
pub(super) type Unit = u64;

/// Rows with a value of one unit.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    rows: u64,
    value: f64,
}

/// How exactly a mean over rows is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByUnit {
    /// The unit is the sticky key; else the request.
    pub is_key: bool,
    /// Units that are kept.
    pub units: u64,
    /// The share of units that is kept.
    pub followed: f64,
    /// `None` for fewer than two units.
    pub standard_error: Option<f64>,
}

/// The most units of an arm, over all names. One takes about 50 bytes.
const MAX_UNITS: usize = 16_384;

/// The unit of a row.
pub(super) fn unit_of(route_key: Option<&str>, request_id: &str) -> Unit {
    xxh3_64(route_key.unwrap_or(request_id).as_bytes())
}

impl Units {
    /// Notes whether rows have a sticky key.
    pub(super) fn seen(&mut self, has_key: bool) {
        self.any_key |= has_key;
    }

    /// Adds the values of a row.
    pub(super) fn add<'v>(&mut self, unit: Unit, values: impl Iterator<Item = (&'v str, f64)>) {
        for (name, value) in values {
            if unit.leading_zeros() < self.halvings {
                return;
            }
            if !self.by_name.contains_key(name) {
                self.by_name.insert(name.into(), HashMap::new());
            }
            let Some(units) = self.by_name.get_mut(name) else { return };
            let known = units.len();
            let sum = units.entry(unit).or_default();
            sum.rows += 1;
            sum.value += value;
            self.held += units.len() - known;
            while self.held > MAX_UNITS && self.halvings < u64::BITS {
                self.halve();
            }
        }
    }

    /// Removes the values of a row that were added before.
    pub(super) fn remove<'v>(&mut self, unit: Unit, values: impl Iterator<Item = (&'v str, f64)>) {
        for (name, value) in values {
            let Some(units) = self.by_name.get_mut(name) else { continue };
            let Some(sum) = units.get_mut(&unit) else { continue };
            sum.rows -= 1;
            sum.value -= value;
            if sum.rows == 0 {
                units.remove(&unit);
                self.held -= 1;
            }
        }
    }

    fn halve(&mut self) {
        self.halvings += 1;
        let halvings = self.halvings;
        for units in self.by_name.values_mut() {
            units.retain(|unit, _| unit.leading_zeros() >= halvings);
            units.shrink_to_fit();
        }
        self.held = self.by_name.values().map(HashMap::len).sum();
    }

    /// How exactly the mean of a value is known, of which there are `rows` in all.
    ///
    /// With S and N of each of K units, the standard error of r = ΣS / ΣN is √(Σ(S - rN)² K / (K-1)) / ΣN (the delta method for a
    /// ratio). Where only a share of the units is kept, the sum over all is estimated from it.
    pub(super) fn of(&self, name: &str, rows: u64, mean: f64) -> ByUnit {
        let followed = (-f64::from(self.halvings)).exp2();
        let none = HashMap::new();
        let sums = self.by_name.get(name).unwrap_or(&none);
        let units = sums.len() as f64;
        let squares: f64 = sums.values().map(|sum| (sum.value - mean * sum.rows as f64).powi(2)).sum();
        let error = || (squares / followed * units / (units - 1.0)).sqrt() / rows as f64;
        ByUnit {
            is_key: self.any_key,
            units: sums.len() as u64,
            followed,
            standard_error: (sums.len() > 1 && rows > 0).then(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revenue(value: f64) -> impl Iterator<Item = (&'static str, f64)> {
        std::iter::once(("revenue", value))
    }

    #[test]
    fn the_standard_error_comes_from_the_differences_of_units() {
        let mut units = Units::default();
        units.seen(true);
        // Ten users with ten equal rows each: as exact as ten rows, and not as a hundred.
        for user in 0..10_u32 {
            for _ in 0..10 {
                units.add(unit_of(Some(&user.to_string()), ""), revenue(f64::from(user)));
            }
        }
        let by_unit = units.of("revenue", 100, 4.5);
        assert_eq!((by_unit.is_key, by_unit.units, by_unit.followed), (true, 10, 1.0));
        // The standard deviation of 0 to 9 divided by the root of 10.
        let expected = (82.5_f64 / 9.0 / 10.0).sqrt();
        assert!((by_unit.standard_error.unwrap() - expected).abs() < 1e-12, "{by_unit:?}");
        assert_eq!(units.of("clicked", 0, 0.0).standard_error, None);
    }

    #[test]
    fn values_that_are_removed_leave_nothing() {
        let mut units = Units::default();
        let (a, b) = (unit_of(None, "a"), unit_of(None, "b"));
        units.add(a, revenue(3.0));
        units.add(a, revenue(5.0));
        units.add(b, revenue(1.0));
        units.remove(a, revenue(3.0));
        units.remove(b, revenue(1.0));
        assert_eq!((units.of("revenue", 1, 5.0).units, units.held), (1, 1));
        units.remove(b, revenue(1.0));
        assert_eq!(units.held, 1, "a unit that is not there is not removed");
    }

    #[test]
    fn more_units_than_fit_are_sampled_and_the_error_stays_the_same() {
        let mut units = Units::default();
        let rng = &mut fastrand::Rng::with_seed(1);
        let n = 5 * MAX_UNITS as u64;
        let (mut sum, mut squares) = (0.0, 0.0);
        for user in 0..n {
            let value = rng.f64();
            (sum, squares) = (sum + value, squares + value * value);
            units.add(unit_of(Some(&user.to_string()), ""), revenue(value));
        }
        let mean = sum / n as f64;
        let by_unit = units.of("revenue", n, mean);
        assert!((by_unit.followed - 0.125).abs() < 1e-12 && units.held <= MAX_UNITS, "{by_unit:?}");
        let exact = ((squares / n as f64 - mean * mean) / n as f64).sqrt();
        let ratio = by_unit.standard_error.unwrap() / exact;
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
    }
}
