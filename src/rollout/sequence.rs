//! Confidence sequences: intervals that hold the true value at all times at once, with a stated probability of ever failing to.
//!
//! Both are mixture martingales (H. Robbins, "Statistical methods related to the law of the iterated logarithm", Ann. Math. Stat.
//! 41, 1970): the likelihood of what was seen, averaged over many values, against its likelihood under one value. Under that value
//! the quotient is a non-negative supermartingale that begins at 1, so by Ville's inequality it ever reaches 1/α with probability at
//! most α, however often one looks and whenever one stops. The values it has not reached 1/α for are the confidence sequence.

use statrs::function::beta::ln_beta;

/// Requests of one side in one look, and how many of them were bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub requests: u64,
    pub bad: u64,
}

/// How much more often the candidate's requests are bad than the control's: the ratio of the two rates.
///
/// In a look with `n_c` and `n_0` requests, of which `x_c` and `x_0` are bad, a ratio ρ is given the likelihood
/// `q^x_c (1-q)^x_0` with `q = ρ n_c / (ρ n_c + n_0)`: each bad request is the candidate's with probability q. It says nothing of the
/// rates themselves, which may drift with the day (M. Lindon and A. Malek, "Anytime-Valid Inference for Multinomial Count Data",
/// `NeurIPS` 2022; M. Lindon, C. Sanden and V. Shirikian, "Rapid Regression Detection in Software Deployments through Sequential
/// Testing", KDD 2022).
///
/// Why it is a supermartingale, for any rates: let the requests be bad independently, the candidate's at a mean rate of ρp and the
/// control's at p, and let `q'` be another ratio's probability. With `1 + u <= e^u` for each request, the expected quotient
/// `(q'/q)^x_c ((1-q')/(1-q))^x_0` is at most `exp(n_c ρp (q'/q - 1) + n_0 p ((1-q')/(1-q) - 1))`. As `n_c ρp : n_0 p = q : 1-q`, the
/// exponent is `(n_c ρp + n_0 p) (q' - q + (1-q') - (1-q)) = 0`.
#[derive(Debug, Clone)]
pub struct RatioSequence {
    /// The ratio that must not be exceeded.
    limit: f64,
    /// The log-likelihood of each ratio of the grid, and of the limit.
    likelihood: [f64; GRID],
    at_limit: f64,
}

/// Ratios from 1/64 to 64, four to a doubling.
const GRID: usize = 2 * 6 * 4 + 1;

fn ratio_of(place: usize) -> f64 {
    2f64.powf((place as f64 - (GRID / 2) as f64) / 4.0)
}

impl RatioSequence {
    /// `limit` is positive and finite.
    #[must_use]
    pub fn new(limit: f64) -> RatioSequence {
        RatioSequence { limit, likelihood: [0.0; GRID], at_limit: 0.0 }
    }

    /// Takes in a look. A look in which one side had no request says nothing of the ratio.
    pub fn observe(&mut self, candidate: Counts, control: Counts) {
        if candidate.requests == 0 || control.requests == 0 || candidate.bad + control.bad == 0 {
            return;
        }
        let exposure = candidate.requests as f64 / control.requests as f64;
        let (x_c, x_0) = (candidate.bad as f64, control.bad as f64);
        // ln q = ln(ρe) - ln(1 + ρe) and ln(1-q) = -ln(1 + ρe), with e the quotient of the requests.
        let of = |ratio: f64| x_c * (ratio * exposure).ln() - (x_c + x_0) * (ratio * exposure).ln_1p();
        for (place, likelihood) in self.likelihood.iter_mut().enumerate() {
            *likelihood += of(ratio_of(place));
        }
        self.at_limit += of(self.limit);
    }

    /// The ratios that are not ruled out at level α, rounded outwards to the grid; infinite where nothing rules out more.
    #[must_use]
    pub fn interval(&self, alpha: f64) -> (f64, f64) {
        let least = self.mixture() + alpha.ln();
        // The best ratio is as likely as the mixture at least, so it is never ruled out; outwards from it until one is.
        let best = self.best();
        let low = (0..best).rev().find(|place| self.likelihood[*place] <= least).map_or(0.0, ratio_of);
        let high = (best..GRID).find(|place| self.likelihood[*place] <= least).map_or(f64::INFINITY, ratio_of);
        (low, high)
    }

    /// Whether the ratio is above the limit, at level α: every ratio up to the limit is ruled out.
    ///
    /// The log-likelihood is concave in the ratio's logarithm, so when the limit is ruled out and the best ratio lies above it, all
    /// below the limit are too.
    #[must_use]
    pub fn is_surely_above(&self, alpha: f64) -> bool {
        self.at_limit <= self.mixture() + alpha.ln() && ratio_of(self.best()) > self.limit
    }

    /// The logarithm of the likelihood averaged over the grid.
    fn mixture(&self) -> f64 {
        let most = self.likelihood.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.likelihood.iter().map(|likelihood| (likelihood - most).exp()).sum();
        most + (sum / GRID as f64).ln()
    }

    fn best(&self) -> usize {
        let by_likelihood = |a: &usize, b: &usize| self.likelihood[*a].total_cmp(&self.likelihood[*b]);
        (0..GRID).max_by(by_likelihood).unwrap_or(GRID / 2)
    }
}

/// How often something happens: one rate, from independent trials. The mixture is Jeffreys' Beta(½, ½).
#[derive(Debug, Clone, Copy, Default)]
pub struct RateSequence {
    seen: Counts,
}

