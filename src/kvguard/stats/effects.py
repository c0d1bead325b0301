"""Sizes of paired effects: of one number for each example, a difference between two conditions.

As in :mod:`kvguard.stats.bootstrap` a metric maps weights over resamples to values over resamples, the
sample's first; here weights are of examples [R, N]. Examples that share a cluster (a document, say) share its
weight: index the cluster weights by cluster.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvguard.stats.bootstrap import LEVEL, Floats, Interval

_NOTHING = 1e-12  # a spread below this share of the mean is rounding


def mean(weights: Floats, values: Floats) -> Floats:
    """Return the weighted mean. [R]"""
    total = weights.sum(axis=1)
    return np.divide(weights @ values, total, out=np.full(len(weights), np.nan), where=total > 0)


def cohen_d(weights: Floats, differences: Floats) -> Floats:
    """Return Cohen's d of paired differences: their mean over their standard deviation. [R]

    Without a spread it is 0 where the mean is, and undefined (NaN) else.
    """
    centre, total = mean(weights, differences), weights.sum(axis=1)
    squares = weights @ differences**2 - total * centre**2
    freedom = np.where(total > 1, total - 1, np.nan)
    spread = np.sqrt(np.clip(squares, 0, None) / freedom)
    size = np.sqrt(weights @ differences**2 / np.where(total > 0, total, np.nan))
    flat = spread <= np.sqrt(_NOTHING) * size
    d = np.divide(centre, spread, out=np.full(len(weights), np.nan), where=~flat & (spread > 0))
    return np.where((size == 0) & (total > 1), 0.0, d)


def win_rate(weights: Floats, differences: Floats) -> Floats:
    """Return the share of differences above 0, a tie being half a win. [R]"""
    return mean(weights, (np.sign(differences) + 1) / 2)


def ratio(weights: Floats, part: Floats, whole: Floats) -> Floats:
    """Return the ratio of two weighted means, NaN where the second is 0. [R]"""
    above, below = weights @ part, weights @ whole
    return np.divide(above, below, out=np.full(len(weights), np.nan), where=below != 0)


def wilcoxon(differences: Floats) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test: 1 where all are 0, NaN without any."""
    from scipy import stats  # slow to import

    if not len(differences):
        return float("nan")
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def mean_ranks(values: Floats) -> Floats:
    """Return each column's rank within each row, 1 for the lowest; ties share theirs. [N, K]"""
    from scipy.stats import rankdata  # slow to import

    return np.asarray(rankdata(values, axis=1), dtype=np.float64)


@dataclass(frozen=True)
class Pooled:
    """An effect over several data sets, as drawn from a population of effects.

    Attributes
    ----------
    effect
        The mean of the population.
    tau
        The standard deviation of the population.
    heterogeneity
        I squared: the share of the variance between data sets that is no sampling error.
    """

    effect: Interval
    tau: float
    heterogeneity: float


def random_effects(values: Sequence[float], variances: Sequence[float]) -> Pooled:
    """Pool effects by the random-effects model of DerSimonian and Laird (1986).

    Parameters
    ----------
    values, variances
        Of each data set: the effect and the square of its standard error. What is not finite is left out;
        a single one is itself.
    """
    from scipy.stats import norm  # slow to import

    y, v = np.asarray(values, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    there = np.isfinite(y) & np.isfinite(v) & (v > 0)
    y, v = y[there], v[there]
    if not len(y):
        return Pooled(Interval(*[float("nan")] * 3), float("nan"), float("nan"))
    fixed = 1 / v
    q = float(fixed @ (y - fixed @ y / fixed.sum()) ** 2)
    excess, freedom = q - (len(y) - 1), len(y) - 1
    scale = fixed.sum() - (fixed**2).sum() / fixed.sum()
    tau2 = max(0.0, excess / scale) if freedom else 0.0
    weights = 1 / (v + tau2)
    centre = float(weights @ y / weights.sum())
    half = float(norm.ppf((1 + LEVEL) / 2) / np.sqrt(weights.sum()))
    share = max(0.0, excess / q) if freedom and q > 0 else 0.0
    return Pooled(Interval(centre, centre - half, centre + half), float(np.sqrt(tau2)), share)


def interaction(corner: Floats, same_row: Floats, same_column: Floats, opposite: Floats) -> Floats:
    """Return each example's interaction of two factors, both at two levels. [N]

    How much more the second factor changes the value at the other level of the first:
    ``(opposite - same_column) - (same_row - corner)``.
    """
    return (opposite - same_column) - (same_row - corner)


def quantile_groups(values: Floats, n: int) -> NDArray[np.int64]:
    """Return the group of each value among ``n`` of equal size, 0 for the lowest; ties by order. [N]"""
    order = np.argsort(values, kind="stable")
    groups = np.empty(len(values), dtype=np.int64)
    groups[order] = np.arange(len(values)) * n // max(len(values), 1)
    return groups


def highest(values: Floats, share: float) -> NDArray[np.bool_]:
    """Return which values are among the highest ``share`` of them, a whole number of them. [N]"""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[: round(share * len(values))]] = True
    return chosen
