//! Compares a candidate with the version that answered (the champion), on the same labelled rows.
//!
//! Both answered each row, so rows on which both are right or both are wrong say nothing about which is better. That makes paired comparisons much sharper than
//! those of two samples. Rows are taken to be independent of each other.

use statrs::distribution::{Binomial, ChiSquared, ContinuousCDF, DiscreteCDF, Normal, StudentsT};

/// The error of the first kind of each claim: a candidate that is not as good as claimed passes in at most this share of replays.
pub(super) const ALPHA: f64 = 0.05;
/// A candidate counts as the champion's equal where at most this share of all rows would tell them apart.
const ALIKE: f64 = 0.01;
/// Below this many rows on which one side alone is right, the two-sided p-value is exact, as in statsmodels.
const FEW: u64 = 25;

/// Rows whose label is a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PairedClasses {
    pub rows: u64,
    pub candidate_correct: u64,
    pub champion_correct: u64,
    /// Rows on which the candidate alone is right, and the champion alone.
    pub candidate_only: u64,
    pub champion_only: u64,
}

/// The absolute errors of rows whose label is a number: the candidate's minus the champion's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairedNumbers {
    pub rows: u64,
    pub mean: f64,
    /// The sum of squared distances from the mean (Welford).
    squares: f64,
}

/// How likely so many rows without any difference would be, did the two differ on one row in a hundred, or on `share` where that is more: `(1 - share)^rows`.
/// It is at most 5 % from 299 rows on.
#[must_use]
pub(super) fn p_alike(rows: u64, share: f64) -> f64 {
    (1.0 - share.clamp(ALIKE, 1.0)).powf(rows as f64)
}

impl PairedClasses {
    pub(super) fn add(&mut self, champion: bool, candidate: bool) {
        self.rows += 1;
        self.candidate_correct += u64::from(candidate);
        self.champion_correct += u64::from(champion);
        self.candidate_only += u64::from(candidate && !champion);
        self.champion_only += u64::from(champion && !candidate);
    }

    pub(super) fn merge(&mut self, other: &PairedClasses) {
        self.rows += other.rows;
        self.candidate_correct += other.candidate_correct;
        self.champion_correct += other.champion_correct;
        self.candidate_only += other.candidate_only;
        self.champion_only += other.champion_only;
    }

    /// The candidate's accuracy minus the champion's.
    #[must_use]
    pub fn difference(&self) -> f64 {
        (self.candidate_only as f64 - self.champion_only as f64) / self.rows as f64
    }

    /// `McNemar`'s test, one-sided and exact: how likely at least so many rows on which the candidate alone is right would be, were both equally good.
    /// 1 without discordant rows.
    #[must_use]
    pub fn p_better(&self) -> f64 {
        let discordant = self.candidate_only + self.champion_only;
        match (self.candidate_only.checked_sub(1), Binomial::new(0.5, discordant)) {
            (Some(fewer), Ok(binomial)) => binomial.sf(fewer),
            _ => 1.0,
        }
    }

    /// `McNemar`'s test, two-sided: exact below 25 discordant rows, else chi-square with continuity correction (as `statsmodels.stats.contingency_tables.mcnemar`
    /// with `exact=True` and `exact=False, correction=True`).
    #[must_use]
    pub fn p_two_sided(&self) -> f64 {
        let (b, c) = (self.candidate_only, self.champion_only);
        let discordant = b + c;
        if discordant < FEW {
            let Ok(binomial) = Binomial::new(0.5, discordant) else { return 1.0 };
            return (2.0 * binomial.cdf(b.min(c))).min(1.0);
        }
        let statistic = (b.abs_diff(c) as f64 - 1.0).max(0.0).powi(2) / discordant as f64;
        ChiSquared::new(1.0).map_or(1.0, |chi| chi.sf(statistic))
    }

    /// How likely a difference at least as good would be, were the true one `difference`: Tango's score test for paired proportions (Tango, "Equivalence test and
    /// confidence interval for the difference in proportions for the paired-sample design", 1998). For 0 it is `McNemar`'s statistic.
    #[must_use]
    pub fn p_above(&self, difference: f64) -> f64 {
        let normal = Normal::standard();
        self.score(difference).map_or(1.0, |z| normal.sf(z))
    }

