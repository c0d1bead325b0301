"""Intervals by a bootstrap over prompts, and tests of paired outcomes.

Tokens of a trace, and traces of a prompt, are not independent; prompts are. So a resample draws prompts
with replacement (Cameron, Gelbach and Miller 2008 call it the pairs cluster bootstrap). Everything here
works on sums per prompt: a resample is a row of weights, the first row is the sample itself, and a metric
maps weights [R, P] to values [R]. Metrics that share weights are paired by prompt: subtract their values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its percentile interval; all NaN where the value is undefined."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return it as metrics files hold it."""
        return {"value": self.value, "low": self.low, "high": self.high}


UNDEFINED = Interval(float("nan"), float("nan"), float("nan"))


def resample_weights(n_clusters: int, n_resamples: int, seed: int) -> Floats:
    """Return how often each cluster is drawn: ones, then ``n_resamples`` resamples. [1 + n, P]"""
    rng = np.random.default_rng([seed, n_clusters])
    drawn = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_resamples)
    return np.concatenate([np.ones((1, n_clusters)), drawn])


def interval(values: Floats) -> Interval:
    """Return the first of ``values`` (the sample's) with the interval of the others (the resamples').

    Resamples in which the metric is undefined (NaN) are left out.
    """
    defined = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(defined):
        return UNDEFINED
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values[0]), float(low), float(high))


def sum_by(cluster: NDArray[np.integer[Any]], values: NDArray[Any], n_clusters: int) -> Floats:
    """Sum ``values`` [N] within each cluster; NaN adds nothing. [P]"""
    numbers = np.nan_to_num(values.astype(np.float64))
    return np.bincount(cluster, weights=numbers, minlength=n_clusters).astype(np.float64)


def count_by(
    cluster: NDArray[np.integer[Any]], level: NDArray[np.integer[Any]], n_clusters: int, n_levels: int
) -> Floats:
    """Count the entries of each cluster at each level. [P, L]"""
    flat = cluster.astype(np.int64) * n_levels + level
    return np.bincount(flat, minlength=n_clusters * n_levels).reshape(n_clusters, n_levels).astype(np.float64)


def share(weights: Floats, part: Floats, whole: Floats) -> Floats:
    """Return the ratio of two weighted sums, NaN where the second is 0. [R]

    Parameters
    ----------
    weights
        [R, P]
    part, whole
        Sums per cluster. [P]
    """
    above, below = weights @ part, weights @ whole
    return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)


def mean_by(weights: Floats, cluster: NDArray[np.integer[Any]], values: NDArray[Any]) -> Floats:
    """Return the weighted mean of the values that are not NaN. [R]"""
    n = weights.shape[1]
    numbers = values.astype(np.float64)
    return share(weights, sum_by(cluster, numbers, n), sum_by(cluster, ~np.isnan(numbers), n))


def quantile(weights: Floats, counts: Floats, q: float) -> Floats:
    """Return the lowest level that a share ``q`` of the counts does not exceed, NaN without counts. [R]

    Parameters
    ----------
    weights
        [R, P]
    counts
        Of each cluster at the levels 0, 1, 2, ... [P, L]
    """
    reached = np.cumsum(weights @ counts, axis=1)  # [R, L]
    total = reached[:, -1]
    level = np.argmax(reached >= q * total[:, None] - 1e-9, axis=1).astype(np.float64)
    return np.where(total > 0, level, np.nan)
