//! Confidence sequences: confidence intervals that are valid at all times at once, with a stated probability of ever being wrong.
//!
//! Both are mixture martingales (H. Robbins, "Statistical methods related to the law of the iterated logarithm", Ann. Math. Stat.
//! 41, 1970): the likelihood of the observations averaged over many values, divided by their likelihood under one value. Under that
//! value the quotient is a non-negative supermartingale that starts at 1. By Ville's inequality it ever reaches 1/α with probability
//! at most α, however often it is checked. The values for which it has not reached 1/α form the confidence sequence.

use statrs::function::beta::ln_beta;

/// Requests of one side, and how many of them were bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) bad: u64,
}

impl Counts {
    pub(super) fn add(&mut self, more: Counts) {
        self.requests += more.requests;
        self.bad += more.bad;
    }
}

/// The ratio of two rates: how many times as often the candidate's requests are bad as the control's.
///
/// In one observation with `n_c` and `n_0` requests, of which `x_c` and `x_0` are bad, a ratio ρ has the likelihood
/// `q^x_c (1-q)^x_0` with `q = ρ n_c / (ρ n_c + n_0)`: each bad request is the candidate's with probability q. The rates themselves do
/// not appear and may drift (M. Lindon and A. Malek, "Anytime-Valid Inference for Multinomial Count Data", `NeurIPS` 2022; M. Lindon,
/// C. Sanden and V. Shirikian, "Rapid Regression Detection in Software Deployments through Sequential Testing", KDD 2022).
///
/// Why it is a supermartingale for any rates: let the requests be bad independently, the candidate's at a mean rate of ρp and the
/// control's at p, and let `q'` be another ratio's probability. With `1 + u <= e^u` for each request, the expected quotient
/// `(q'/q)^x_c ((1-q')/(1-q))^x_0` is at most `exp(n_c ρp (q'/q - 1) + n_0 p ((1-q')/(1-q) - 1))`. As `n_c ρp : n_0 p = q : 1-q`, the
/// exponent is `(n_c ρp + n_0 p) (q' - q + (1-q') - (1-q)) = 0`.
#[derive(Debug, Clone)]
pub(crate) struct RatioSequence {
    /// The largest ratio that is allowed.
    limit: f64,
    /// The log-likelihood of each ratio of the grid.
    log_likelihood: [f64; GRID],
    /// The log-likelihood of the limit.
    at_limit: f64,
}

/// Ratios from 1/64 to 64, four per doubling.
const GRID: usize = 2 * 6 * 4 + 1;

fn grid_ratio(index: usize) -> f64 {
    2f64.powf((index as f64 - (GRID / 2) as f64) / 4.0)
}

impl RatioSequence {
    /// `limit` must be positive and finite.
    pub(crate) fn new(limit: f64) -> RatioSequence {
        RatioSequence { limit, log_likelihood: [0.0; GRID], at_limit: 0.0 }
    }

    /// Adds new requests. Without requests on both sides they say nothing about the ratio and are ignored.
    pub(crate) fn observe(&mut self, candidate: Counts, control: Counts) {
        if candidate.requests == 0 || control.requests == 0 || candidate.bad + control.bad == 0 {
            return;
        }
        self.observe_bad(candidate.requests as f64 / control.requests as f64, candidate.bad, control.bad);
    }

    /// Adds what was bad. `exposure`: how many of the units belong to the candidate for each one of the control. If it is the quotient of
    /// the shares by which units were assigned at random, the units need not be counted, and the expected quotient of likelihoods under
    /// a ratio of 1 is exactly 1: a unit that is bad on either side is the candidate's with the probability of its share.
    pub(crate) fn observe_bad(&mut self, exposure: f64, candidate: u64, control: u64) {
        if candidate + control == 0 {
            return;
        }
        let (x_c, x_0) = (candidate as f64, control as f64);
        // With e the quotient of the requests: ln q = ln(ρe) - ln(1 + ρe) and ln(1-q) = -ln(1 + ρe).
        let of = |ratio: f64| x_c * (ratio * exposure).ln() - (x_c + x_0) * (ratio * exposure).ln_1p();
        for (index, log_likelihood) in self.log_likelihood.iter_mut().enumerate() {
            *log_likelihood += of(grid_ratio(index));
        }
        self.at_limit += of(self.limit);
    }

