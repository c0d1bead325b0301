"""Whether live traffic still looks like the calibration prompts: told at any time, however often asked.

What a guard thinks of a text is one number, its *score*. If live texts are exchangeable with those of the
calibration, the rank of each new score among all before it is uniform, and independent of the ranks before
(a conformal p-value; Vovk, Gammerman and Shafer 2005; ties are broken by lot). So a gambler who bets against
uniform ranks has a fair game: by Ville's inequality (1939) his capital ever reaches 1 / alpha with a
probability of at most alpha, over any length. He plays the composite jumper (Vovk, Petej, Nouretdinov,
Ahlberg, Carlsson and Gammerman 2021, "Retrain or not retrain"): he bets on high ranks and on low ones, on
extreme and on middling ones, and changes between bets at several rates.

Scores are counted on a fixed grid, so memory does not grow; a grid fixed beforehand keeps the ranks exact.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

ALPHA = 0.05
_CELLS = 1000  # of the grid of scores
# Bets 1 + a (p - 1/2) + b (6 p^2 - 6 p + 1), at least 0 on [0, 1]: on one end, on both ends, on the middle.
_BETS = np.array([[0, 0], [-1.9, 0], [-1, 0], [1, 0], [1.9, 0], [0, 1.8], [0, 0.9], [0, -0.9]])
_JUMPS = np.array([1e-4, 1e-3, 1e-2, 1e-1])  # shares of the capital that go from a bet to all of them


def score(hazard: NDArray[np.float32], safe_at: int) -> float:
    """Return what a guard thinks of a text: 1 if it alarmed, else the highest hazard.

    Parameters
    ----------
    hazard
        Of its tokens, NaN where unknown. [T]
    safe_at
        -1: it never reached SAFE.
    """
    if safe_at >= 0:
        return 1.0
    known = hazard[~np.isnan(hazard)]
    return float(known.max()) if len(known) else 0.0


class Drift:
    """The gambler.

    Parameters
    ----------
    scores
        Those of the calibration, in [0, 1]; without any, live texts are held against earlier ones.
    alpha
        The probability with which it ever tells of a drift that there is not.

    Attributes
    ----------
    n
        Live texts seen.
    wealth
        The capital, which began at 1.
    since
        How many live texts had been seen when it first reached 1 / alpha; None: not so far.
    """

    def __init__(self, scores: Iterable[float], alpha: float = ALPHA, seed: int = 0) -> None:
        self._threshold = -np.log(alpha)
        self._counts = np.bincount([_cell(one) for one in scores], minlength=_CELLS + 1)
        self._chance = np.random.default_rng(seed)
        self._capital = np.full((len(_JUMPS), len(_BETS)), 1 / (len(_JUMPS) * len(_BETS)))
        self._log_scale = 0.0  # so that neither a long win nor a long loss leaves the range of floats
        self.n = 0
        self.since: int | None = None

    @property
    def log_wealth(self) -> float:
        """The logarithm of the capital."""
        return float(np.log(self._capital.sum()) + self._log_scale)

    @property
    def wealth(self) -> float:
        """The capital, as far as a float goes."""
        return float(np.exp(min(self.log_wealth, 700.0)))

    @property
    def drifted(self) -> bool:
        """Whether it has ever told of a drift."""
        return self.since is not None

    def observe(self, value: float) -> bool:
        """Take the score of the next live text; return whether a drift is told now for the first time."""
        self.n += 1
        self._bet(self._rank(value))
        if self.since is None and self.log_wealth >= self._threshold:
            self.since = self.n
            return True
        return False

    def _rank(self, value: float) -> float:
        """Return the conformal p-value of a score, and count it: small where it is high."""
        cell = _cell(value)
        self._counts[cell] += 1
        above, same = int(self._counts[cell + 1 :].sum()), int(self._counts[cell])
        return float((above + self._chance.random() * same) / self._counts.sum())

    def _bet(self, p: float) -> None:
        pot = self._capital.sum(axis=1, keepdims=True)
        self._capital = (1 - _JUMPS[:, None]) * self._capital + _JUMPS[:, None] * pot / len(_BETS)
        self._capital *= 1 + _BETS @ np.array([p - 0.5, 6 * p * p - 6 * p + 1])
        total = self._capital.sum()
        if not 1e-100 < total < 1e100:
            self._capital /= total
            self._log_scale += float(np.log(total))


def warn_of_drift(drift: Drift, setting: str) -> None:
    """Say in the log that texts no longer look like those that certified a setting."""
    _log.warning(
        "%s: after %d texts they do not look like those that certified it: its promise does not hold for "
        "them; certify anew with prompts of now (`kvguard recommend`)",
        setting,
        drift.n,
    )


@dataclass
class InOrder:
    """Scores on their way to a :class:`Drift`, in the order in which their texts began.

    Texts of one batch end in the order of their lengths, and of that ranks would tell.

    Attributes
    ----------
    drift
        What takes them.
    """

    drift: Drift
    _began: int = 0
    _next: int = 0
    _ended: dict[int, float | None] = field(default_factory=dict)

    def begin(self) -> int:
        """Return the number of a text that begins now."""
        self._began += 1
        return self._began - 1

    def end(self, number: int, value: float | None) -> bool:
        """Take the score of a text, None if it came to nothing; return whether a drift is told now."""
        self._ended[number] = value
        told = False
        while self._next in self._ended:
            found = self._ended.pop(self._next)
            self._next += 1
            told |= found is not None and self.drift.observe(found)
        return told


def _cell(value: float) -> int:
    """Return the place of a score on the grid, which is finer near 0, where most hazards are."""
    return round(float(np.sqrt(min(max(value, 0.0), 1.0)) * _CELLS))
