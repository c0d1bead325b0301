"""Is there a zone where variance or failures rise before the mean collapses, and can that be chance?

The question is asked of the bins before the collapse alone: of the shortest bin and those after it, up to the
first from which on the mean score stays below a share of the reference, the score of the shortest bin at the
full budget. A zone begins at some bin and lasts to the last one before the collapse. For every place where it
may begin, two contrasts hold the bins from there on against those before it: that of the standard deviation,
and that of the failure rate. Both are put in units of their own spread under permutations, in which the
examples of these bins change places; the largest of all is the statistic (Westfall and Young's max-T), and
its place in the permutations the p-value. Since places and signals are searched within each permutation as
well, the search needs no further correction; that several budgets are asked is corrected by Holm's method.

Permuting only the bins before the collapse makes an abrupt collapse, without a zone before it, no false
alarm.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_transition.analysis.aggregate import Budget
from kv_transition.analysis.bootstrap import Sums
from kv_transition.analysis.queries import Floats
from kv_transition.settings import Analysis
from kvguard.stats.paired import holm

SIGNALS = ("std", "failure_rate")
_MOST_MOVES = 20_000_000  # examples times permutations: above it there are fewer permutations
_LEAST = 399
_CHUNK = 2_000_000
_FEW_KINDS = 16  # of examples: up to so many are dealt by number, not one by one


@dataclass(frozen=True)
class Zone:
    """What was found at one budget.

    Attributes
    ----------
    found
        Whether there is a zone at the level of the settings, all budgets considered.
    start, end
        Its first and last bin; the most likely ones where none was found, None where none can be.
    p_value, p_adjusted
        By permutation; adjusted for the number of budgets.
    rationale
        Every number used.
    """

    budget: float
    found: bool
    start: int | None
    end: int | None
    p_value: float | None
    p_adjusted: float | None
    rationale: dict[str, Any] = field(default_factory=dict)


def detect(budgets: list[Budget], settings: Analysis) -> list[Zone]:
    """Look for a zone at every budget; the first one is the reference."""
    first = budgets[0].sums[0]
    reference = float(first.score.sum() / first.n.sum()) if first.n.sum() else np.nan
    zones = [_detect(budget, reference, settings) for budget in budgets]
    asked = np.array([np.nan if zone.p_value is None else zone.p_value for zone in zones])
    return [
        replace(
            zone,
            found=bool(p <= settings.alpha),
            p_adjusted=_known(p),
            rationale=zone.rationale
            | {"p_adjusted": None if np.isnan(p) else float(p), "alpha": settings.alpha},
        )
        for zone, p in zip(zones, holm(asked), strict=True)
    ]


def _known(p: float) -> float | None:
    return None if np.isnan(p) else float(p)


def _detect(budget: Budget, reference: float, settings: Analysis) -> Zone:
    packed = [_packed(sums) for sums in budget.sums]  # of each bin [4, P]: n, sum, sum of squares, failed
    totals = np.stack([one.sum(axis=1) for one in packed])  # [K, 4]
    rationale = _described(budget, totals, reference)
    collapsed = collapse_at(np.asarray(rationale["score"]), reference, settings.collapse)
    rationale |= {"collapse_below": settings.collapse * reference, "collapse_bin": None}
    if collapsed < len(totals):
        rationale["collapse_bin"] = budget.bins[collapsed]
    if collapsed < 2 or min(one.shape[1] for one in packed[:collapsed]) < 2:
        rationale["why_not"] = (
            "collapsed in the shortest bin" if collapsed == 0
            else "too few bins, or examples in them, before the collapse"
        )  # fmt: skip
        return Zone(budget.budget, False, None, None, None, None, rationale)
    test = permutation_test(packed[:collapsed], settings.n_permutations, settings.seed)
    signal, start = np.unravel_index(np.argmax(test.z), test.z.shape)
    rationale |= {
        "candidates": [budget.bins[index] for index in range(collapsed)],
        "contrast": {name: test.contrast[row].tolist() for row, name in enumerate(SIGNALS)},
        "contrast_z": {name: test.z[row].tolist() for row, name in enumerate(SIGNALS)},
        "signal": SIGNALS[signal],
        "statistic": float(test.z.max()),
        "permutations": test.n,
        "p_value": test.p_value,
    }
    first = budget.bins[int(start) + 1]
    return Zone(budget.budget, False, first, budget.bins[collapsed - 1], test.p_value, None, rationale)


def _packed(sums: Sums) -> Floats:
    """Return the sums of the examples that were answered. [4, P]"""
    return np.stack([sums.n, sums.score, sums.squared, sums.failed])[:, sums.n > 0]


def _described(budget: Budget, totals: Floats, reference: float) -> dict[str, Any]:
    """Return what each bin shows: values, and z-scores over the bins of spread, failures and drop."""
    n = np.maximum(totals[:, 0], 1)
    score, failures = totals[:, 1] / n, totals[:, 3] / n
    std = np.sqrt(np.maximum(totals[:, 2] / n - score**2, 0))
    drop = reference - score
    shown = {"std": std, "failure_rate": failures, "drop": drop}
    return {
        "bins": budget.bins,
        "n": totals[:, 0].tolist(),
        "reference": reference,
        "score": score.tolist(),
        **{name: values.tolist() for name, values in shown.items()},
        **{f"z_{name}": z_over_bins(values).tolist() for name, values in shown.items()},
    }


def z_over_bins(values: Floats) -> Floats:
    """Return how many standard deviations each bin lies from the mean of all; 0 where all are equal."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-12 else np.zeros_like(values)


