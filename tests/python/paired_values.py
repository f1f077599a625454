"""Makes src/dataset/paired_values.csv: p-values and intervals of paired comparisons, by scipy and statsmodels.

    pip install scipy statsmodels; python tests/python/paired_values.py > src/dataset/paired_values.csv

The score test of Tango is computed here from its definition: the likelihood of the discordant rows is maximised numerically under the given difference.
"""

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar


def score_p(n, b, c, delta):
    """One-sided p-value of H0: difference <= delta, with the restricted maximum likelihood estimate found numerically."""

    def minus_log_likelihood(q):  # q: share of rows on which the champion alone is right; the candidate's is q + delta
        p = q + delta
        return -(stats.multinomial.logpmf([b, c, n - b - c], n, [p, q, 1 - p - q]) if min(p, q, 1 - p - q) > 0 else -np.inf)

    low, high = max(0, -delta) + 1e-15, (1 - delta) / 2 - 1e-15
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-14}).x
    z = (b - c - n * delta) / np.sqrt(n * (2 * q + delta - delta**2))
    return stats.norm.sf(z)


def main():
    for n, b, c, delta in [(200, 9, 3, -0.01), (200, 3, 9, -0.02), (1000, 40, 22, -0.005), (1000, 31, 30, -0.01), (5000, 200, 260, -0.02), (60, 10, 1, 0.03)]:
        table = [[n - b - c, c], [b, 0]]
        better = stats.binomtest(b, b + c, 0.5, alternative="greater").pvalue
        two = mcnemar(table, exact=b + c < 25, correction=True).pvalue
        bound = optimize.brentq(lambda d: score_p(n, b, c, d) - 0.05, -0.5, (b - c) / n - 1e-9, xtol=1e-12)
        print("classes", n, b, c, repr(float(better)), repr(float(two)), delta, repr(float(score_p(n, b, c, delta))), repr(bound), sep=",")
    random = np.random.default_rng(7)
    for n, shift, margin in [(5, -1.0, 0.0), (20, -0.3, 0.1), (40, 0.2, 0.5), (12, 0.0, 0.0)]:
        differences = random.normal(shift, 1.0, n)
        p = stats.ttest_1samp(differences, margin, alternative="less").pvalue
        upper = stats.ttest_1samp(differences, 0, alternative="less").confidence_interval(0.95).high
        print("numbers", margin, repr(float(p)), repr(float(upper)), *(repr(float(d)) for d in differences), sep=",")


main()
