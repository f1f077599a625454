//! Is a column different? Exact e-values from the counts of two samples.

use statrs::function::beta::ln_beta;
use statrs::function::gamma::ln_gamma;

/// The standard deviations of the log odds ratio that the alternative mixes: small, large and very large differences.
const SPREADS: [f64; 4] = [0.1, 0.3, 1.0, 3.0];

/// The natural logarithm of an e-value against "a live row and a reference row are equally likely to fall into this event", from `x` of `n`
/// live rows and `c` of `m` reference rows.
///
/// Under the hypothesis, and given that `x + c` rows of both samples are in the event, `x` has a hypergeometric distribution, whatever the
/// probability of the event (Fisher's exact test). The e-value is the ratio of a mixture of beta-binomial distributions to it. The mixture is
/// fixed before `x` is seen, so the expectation of the ratio is at most 1: exactly, for any sizes of both samples. So the sampling error of
/// the reference is part of it.
///
/// Counts may be fractions, where rows count less because they are related; then the bound is approximate.
#[must_use]
#[expect(clippy::many_single_char_names, reason = "the names of the formula")]
pub(super) fn event(x: f64, n: f64, c: f64, m: f64) -> f64 {
    let (both, rows) = (x + c, n + m);
    if n <= 0.0 || m <= 0.0 || both <= 0.0 || both >= rows {
        return 0.0;
    }
    // The rarer of the event and its opposite, for which the mixture is closer to the hypergeometric distribution.
    let (x, both) = if both > rows / 2.0 { (n - x, rows - both) } else { (x, both) };
    let live = n / rows;
    // The number of ways to choose the rows in the event is in both distributions and cancels.
    let null = ln_choose(rows - both, n - x) - ln_choose(rows, n);
    let mixture = SPREADS.map(|spread| {
        let size = 1.0 / (spread * spread * live * (1.0 - live));
        let (a, b) = (size * live, size * (1.0 - live));
        ln_beta(x + a, (both - x).max(0.0) + b) - ln_beta(a, b)
    });
    ln_mean(&mixture) - null
}

/// The natural logarithm of the e-value of a column: half of the weight is on its bins, and where they are ordered half on its cuts (all bins
/// below an edge). The average of e-values is an e-value, however they depend on each other. `ordered`: how many of the first bins are.
#[must_use]
pub(super) fn column(live: &[f64], reference: &[f64], ordered: usize) -> f64 {
    let (n, m) = (live.iter().sum::<f64>(), reference.iter().sum::<f64>());
    let bins: Vec<f64> = live.iter().zip(reference).map(|(x, c)| event(*x, n, *c, m)).collect();
    let (mut below, mut below_reference) = (0.0, 0.0);
    let pairs = live.iter().zip(reference).take(ordered.saturating_sub(1));
    let cuts = pairs.map(|(x, c)| {
        below += x;
        below_reference += c;
        event(below, n, below_reference, m)
    });
    let cuts: Vec<f64> = cuts.collect();
    if cuts.is_empty() { ln_mean(&bins) } else { ln_mean(&[ln_mean(&bins), ln_mean(&cuts)]) }
}

/// The columns that an e-value rejects together, by the procedure of Wang and Ramdas (2022, e-BH): of `k` columns the rejected ones have
/// e-values of at least `k / (alpha * rejected)`. Where no column is different, the probability that any is rejected is at most `alpha`,
/// however the columns depend on each other. Returns the least logarithm that is rejected.
#[must_use]
pub(super) fn threshold(ln_e: &[f64], alpha: f64) -> f64 {
    let mut sorted = ln_e.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let least = |rejected: usize| (ln_e.len() as f64 / (alpha * rejected as f64)).ln();
    let rejected = (1..=sorted.len()).rev().find(|rejected| sorted[rejected - 1] >= least(*rejected));
    least(rejected.unwrap_or(1))
}

/// How far two samples are apart: the Jensen-Shannon distance (Endres and Schindelin 2003), from 0 for equal shares to 1 where no bin has
/// rows of both. The expected divergence of two samples of one distribution, (bins − 1)/8 · (1/n + 1/m) nats, is subtracted before the
/// root, so that small samples do not look different.
#[must_use]
pub(super) fn distance(live: &[f64], reference: &[f64]) -> f64 {
    least_distance(live, reference, 0.0)
}

/// As [`distance`], less this many standard errors of the divergence (by the delta method), so that it is at least this far.
#[must_use]
pub(super) fn least_distance(live: &[f64], reference: &[f64], standard_errors: f64) -> f64 {
    let (n, m) = (live.iter().sum::<f64>(), reference.iter().sum::<f64>());
    if n <= 0.0 || m <= 0.0 {
        return 0.0;
    }
    // Sums of `p ln(p / middle)` and of its square, for each sample.
    let (mut sums, mut squares, mut used) = ([0.0; 2], [0.0; 2], 0usize);
    for (x, c) in live.iter().zip(reference) {
        let shares = [x / n, c / m];
        let middle = f64::midpoint(shares[0], shares[1]);
        used += usize::from(middle > 0.0);
        for (at, share) in shares.into_iter().enumerate().filter(|(_, share)| *share > 0.0) {
            let slope = (share / middle).ln() / 2.0;
            sums[at] += share * slope;
            squares[at] += share * slope * slope;
        }
    }
    let expected = used.saturating_sub(1) as f64 / 8.0 * (1.0 / n + 1.0 / m);
    let variance = |at: usize, rows: f64| (squares[at] - sums[at] * sums[at]).max(0.0) / rows;
    let error = (variance(0, n) + variance(1, m)).sqrt();
    let divergence = sums[0] + sums[1] - expected - standard_errors * error;
    (divergence.max(0.0) / std::f64::consts::LN_2).sqrt()
}

/// Pearson's statistic of two samples over its degrees of freedom: about 1 for independent rows of one distribution, more where rows are
/// related or the distribution moves between the samples.
#[must_use]
pub(super) fn dispersion(first: &[f64], second: &[f64]) -> f64 {
    let (n, m) = (first.iter().sum::<f64>(), second.iter().sum::<f64>());
    if n <= 0.0 || m <= 0.0 {
        return 0.0;
    }
    let (mut sum, mut used) = (0.0, 0usize);
    for (x, y) in first.iter().zip(second) {
        let expected = (x + y) * (n.min(m)) / (n + m);
        if expected >= 1.0 {
            let difference = x / n - y / m;
            sum += difference * difference * n * m / (x + y);
            used += 1;
        }
    }
    if used > 1 { sum / (used - 1) as f64 } else { 0.0 }
}

fn ln_choose(n: f64, k: f64) -> f64 {
    ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0)
}

/// The logarithm of the mean of numbers that are given by their logarithms.
fn ln_mean(logs: &[f64]) -> f64 {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !most.is_finite() {
        return 0.0;
    }
    most + (logs.iter().map(|log| (log - most).exp()).sum::<f64>() / logs.len() as f64).ln()
}
