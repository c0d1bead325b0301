"""Whether values rise along an order of conditions, with p-values by permutation."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from kvguard.stats.bootstrap import Floats, Interval, interval
from kvguard.stats.effects import mean, mean_ranks

_EXACT = 8  # conditions of which every order is tried: 8! = 40,320


@dataclass(frozen=True)
class Trend:
    """How values go along an order.

    Attributes
    ----------
    rho
        Spearman's correlation between the order and the conditions' means.
    p
        Its two-sided p-value: how many orders of the conditions have as strong a one, all of them where there
        are at most 8 conditions. It asks whether the order is *this* one; with few conditions it cannot be
        small.
    within
        The mean over examples of the correlation within each, with its interval over resamples.
    p_within
        Its two-sided p-value (Page's test, by permutation): conditions are exchanged within each example. It
        asks whether there is a trend in the examples at all.
    """

    rho: float
    p: float
    within: Interval
    p_within: float


UNDEFINED_TREND = Trend(float("nan"), float("nan"), Interval(*[float("nan")] * 3), float("nan"))


def trend(values: Floats, weights: Floats, n_permutations: int, seed: int) -> Trend:
    """Return the trend of ``values`` along their columns.

    Parameters
    ----------
    values
        Of each example under each condition, the conditions in their order. [N, K]
    weights
        Of examples over resamples, the sample's first. [R, N]
    """
    n, k = values.shape
    if n < 2 or k < 3:
        return UNDEFINED_TREND
    rng = np.random.default_rng([seed, n, k])
    order = np.arange(k) - (k - 1) / 2
    ranks = mean_ranks(values) - (k + 1) / 2  # [N, K]
    means = mean_ranks(values.mean(axis=0)[None])[0] - (k + 1) / 2
    scores = _correlation(ranks, order)
    return Trend(
        float(_correlation(means[None], order)[0]),
        _p_of_order(means, order, n_permutations, rng),
        interval(mean(weights, scores)),
        _p_within(ranks, order, float(scores.mean()), n_permutations, rng),
    )


def _correlation(ranks: Floats, order: Floats) -> Floats:
    """Return the correlation of each row of centred ranks with the centred order; 0 where all tie. [N]"""
    size = np.sqrt((ranks**2).sum(axis=1) * (order**2).sum())
    return np.divide(ranks @ order, size, out=np.zeros(len(ranks)), where=size > 0)


def _p_of_order(means: Floats, order: Floats, n: int, rng: np.random.Generator) -> float:
    k = len(order)
    if k <= _EXACT:
        every = np.array(list(itertools.permutations(order)))
        assert len(every) == math.factorial(k)
        return float((np.abs(every @ means) >= abs(order @ means) - 1e-9).mean())
    drawn = rng.permuted(np.tile(order, (n, 1)), axis=1)
    return float((1 + (np.abs(drawn @ means) >= abs(order @ means) - 1e-9).sum()) / (1 + n))


def _p_within(ranks: Floats, order: Floats, found: float, n: int, rng: np.random.Generator) -> float:
    size = np.sqrt((ranks**2).sum(axis=1) * (order**2).sum())
    scaled = np.divide(ranks, size[:, None], out=np.zeros_like(ranks), where=size[:, None] > 0)
    beyond = 0
    for _ in range(n):
        beyond += abs((rng.permuted(scaled, axis=1) @ order).mean()) >= abs(found) - 1e-12
    return float((1 + beyond) / (1 + n))