    /// The lower end of the one-sided 95 % interval of the difference: the largest one that [`PairedClasses::p_above`] rejects.
    #[must_use]
    pub fn at_least(&self) -> f64 {
        let (mut low, mut high) = (-1.0, self.difference());
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            if self.p_above(middle) <= ALPHA {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    fn score(&self, delta: f64) -> Option<f64> {
        let (n, b, c) = (self.rows as f64, self.candidate_only as f64, self.champion_only as f64);
        // The maximum likelihood estimate of the share of rows on which the champion alone is right, under this difference.
        let (qa, qb, qc) = (2.0 * n, -b - c + (2.0 * n - b + c) * delta, -c * delta * (1.0 - delta));
        let share = ((qb * qb - 4.0 * qa * qc).max(0.0).sqrt() - qb) / (2.0 * qa);
        let variance = n * (2.0 * share + delta * (1.0 - delta));
        (variance > 0.0).then(|| (b - c - n * delta) / variance.sqrt())
    }
}

impl PairedNumbers {
    /// Adds a row: the candidate's absolute error minus the champion's.
    pub(super) fn add(&mut self, difference: f64) {
        self.rows += 1;
        let before = difference - self.mean;
        self.mean += before / self.rows as f64;
        self.squares += before * (difference - self.mean);
    }

    /// Chan, Golub and `LeVeque`, "Updating formulae and a pairwise algorithm", 1979.
    pub(super) fn merge(&mut self, other: &PairedNumbers) {
        let rows = self.rows + other.rows;
        if rows == 0 {
            return;
        }
        let (apart, share) = (other.mean - self.mean, other.rows as f64 / rows as f64);
        self.squares += other.squares + apart * apart * self.rows as f64 * share;
        self.mean += apart * share;
        self.rows = rows;
    }

    /// The upper end of the one-sided 95 % interval of the mean difference (Student's t). `None` with fewer than two rows.
    #[must_use]
    pub fn at_most(&self) -> Option<f64> {
        let n = self.rows as f64;
        if self.rows < 2 {
            return None;
        }
        let error = (self.squares / (n - 1.0) / n).sqrt();
        let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?.inverse_cdf(1.0 - ALPHA);
        Some(self.mean + t * error)
    }

    /// How likely a mean difference at least as small would be, were the true one `margin` (paired t-test, one-sided). Where every row has the same difference,
    /// the t-test says nothing: then it is how likely so many equal rows would be, were one in a hundred different.
    #[must_use]
    pub fn p_below(&self, margin: f64) -> f64 {
        let n = self.rows as f64;
        if self.rows < 2 {
            return 1.0;
        }
        let error = (self.squares / (n - 1.0) / n).sqrt();
        if error == 0.0 {
            return if self.mean < margin { p_alike(self.rows, ALIKE) } else { 1.0 };
        }
        StudentsT::new(0.0, 1.0, n - 1.0).map_or(1.0, |t| t.cdf((self.mean - margin) / error))
    }

    /// Whether both sides have the same error on every row.
    #[must_use]
    pub(super) fn are_equal(&self) -> bool {
        self.rows > 0 && self.mean == 0.0 && self.squares == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(rows: u64, candidate_only: u64, champion_only: u64) -> PairedClasses {
        let both = (rows - candidate_only - champion_only) / 2;
        PairedClasses {
            rows,
            candidate_correct: both + candidate_only,
            champion_correct: both + champion_only,
            candidate_only,
            champion_only,
        }
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() <= 1e-9 + 1e-7 * expected.abs(), "got {got}, expected {expected}");
    }

    /// The values are those of scipy and statsmodels, made by `tests/python/paired_values.py`.
    #[test]
    fn tests_of_paired_classes_agree_with_scipy_and_statsmodels() {
        for line in include_str!("paired_values.csv").lines().filter(|line| line.starts_with("classes,")) {
            let (counts, values): (Vec<&str>, Vec<&str>) =
                (line.split(',').skip(1).take(3).collect(), line.split(',').skip(4).collect());
            let counts: Vec<u64> = counts.iter().map(|v| v.parse().unwrap()).collect();
            let values: Vec<f64> = values.iter().map(|v| v.parse().unwrap()).collect();
            let [p_better, p_two_sided, margin, p_above, at_least] = values[..] else { panic!("{line}") };
            let paired = classes(counts[0], counts[1], counts[2]);
            close(paired.p_better(), p_better);
            close(paired.p_two_sided(), p_two_sided);
            close(paired.p_above(margin), p_above);
            assert!((paired.at_least() - at_least).abs() < 1e-6, "{} {at_least}", paired.at_least());
        }
    }

    #[test]
    fn tests_of_paired_numbers_agree_with_scipy() {
        let mut checked = 0;
        for line in include_str!("paired_values.csv").lines().filter(|line| line.starts_with("numbers,")) {
            let values: Vec<f64> = line.split(',').skip(1).map(|v| v.parse().unwrap()).collect();
            let [margin, p_below, at_most, differences @ ..] = &values[..] else { panic!("{line}") };
            let (mut whole, mut first, mut second) =
                (PairedNumbers::default(), PairedNumbers::default(), PairedNumbers::default());
            for (i, d) in differences.iter().enumerate() {
                whole.add(*d);
                if i % 3 == 0 { first.add(*d) } else { second.add(*d) }
            }
            first.merge(&second);
            for paired in [whole, first] {
                close(paired.p_below(*margin), *p_below);
                close(paired.at_most().unwrap(), *at_most);
            }
            checked += 1;
        }
        assert!(checked >= 4);
    }

    #[test]
    fn without_rows_nothing_is_shown() {
        let none = PairedClasses::default();
        assert_eq!((none.p_better(), none.p_two_sided()), (1.0, 1.0));
        assert_eq!((PairedNumbers::default().at_most(), PairedNumbers::default().p_below(1.0)), (None, 1.0));
        let mut one = PairedNumbers::default();
        one.add(-5.0);
        assert_eq!((one.at_most(), one.p_below(0.0)), (None, 1.0), "one row has no spread");
        assert_eq!(classes(100, 0, 0).p_better(), 1.0);
    }
}
