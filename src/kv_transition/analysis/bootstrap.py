"""Intervals by a bootstrap over examples, bin by bin: one set of weights serves all budgets and metrics.

So what is compared at two budgets is compared on the same resamples of the same examples. The resamples
themselves are kvguard's (:mod:`kvguard.stats.bootstrap`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kv_transition.analysis.queries import Floats, Ints
from kvguard.stats.bootstrap import LEVEL, Interval, interval, resample_weights, share


@dataclass(frozen=True)
class Sums:
    """Sums over the responses of each example of one bin at one budget. [P]"""

    n: Floats
    score: Floats
    squared: Floats
    failed: Floats

    @classmethod
    def of(cls, example: Ints, score: Floats, failed: Floats, n_examples: int) -> Sums:
        """Sum over each example; ``example`` counts from 0 within the bin."""

        def total(values: Floats) -> Floats:
            return np.bincount(example, weights=values, minlength=n_examples).astype(np.float64)

        return cls(total(np.ones_like(score)), total(score), total(score**2), total(failed))


class Resamples:
    """The resamples of one bin's examples; row 0 is the sample itself."""

    def __init__(self, n_examples: int, n_resamples: int, seed: int) -> None:
        self.weights = resample_weights(n_examples, n_resamples, seed)

    def mean(self, sums: Sums) -> Floats:
        """Return the mean score. [1 + R]"""
        return share(self.weights, sums.score, sums.n)

    def failure_rate(self, sums: Sums) -> Floats:
        """Return the share of responses that failed. [1 + R]"""
        return share(self.weights, sums.failed, sums.n)

    def std(self, sums: Sums) -> Floats:
        """Return the standard deviation of scores over responses. [1 + R]"""
        variance = share(self.weights, sums.squared, sums.n) - self.mean(sums) ** 2
        return np.sqrt(np.maximum(variance, 0.0))

    def within_std(self, sums: Sums) -> Floats:
        """Return the standard deviation over an example's repeats, its root mean square over examples."""
        repeated = np.maximum(sums.n - 1, 0.0)
        spread = np.where(sums.n > 1, sums.squared - sums.score**2 / np.maximum(sums.n, 1.0), 0.0)
        return np.sqrt(np.maximum(share(self.weights, spread, repeated), 0.0))

    def difference(self, sums: Sums, other: Sums) -> Floats:
        """Return the mean score of ``sums`` minus that of ``other``, on examples of both."""
        both = (sums.n > 0) & (other.n > 0)
        mine = np.divide(sums.score, sums.n, out=np.zeros_like(sums.n), where=both)
        theirs = np.divide(other.score, other.n, out=np.zeros_like(other.n), where=both)
        return share(self.weights, mine - theirs, both.astype(np.float64))


def proportion(values: Floats, n: float) -> Interval:
    """Return the interval of a share; one of all or of none is bounded exactly.

    A resample of equal values is that value, so a bootstrap alone would call five of five certain. There
    the bound is Clopper and Pearson's: what the share may be if none (or all) of ``n`` are seen.
    """
    found = interval(values)
    if n and found.value in (0.0, 1.0):
        bound = float(((1 - LEVEL) / 2) ** (1 / n))
        return Interval(0.0, 0.0, 1 - bound) if found.value == 0.0 else Interval(1.0, bound, 1.0)
    return found