def collapse_at(scores: Floats, reference: float, kept: float) -> int:
    """Return the first bin from which on scores are below ``kept`` of the reference, else their number."""
    low = scores < kept * reference
    return int(len(low) - np.argmin(low[::-1])) if not low.all() else 0


@dataclass(frozen=True)
class Tested:
    """A permutation test: contrasts and z-scores [signal, start], the p-value, how many permutations."""

    contrast: Floats
    z: Floats
    p_value: float
    n: int


def permutation_test(packed: list[Floats], n_permutations: int, seed: int) -> Tested:
    """Test whether spread or failures rise from some bin on.

    Parameters
    ----------
    packed
        Of each bin: n, sum, sum of squares and failures of each example. [4, P]
    """
    sizes = np.array([one.shape[1] for one in packed])
    examples = np.concatenate(packed, axis=1)  # [4, N]
    n = int(np.clip(_MOST_MOVES // examples.shape[1], _LEAST, n_permutations))
    observed = contrasts(_by_bin(examples[:, None, :], sizes))[:, :, 0]  # [signal, start]
    permuted = np.concatenate(
        [contrasts(one) for one in _permutations(examples, sizes, n, np.random.default_rng(seed))], axis=2
    )
    center, spread = permuted.mean(axis=2), permuted.std(axis=2)
    safe = np.where(spread > 1e-12, spread, np.inf)
    z = (observed - center) / safe
    highest = ((permuted - center[:, :, None]) / safe[:, :, None]).max(axis=(0, 1))
    p = (1 + int((highest >= z.max() - 1e-9).sum())) / (1 + n)
    return Tested(observed, z, p, n)


def _permutations(examples: Floats, sizes: NDArray[Any], n: int, rng: np.random.Generator) -> Any:
    """Yield the sums by bin of shuffled examples, some permutations at a time. [4, R, K]"""
    alike, which = np.unique(examples, axis=1, return_inverse=True)
    if alike.shape[1] <= _FEW_KINDS:  # scores of 0 and 1: only how many of each kind fall into a bin matters
        yield _dealt(alike, np.bincount(which.ravel()), sizes, n, rng)
        return
    step = max(1, _CHUNK // examples.shape[1])
    for start in range(0, n, step):
        order = np.tile(np.arange(examples.shape[1]), (min(step, n - start), 1))
        yield _by_bin(examples[:, rng.permuted(order, axis=1)], sizes)


def _dealt(
    alike: Floats, counts: NDArray[Any], sizes: NDArray[Any], n: int, rng: np.random.Generator
) -> Floats:
    """Deal examples of a few kinds to bins by chance. [4, n, K]"""
    left = np.tile(counts, (n, 1))  # [n, kinds]
    sums = np.empty((len(alike), n, len(sizes)))
    for index, size in enumerate(sizes):
        taken = np.zeros_like(left)
        rest = left.sum(axis=1)
        wanted = np.full(n, int(size))
        for kind in range(left.shape[1]):
            rest = rest - left[:, kind]
            drawn = rng.hypergeometric(left[:, kind], rest, wanted)
            taken[:, kind], wanted = drawn, wanted - drawn
        sums[:, :, index] = alike @ taken.T
        left = left - taken
    return sums


def _by_bin(examples: Floats, sizes: NDArray[Any]) -> Floats:
    """Sum examples [4, R, N], which stand bin after bin, within their bins. [4, R, K]"""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.add.reduceat(examples, starts, axis=2)


def contrasts(sums: Floats) -> Floats:
    """Return how much higher spread and failure rate are from each start on than before it.

    Parameters
    ----------
    sums
        By permutation and bin. [4, R, K]

    Returns
    -------
    [signal, start, R]
        The start ``s`` stands for the bins from ``s + 1`` on.
    """
    n, total, squared, failed = sums
    inside = np.maximum(squared - total**2 / np.maximum(n, 1), 0)  # about each bin's own mean
    found = np.empty((len(SIGNALS), n.shape[1] - 1, n.shape[0]))
    for start in range(1, n.shape[1]):
        before, after = np.s_[:, :start], np.s_[:, start:]
        for row, part in enumerate((inside, failed)):
            high = part[after].sum(axis=1) / np.maximum(n[after].sum(axis=1), 1)
            low = part[before].sum(axis=1) / np.maximum(n[before].sum(axis=1), 1)
            found[row, start - 1] = np.sqrt(high) - np.sqrt(low) if row == 0 else high - low
    return found
