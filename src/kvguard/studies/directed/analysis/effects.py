"""Each condition against the baseline and against noise, in one setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvguard.stats.bootstrap import Floats, Interval, interval
from kvguard.stats.effects import cohen_d, mean, mean_ranks, ratio, wilcoxon, win_rate
from kvguard.stats.paired import holm
from kvguard.studies.directed.analysis.values import Values
from kvguard.studies.directed.tracks import Cell

Metrics = dict[str, Interval | float]


@dataclass(frozen=True)
class Effect:
    """A paired difference: its numbers, and the squares of its standard errors, which pooling needs.

    Attributes
    ----------
    metrics
        n, benefit (mean difference), d, win_rate, p.
    """

    metrics: Metrics
    variances: Mapping[str, float]


def effect(differences: Floats, weights: Floats) -> Effect:
    """Return the numbers of a paired difference; pairs with NaN are left out.

    Parameters
    ----------
    differences
        How much better each example is. [N]
    weights
        [R, N]
    """
    there = np.isfinite(differences)
    drawn, found = weights[:, there], differences[there]
    resampled = {
        "benefit": mean(drawn, found),
        "d": cohen_d(drawn, found),
        "win_rate": win_rate(drawn, found),
    }
    return Effect(
        {
            "n": float(len(found)),
            **{name: interval(values) for name, values in resampled.items()},
            "p": wilcoxon(found),
        },
        {name: _variance(resampled[name][1:]) for name in ("benefit", "d")},
    )


def family(effects: Mapping[str, Effect]) -> dict[str, Metrics]:
    """Return the numbers of comparisons that are one family, with p-values corrected by Holm's method."""
    names = list(effects)
    corrected = holm(np.array([effects[name].metrics["p"] for name in names], dtype=np.float64))
    return {
        name: {**effects[name].metrics, "p_holm": float(p)} for name, p in zip(names, corrected, strict=True)
    }


def against(values: Values, baseline: Cell, cells: Sequence[Cell], weights: Floats) -> dict[str, Effect]:
    """Return how much better each cell is than the baseline, by condition."""
    start = values.column(baseline)
    return {
        cell.condition: effect(values.column(cell) - start, weights) for cell in cells if cell != baseline
    }


def levels(values: Values, cells: Sequence[Cell], weights: Floats) -> dict[str, Metrics]:
    """Return each condition's mean, as measured, and its mean rank within examples, 1 for the best."""
    columns = np.stack([values.column(cell) for cell in cells], axis=1)
    whole = np.isfinite(columns).all(axis=1)
    ranks = mean_ranks(-columns[whole]) if whole.any() else np.zeros((0, len(cells)))
    found: dict[str, Metrics] = {}
    for place, cell in enumerate(cells):
        there = np.isfinite(columns[:, place])
        found[cell.condition] = {
            "n": float(there.sum()),
            "mean": interval(values.sign * mean(weights[:, there], columns[there, place])),
            "rank": interval(mean(weights[:, whole], ranks[:, place])),
        }
    return found


def structure(values: Values, baseline: Cell, noise: Cell, oracle: Cell, weights: Floats) -> Metrics:
    """Return the share of the oracle's benefit that noise has as well, the structural fraction, and the rest.

    A fraction is undefined where the interval of the oracle's benefit holds 0.
    """
    start, random, real = (values.column(cell) for cell in (baseline, noise, oracle))
    there = np.isfinite(start) & np.isfinite(random) & np.isfinite(real)
    drawn = weights[:, there]
    structural, whole = (random - start)[there], (real - start)[there]
    benefit = interval(mean(drawn, whole))
    fraction = ratio(drawn, structural, whole)
    if not (benefit.low > 0 or benefit.high < 0):
        fraction = np.full_like(fraction, np.nan)
    return {
        "n": float(there.sum()),
        "oracle_benefit": benefit,
        "structural_benefit": interval(mean(drawn, structural)),
        "semantic_benefit": interval(mean(drawn, whole - structural)),
        "structural_fraction": interval(fraction),
        "semantic_fraction": interval(1 - fraction),
    }


def _variance(resampled: Floats) -> float:
    defined = resampled[np.isfinite(resampled)]
    return float(defined.var(ddof=1)) if len(defined) > 1 else float("nan")
