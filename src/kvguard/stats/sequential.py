"""Intervals that hold at any time, however often they are looked at.

The confidence sequence is the hedged capital process of Waudby-Smith and Ramdas ("Estimating means of
bounded random variables by betting", JRSS B 86, 2024, section 4): one bets against every candidate mean that
it is too low or too high, and drops those that the bets made rich. Whatever rule stops the looking, all
intervals up to then hold together with probability 1 - alpha.
"""

from __future__ import annotations

import numpy as np

from kvguard.stats.bootstrap import LEVEL, UNDEFINED, Interval

_GRID = 1000  # candidates; the interval is widened to the next on each side
_MOST = 0.5  # of the capital that a bet may risk


class RunningMean:
    """The mean of bounded numbers that come one by one, with its confidence sequence.

    Parameters
    ----------
    low, high : float
        What the numbers lie between.
    alpha : float
        The chance that some interval of the sequence misses the mean, at most.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, alpha: float = 1 - LEVEL) -> None:
        self._low, self._range, self._alpha = low, high - low, alpha
        self._candidates = (np.arange(_GRID) + 0.5) / _GRID
        self._rich = np.zeros((2, _GRID))  # logarithms of the capital of those who bet on more, and on less
        self._out = np.zeros(_GRID, dtype=bool)
        self._sum, self._squares, self.n = 0.0, 0.25, 0

    def add(self, number: float) -> None:
        """Take the next number."""
        x, m = (number - self._low) / self._range, self._candidates
        t = self.n + 1
        variance = self._squares / t
        bet = np.sqrt(2 * np.log(2 / self._alpha) / (variance * t * np.log(t + 1)))
        self._rich[0] += np.log1p(np.minimum(bet, _MOST / m) * (x - m))
        self._rich[1] += np.log1p(-np.minimum(bet, _MOST / (1 - m)) * (x - m))
        self._out |= self._rich.max(axis=0) + np.log(0.5) >= np.log(1 / self._alpha)
        self.n = t
        self._sum += x
        self._squares += (x - (0.5 + self._sum) / (t + 1)) ** 2

    @property
    def interval(self) -> Interval:
        """The mean so far, between the lowest and the highest that is not ruled out."""
        if not self.n:
            return UNDEFINED
        mean = self._sum / self.n
        left = self._candidates[~self._out]
        low = max(0.0, left.min() - 1 / _GRID) if len(left) else mean
        high = min(1.0, left.max() + 1 / _GRID) if len(left) else mean
        return Interval(*(float(self._low + self._range * value) for value in (mean, low, high)))
