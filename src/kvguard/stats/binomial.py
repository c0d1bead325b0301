"""Exact statements about a rate from 0/1 losses: no approximation, valid for every sample size.

The losses of exchangeable prompts that are drawn from a large population are a binomial count, so the tails
of that distribution are the tests (Clopper and Pearson 1934): ``p`` here is the probability of so few losses
or fewer if the rate were at the limit, and larger rates make it smaller still.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvguard.stats.bootstrap import Floats, Interval


def p_below(losses: ArrayLike, n: ArrayLike, limit: float) -> Floats:
    """Return the p-values of "the rate is above ``limit``", against its being at most that; shapes broadcast.

    Parameters
    ----------
    losses, n
        Prompts with a loss, of how many; without prompts p is 1.
    limit
        Between 0 and 1.
    """
    from scipy.special import bdtr  # slow to import

    k, of = np.broadcast_arrays(np.asarray(losses, dtype=np.float64), np.asarray(n, dtype=np.float64))
    p: Floats = np.ones(k.shape)
    below = k < of  # all of them lost tells nothing, and bdtr wants k < n
    p[below] = bdtr(k[below], of[below].astype(np.int64), limit)
    return p


def upper_bound(losses: ArrayLike, n: ArrayLike, confidence: float) -> Floats:
    """Return the rates that the true ones do not exceed, each with this confidence; shapes broadcast.

    It is at most a limit exactly where :func:`p_below` of that limit is at most ``1 - confidence``.
    """
    from scipy.special import betaincinv  # slow to import

    k, of = np.broadcast_arrays(np.asarray(losses, dtype=np.float64), np.asarray(n, dtype=np.float64))
    bound: Floats = np.ones(k.shape)
    below = k < of
    bound[below] = betaincinv(k[below] + 1, of[below] - k[below], confidence)
    return bound


def rate(losses: int, n: int, level: float = 0.95) -> Interval:
    """Return a rate with its two-sided exact interval."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    tail = (1 + level) / 2
    low = 1 - float(upper_bound(n - losses, n, tail))
    return Interval(losses / n, low, float(upper_bound(losses, n, tail)))


def prompts_needed(limit: float, delta: float, losses: int = 0) -> int:
    """Return the fewest prompts with which so many losses still certify ``limit`` at level ``delta``.

    Without a loss that is the least n with (1 - limit)^n <= delta, so ln(delta) / ln(1 - limit), rounded up.
    """
    n = max(losses + 1, math.ceil(math.log(delta) / math.log1p(-limit)) - 1)
    while float(p_below(losses, n, limit)) > delta:
        n += 1 if losses == 0 else max(1, n // 200)
    while n > losses + 1 and float(p_below(losses, n - 1, limit)) <= delta:
        n -= 1
    return n


def losses_allowed(n: int, limit: float, delta: float) -> int:
    """Return the most losses of ``n`` prompts that certify ``limit`` at level ``delta``; -1: not even 0."""
    counts: NDArray[Any] = np.arange(n + 1)
    return int((p_below(counts, n, limit) <= delta).sum()) - 1
