//! The sample-ratio check: whether the arms of a split got the shares of keys or requests that their weights ask for.

use statrs::function::gamma::checked_gamma_ur;

/// The result of Pearson's chi-squared test on the counts of a split's arms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRatio {
    /// Keys or requests of all arms.
    pub units: u64,
    /// The statistic over the arms that have a weight.
    pub chi_squared: f64,
    /// The number of arms that have a weight, minus one.
    pub degrees_of_freedom: usize,
    /// The probability that a correct split is at least as far off.
    pub p_value: f64,
    pub verdict: Verdict,
}

/// What the test concludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Fits,
    /// A correct split would be this far off less than once in a thousand times, or an arm without weight got requests.
    Mismatch,
    /// The expected count of some arm is below five: too small for the test's approximation.
    TooFew,
}

/// A p-value below this is a mismatch. This is the usual level for sample-ratio checks. It is stricter than 0.05 because people
/// look at the result often.
const P_MISMATCH: f64 = 0.001;
/// The smallest expected count for which the chi-squared approximation is good enough (Cochran 1954).
const LEAST_EXPECTED: f64 = 5.0;

impl SampleRatio {
    /// Compares the keys or requests of each arm with its weight. They have to be independent of each other.
    ///
    /// The statistic is `Σ (observed - expected)² / expected`. The p-value is the upper tail of the chi-squared distribution: the
    /// regularised incomplete gamma function `Q(df / 2, χ² / 2)`.
    #[must_use]
    pub fn of(weights: &[f64], counts: &[u64]) -> SampleRatio {
        let weighted = || weights.iter().zip(counts).filter(|(weight, _)| **weight > 0.0);
        let units = counts.iter().sum();
        let unexpected = counts.iter().zip(weights).any(|(count, weight)| *count > 0 && *weight <= 0.0);
        let of_weighted: u64 = weighted().map(|(_, count)| count).sum();
        let sum: f64 = weights.iter().sum();
        // Divided first: the product of a large weight and a count could overflow.
        let expected = |weight: f64| of_weighted as f64 * (weight / sum);
        // The expected count of an arm with a tiny share may underflow to 0; `too_few` covers such an arm.
        let terms = weighted().filter(|(weight, _)| expected(**weight) > 0.0);
        let chi_squared: f64 =
            terms.map(|(weight, count)| (*count as f64 - expected(*weight)).powi(2) / expected(*weight)).sum();
        // The sum of nothing is -0.
        let chi_squared = chi_squared + 0.0;
        let degrees_of_freedom = weighted().count().saturating_sub(1);
        let p_value = if degrees_of_freedom == 0 || chi_squared == 0.0 {
            1.0
        } else {
            // An error means that the statistic is infinite.
            checked_gamma_ur(degrees_of_freedom as f64 / 2.0, chi_squared / 2.0).unwrap_or(0.0)
        };
        let too_few = weighted().any(|(weight, _)| expected(*weight) < LEAST_EXPECTED);
        let verdict = match (unexpected, too_few) {
            (true, _) => Verdict::Mismatch,
            (false, true) => Verdict::TooFew,
            (false, false) if p_value < P_MISMATCH => Verdict::Mismatch,
            (false, false) => Verdict::Fits,
        };
        SampleRatio { units, chi_squared, degrees_of_freedom, p_value, verdict }
    }
}

impl Verdict {
    /// The verdict as the admin API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Fits => "ok",
            Verdict::Mismatch => "mismatch",
            Verdict::TooFew => "too_few",
        }
    }
}
