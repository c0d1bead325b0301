"""Tests of paired outcomes."""

import numpy as np

from kvguard.stats.bootstrap import LEVEL, Floats, Interval


def mcnemar(more: int, less: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: that both kinds of discordant pair are as likely.

    Parameters
    ----------
    more, less
        Pairs in which only the first outcome is 1, and in which only the second is. Without any, p is 1.
    """
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(more, more + less).pvalue) if more + less else 1.0


def discordant_odds(more: int, less: int) -> Interval:
    """Return the odds ratio of matched pairs, with the exact interval of Clopper and Pearson (1934).

    Its estimate is the ratio of the discordant counts. Half a pair is added to both (Haldane 1956, Anscombe
    1956), so that it stays finite without any of one kind, and is 1 without any of either; the interval
    then has no bound on that side: 0 or infinity.
    """
    from scipy.stats import binomtest  # slow to import

    share_of_more = binomtest(more, more + less).proportion_ci(LEVEL) if more + less else (0.0, 1.0)
    low, high = (float(p / (1 - p)) if p < 1 else float("inf") for p in share_of_more)
    return Interval((more + 0.5) / (less + 0.5), low, high)


def holm(p: Floats) -> Floats:
    """Correct the p-values of a family of tests by Holm's step-down method (1979). [M]

    NaN is no test: it stays NaN and the family is the rest.
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]  # NaN sorts last
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected
