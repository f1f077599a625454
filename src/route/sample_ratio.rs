//! Whether a split divides requests as it says: the sample-ratio check.

use statrs::function::gamma::gamma_ur;

/// What Pearson's chi-squared test says of the counts of a split's arms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRatio {
    /// Over all arms.
    pub requests: u64,
    /// Over the arms that have a weight.
    pub chi_squared: f64,
    /// Arms that have a weight, less one.
    pub degrees_of_freedom: usize,
    /// How often a sound split is at least as far off.
    pub p_value: f64,
    pub verdict: Ratio,
}

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ratio {
    Fits,
    /// A sound split would be this far off less than once in a thousand times, or an arm without weight got requests.
    Mismatch,
    /// An arm is expected to have fewer than five requests by now: too few for the test's approximation.
    TooFew,
}

/// Below this a mismatch is said. The usual one for such checks, stricter than 0.05, as people look often.
const P_MISMATCH: f64 = 0.001;
/// The least expected count that the chi-squared approximation is trusted with (Cochran 1954).
const LEAST_EXPECTED: f64 = 5.0;

impl SampleRatio {
    /// Holds the requests of each arm against its weight.
    ///
    /// The statistic is `Σ (observed - expected)² / expected`, its p-value the upper tail of the chi-squared distribution: the
    /// regularised incomplete gamma function `Q(df / 2, χ² / 2)`.
    #[must_use]
    pub fn of(weights: &[f64], counts: &[u64]) -> SampleRatio {
        let weighted = || weights.iter().zip(counts).filter(|(weight, _)| **weight > 0.0);
        let requests = counts.iter().sum();
        let strays = counts.iter().zip(weights).any(|(count, weight)| *count > 0 && *weight <= 0.0);
        let of_weighted: u64 = weighted().map(|(_, count)| count).sum();
        let sum: f64 = weights.iter().sum();
        let expected = |weight: f64| of_weighted as f64 * weight / sum;
        let chi_squared = if of_weighted == 0 {
            0.0
        } else {
            weighted().map(|(weight, count)| (*count as f64 - expected(*weight)).powi(2) / expected(*weight)).sum()
        };
        let degrees_of_freedom = weighted().count().saturating_sub(1);
        let p_value = if degrees_of_freedom == 0 || chi_squared == 0.0 {
            1.0
        } else {
            gamma_ur(degrees_of_freedom as f64 / 2.0, chi_squared / 2.0)
        };
        let too_few = weighted().any(|(weight, _)| expected(*weight) < LEAST_EXPECTED);
        let verdict = match (strays, too_few) {
            (true, _) => Ratio::Mismatch,
            (false, true) => Ratio::TooFew,
            (false, false) if p_value < P_MISMATCH => Ratio::Mismatch,
            (false, false) => Ratio::Fits,
        };
        SampleRatio { requests, chi_squared, degrees_of_freedom, p_value, verdict }
    }
}

impl Ratio {
    /// As the admin API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Ratio::Fits => "ok",
            Ratio::Mismatch => "mismatch",
            Ratio::TooFew => "too_few",
        }
    }
}