    /// The ratios that are not rejected at level α, rounded outwards to the grid. An end at which nothing is rejected is 0 or infinite.
    pub(crate) fn interval(&self, alpha: f64) -> (f64, f64) {
        let threshold = self.log_mixture() + alpha.ln();
        // The best ratio is at least as likely as the mixture, so it is never rejected. Search outwards from it.
        let best = self.best();
        let low = (0..best).rev().find(|index| self.log_likelihood[*index] <= threshold).map_or(0.0, grid_ratio);
        let high =
            (best..GRID).find(|index| self.log_likelihood[*index] <= threshold).map_or(f64::INFINITY, grid_ratio);
        (low, high)
    }

    /// Whether the whole interval at level α lies above the limit.
    ///
    /// The log-likelihood is concave in the logarithm of the ratio. So if the limit is rejected and the best ratio lies above it, every
    /// ratio below the limit is rejected too.
    pub(crate) fn exceeds_limit(&self, alpha: f64) -> bool {
        self.at_limit <= self.log_mixture() + alpha.ln() && grid_ratio(self.best()) > self.limit
    }

    /// The logarithm of the likelihood averaged over the grid.
    fn log_mixture(&self) -> f64 {
        let max = self.log_likelihood.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.log_likelihood.iter().map(|log_likelihood| (log_likelihood - max).exp()).sum();
        max + (sum / GRID as f64).ln()
    }

    /// The index of the most likely ratio.
    fn best(&self) -> usize {
        let by_likelihood = |a: &usize, b: &usize| self.log_likelihood[*a].total_cmp(&self.log_likelihood[*b]);
        (0..GRID).max_by(by_likelihood).unwrap_or(GRID / 2)
    }
}

/// One rate, from independent trials. The mixture is Jeffreys' Beta(½, ½).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RateSequence {
    counts: Counts,
}

impl RateSequence {
    /// A sequence that has observed this.
    pub(super) fn of(counts: Counts) -> RateSequence {
        RateSequence { counts }
    }

    pub(crate) fn observe(&mut self, more: Counts) {
        self.counts.add(more);
    }

    /// Everything observed so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether the whole interval at level α lies above `limit`.
    pub(crate) fn exceeds(&self, limit: f64, alpha: f64) -> bool {
        let Counts { requests, bad } = self.counts;
        requests > 0 && bad as f64 / requests as f64 > limit && self.is_rejected(limit, alpha)
    }

    /// The rates that are not rejected at level α.
    pub(crate) fn interval(&self, alpha: f64) -> (f64, f64) {
        let Counts { requests, bad } = self.counts;
        if requests == 0 {
            return (0.0, 1.0);
        }
        let rate = bad as f64 / requests as f64;
        // Bisection between the observed rate, which is never rejected, and the end.
        let bound = |end: f64| {
            if !self.is_rejected(end, alpha) {
                return end;
            }
            let (mut inside, mut outside) = (rate, end);
            for _ in 0..60 {
                let middle = f64::midpoint(inside, outside);
                if self.is_rejected(middle, alpha) {
                    outside = middle;
                } else {
                    inside = middle;
                }
            }
            outside
        };
        (bound(0.0), bound(1.0))
    }