impl RateSequence {
    pub fn observe(&mut self, more: Counts) {
        self.seen.requests += more.requests;
        self.seen.bad += more.bad;
    }

    #[must_use]
    pub fn seen(&self) -> Counts {
        self.seen
    }

    /// Whether the rate is above `limit`, at level α.
    #[must_use]
    pub fn is_surely_above(&self, limit: f64, alpha: f64) -> bool {
        let Counts { requests, bad } = self.seen;
        requests > 0 && bad as f64 / requests as f64 > limit && self.is_ruled_out(limit, alpha)
    }

    /// The rates that are not ruled out at level α.
    #[must_use]
    pub fn interval(&self, alpha: f64) -> (f64, f64) {
        let Counts { requests, bad } = self.seen;
        if requests == 0 {
            return (0.0, 1.0);
        }
        let rate = bad as f64 / requests as f64;
        // Between the rate seen, which is never ruled out, and the end, which is or is the bound.
        let bound = |end: f64| {
            if !self.is_ruled_out(end, alpha) {
                return end;
            }
            let (mut inside, mut outside) = (rate, end);
            for _ in 0..60 {
                let middle = f64::midpoint(inside, outside);
                if self.is_ruled_out(middle, alpha) {
                    outside = middle;
                } else {
                    inside = middle;
                }
            }
            outside
        };
        (bound(0.0), bound(1.0))
    }

    fn is_ruled_out(&self, rate: f64, alpha: f64) -> bool {
        let Counts { requests, bad } = self.seen;
        let (bad, good) = (bad as f64, (requests - bad) as f64);
        // 0 ln 0 is 0: what never happens and has not happened.
        let term = |count: f64, chance: f64| if count == 0.0 { 0.0 } else { count * chance.ln() };
        let likelihood = term(bad, rate) + term(good, 1.0 - rate);
        let mixture = ln_beta(bad + 0.5, good + 0.5) - ln_beta(0.5, 0.5);
        likelihood <= mixture + alpha.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(requests: u64, bad: u64) -> Counts {
        Counts { requests, bad }
    }

    #[test]
    fn nothing_seen_rules_nothing_out() {
        let sequence = RatioSequence::new(1.0);
        assert_eq!(sequence.interval(0.05), (0.0, f64::INFINITY));
        assert!(!sequence.is_surely_above(0.05));
        assert_eq!(RateSequence::default().interval(0.05), (0.0, 1.0));
    }

    #[test]
    fn five_failures_of_a_small_share_and_none_beside_it_are_beyond_doubt() {
        let mut sequence = RatioSequence::new(1.0);
        let mut needed = 0;
        while !sequence.is_surely_above(0.01) {
            sequence.observe(counts(1, 1), counts(19, 0));
            needed += 1;
        }
        assert!(needed <= 5, "{needed}");
        let (low, high) = sequence.interval(0.01);
        assert!(low >= 1.0 && high.is_infinite(), "{low} to {high}");
    }

    #[test]
    fn a_doubled_rate_is_found_and_its_ratio_is_in_the_interval() {
        let mut sequence = RatioSequence::new(1.0);
        for _ in 0..100 {
            sequence.observe(counts(1000, 20), counts(1000, 10));
        }
        assert!(sequence.is_surely_above(0.01));
        let (low, high) = sequence.interval(0.01);
        assert!(1.5 < low && low < 2.0 && 2.0 < high && high < 2.5, "{low} to {high}");
        let mut fewer = RatioSequence::new(1.0);
        (0..100).for_each(|_| fewer.observe(counts(1000, 10), counts(1000, 20)));
        assert!(!fewer.is_surely_above(0.01), "fewer are no reason");
        let mut allowed = RatioSequence::new(3.0);
        (0..100).for_each(|_| allowed.observe(counts(1000, 20), counts(1000, 10)));
        assert!(!allowed.is_surely_above(0.01), "three times as many were allowed");
    }

    #[test]
    fn a_rate_is_held_against_its_limit() {
        let mut rate = RateSequence::default();
        rate.observe(counts(1000, 10));
        let (low, high) = rate.interval(0.05);
        assert!(low > 0.002 && low < 0.01 && high > 0.01 && high < 0.03, "{low} to {high}");
        assert!(!rate.is_surely_above(0.008, 0.05));
        assert!(rate.is_surely_above(0.001, 0.05));
        let mut none = RateSequence::default();
        none.observe(counts(10, 0));
        assert!(!none.is_surely_above(0.0, 0.05));
        none.observe(counts(1, 1));
        assert!(none.is_surely_above(0.0, 0.05), "never means never");
    }

    proptest::proptest! {
        #[test]
        fn what_is_surely_above_is_above_in_the_interval_too(
            looks in proptest::collection::vec((1..2000u64, 0..30u64, 1..2000u64, 0..30u64), 1..30),
            limit in 0.2..5.0f64,
            alpha in 0.0001..0.2f64,
        ) {
            let mut sequence = RatioSequence::new(limit);
            for (n_c, percent_c, n_0, percent_0) in looks {
                sequence.observe(counts(n_c, n_c * percent_c / 100), counts(n_0, n_0 * percent_0 / 100));
            }
            let (low, high) = sequence.interval(alpha);
            proptest::prop_assert!(low <= high);
            // The interval is rounded outwards by one place of the grid.
            if sequence.is_surely_above(alpha) {
                proptest::prop_assert!(low * 2f64.powf(0.5) >= limit, "{low} to {high} at a limit of {limit}");
            }
        }
    }
}
