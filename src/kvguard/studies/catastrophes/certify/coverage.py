"""Whether certificates keep their promise: prompts are split again and again, one part certifies, one checks.

A certified setting *breaks* where its rate on the held-out part is above a limit. That rate is a draw, too:
of a setting whose rate is just below the limit it is above now and then, and no promise is broken. So it is
told as well how often it is so far above that the held-out part contradicts the certificate.

And the prompts of the run are taken for the whole population, whose rates are known: calibration prompts are
drawn from it with replacement, as certificates take them to be, and what is certified breaks where the known
rate is above. Splits and draws share their prompts: intervals are of so many of them, not of other runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvguard.errors import KvguardError
from kvguard.stats.binomial import p_below, rate
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.certify.losses import Bools, Floats, Losses
from kvguard.studies.catastrophes.certify.recommend import Limits, certified_by, lost_of

_LEVEL = 0.05  # at which a held-out part contradicts a certificate


@dataclass(frozen=True)
class Splits:
    """Prompts in two parts, many times over.

    Attributes
    ----------
    calibration, held_out
        Which prompts certify, and which check: 0 or 1. [R, P] each
    """

    calibration: Floats
    held_out: Floats

    def __post_init__(self) -> None:
        if (self.calibration * self.held_out).any():
            r, p = np.argwhere(self.calibration * self.held_out > 0)[0]
            raise KvguardError(f"split {r}: prompt {p} certifies and checks: keep the two parts apart")
        if not (self.calibration.any(axis=1) & self.held_out.any(axis=1)).all():
            raise KvguardError("split: a part is empty: raise sample.n, or change certify.calibration")

    @classmethod
    def draw(cls, n_prompts: int, share: float, n_splits: int, seed: int) -> Splits:
        """Draw splits with a ``share`` of the prompts, at least one and not all, for calibration."""
        rng = np.random.default_rng([seed, n_prompts])
        n = min(max(round(share * n_prompts), 1), n_prompts - 1)
        ranks = rng.random((n_splits, n_prompts)).argsort(axis=1).argsort(axis=1)
        calibration = (ranks < n).astype(np.float64)
        return cls(calibration, 1 - calibration)

    def drawn(self, seed: int) -> Floats:
        """Return as many samples of as many prompts as certify, drawn from all with replacement. [R, P]"""
        n_splits, n = self.calibration.shape
        rng = np.random.default_rng([seed, n, 1])
        return rng.multinomial(int(self.calibration[0].sum()), np.full(n, 1 / n), n_splits).astype(np.float64)


def coverage(losses: Losses, limits: Limits, splits: Splits, drawn: Floats) -> Mapping[str, Interval | float]:
    """Count how often what is certified breaks a limit; the policies of ``losses`` are one family.

    Parameters
    ----------
    drawn
        See :meth:`Splits.drawn`. [R, P]

    Returns
    -------
    dict
        violations: the share of splits in which some certified setting's rate on the held-out part is above a
        limit. contradicted: in which it is so far above that an exact test at 5 % says so. violations_known:
        the share of draws in which its known rate is. certified: of splits in which anything is. Each with
        the exact interval of so many. kv_saved: the mean share of memory that the best certified setting
        saves, 0 where there is none.
    """
    certified = certified_by(splits.calibration, losses, limits)
    everyone = np.ones((1, len(losses.prompt_ids)))
    broken = certified & breaks(splits.held_out, losses, limits)
    contradicted = certified & breaks(splits.held_out, losses, limits, level=_LEVEL)
    known = certified_by(drawn, losses, limits) & breaks(everyone, losses, limits)
    saved = np.where(certified, losses.cost["kv_saved"].mean(axis=0), 0.0).max(axis=1, initial=0.0)
    return {
        "violations": _share(broken),
        "contradicted": _share(contradicted),
        "violations_known": _share(known),
        "certified": _share(certified),
        "kv_saved": float(saved.mean()),
    }


def breaks(weights: Floats, losses: Losses, limits: Limits, level: float | None = None) -> Bools:
    """Return which settings' rates are above a limit in each sample of the prompts. [R, S]

    Parameters
    ----------
    level
        Only rates so far above that a limit is rejected at this level by an exact test.
    """

    def above(counts: Floats, n: Floats, limit: float) -> Bools:
        if level is None:
            return np.asarray(counts / np.maximum(n, 1) > limit)
        at_least = 1 - p_below(np.maximum(counts - 1, 0), n, limit)
        return np.asarray((at_least <= level) & (counts > 0) & (counts > limit * n))

    found = above(weights @ losses.added, weights.sum(axis=1, keepdims=True), limits.max_added_cbr)
    if limits.max_lost_answers is not None:
        n_scored = (weights @ losses.scored)[:, None]
        found = found | above(weights @ lost_of(losses), n_scored, limits.max_lost_answers)
    return found


def _share(found: Bools) -> Interval:
    """Return the share of the samples in which any setting is found. [R, S]"""
    happened = int(found.any(axis=1).sum())
    return rate(happened, len(found))