    fn is_rejected(&self, rate: f64, alpha: f64) -> bool {
        let Counts { requests, bad } = self.counts;
        let (bad, good) = (bad as f64, (requests - bad) as f64);
        // 0 ln 0 is 0 here: an outcome of probability 0 that did not occur.
        let term = |count: f64, probability: f64| if count == 0.0 { 0.0 } else { count * probability.ln() };
        let log_likelihood = term(bad, rate) + term(good, 1.0 - rate);
        let log_mixture = ln_beta(bad + 0.5, good + 0.5) - ln_beta(0.5, 0.5);
        log_likelihood <= log_mixture + alpha.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(requests: u64, bad: u64) -> Counts {
        Counts { requests, bad }
    }

    #[test]
    fn without_observations_nothing_is_rejected() {
        let sequence = RatioSequence::new(1.0);
        assert_eq!(sequence.interval(0.05), (0.0, f64::INFINITY));
        assert!(!sequence.exceeds_limit(0.05));
        assert_eq!(RateSequence::default().interval(0.05), (0.0, 1.0));
    }

    #[test]
    fn five_failures_of_a_small_arm_and_none_of_the_other_exceed_the_limit() {
        let mut sequence = RatioSequence::new(1.0);
        let mut needed = 0;
        while !sequence.exceeds_limit(0.01) {
            sequence.observe(counts(1, 1), counts(19, 0));
            needed += 1;
        }
        assert!(needed <= 5, "{needed}");
        let (low, high) = sequence.interval(0.01);
        assert!(low >= 1.0 && high.is_infinite(), "{low} to {high}");
    }

    #[test]
    fn a_doubled_rate_is_detected_and_its_ratio_is_in_the_interval() {
        let mut sequence = RatioSequence::new(1.0);
        for _ in 0..100 {
            sequence.observe(counts(1000, 20), counts(1000, 10));
        }
        assert!(sequence.exceeds_limit(0.01));
        let (low, high) = sequence.interval(0.01);
        assert!(1.5 < low && low < 2.0 && 2.0 < high && high < 2.5, "{low} to {high}");
        let mut fewer = RatioSequence::new(1.0);
        (0..100).for_each(|_| fewer.observe(counts(1000, 10), counts(1000, 20)));
        assert!(!fewer.exceeds_limit(0.01), "a lower rate does not exceed the limit");
        let mut allowed = RatioSequence::new(3.0);
        (0..100).for_each(|_| allowed.observe(counts(1000, 20), counts(1000, 10)));
        assert!(!allowed.exceeds_limit(0.01), "a ratio of 3 is allowed");
    }

    #[test]
    fn a_rate_exceeds_its_limit_only_with_enough_evidence() {
        let mut rate = RateSequence::default();
        rate.observe(counts(1000, 10));
        let (low, high) = rate.interval(0.05);
        assert!(low > 0.002 && low < 0.01 && high > 0.01 && high < 0.03, "{low} to {high}");
        assert!(!rate.exceeds(0.008, 0.05));
        assert!(rate.exceeds(0.001, 0.05));
        let mut none = RateSequence::default();
        none.observe(counts(10, 0));
        assert!(!none.exceeds(0.0, 0.05));
        none.observe(counts(1, 1));
        assert!(none.exceeds(0.0, 0.05), "with a limit of 0 one bad request is enough");
    }

    proptest::proptest! {
        #[test]
        fn a_sequence_that_exceeds_its_limit_has_its_interval_above_the_limit(
            observations in proptest::collection::vec((1..2000u64, 0..30u64, 1..2000u64, 0..30u64), 1..30),
            limit in 0.2..5.0f64,
            alpha in 0.0001..0.2f64,
        ) {
            let mut sequence = RatioSequence::new(limit);
            for (n_c, percent_c, n_0, percent_0) in observations {
                sequence.observe(counts(n_c, n_c * percent_c / 100), counts(n_0, n_0 * percent_0 / 100));
            }
            let (low, high) = sequence.interval(alpha);
            proptest::prop_assert!(low <= high);
            // The interval is rounded outwards by one step of the grid.
            if sequence.exceeds_limit(alpha) {
                proptest::prop_assert!(low * 2f64.powf(0.5) >= limit, "{low} to {high} at a limit of {limit}");
            }
        }
    }
}
