"""Budget by budget and bin by bin: accuracy, its spread, failures, time and memory, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kv_transition.analysis.bootstrap import Resamples, Sums, proportion
from kv_transition.analysis.queries import Bins, Floats, Table
from kv_transition.settings import FULL, Analysis
from kvguard.stats.bootstrap import UNDEFINED, Interval, interval

MEAN, STD, WITHIN, FAILURES, DIFFERENCE = "score", "std", "std_within", "failure_rate", "score_minus_full"
_QUANTILES = (("latency_s", 50), ("latency_s", 95), ("ttft_s", 50), ("ttft_s", 95), ("memory_bytes", 95))
EFFECTIVE = "effective_length"


@dataclass(frozen=True)
class Stat:
    """One number of one bin at one budget; ``bin`` is -1 where it is about all of them."""

    budget: float
    bin: int
    metric: str
    found: Interval


@dataclass(frozen=True)
class Budget:
    """What detection needs of one budget: sums by example, for each of the bins that have any."""

    budget: float
    bins: list[int]
    sums: list[Sums]


def aggregate(table: Table, bins: Bins, settings: Analysis) -> tuple[list[Stat], list[Budget]]:
    """Return every number of every bin, and the sums that they are made of.

    The budgets are those of the table, the largest first.
    """
    budgets = sorted(set(table.budget.tolist()), reverse=True)
    stats: list[Stat] = []
    sums: dict[float, list[Sums]] = {budget: [] for budget in budgets}
    means: dict[float, list[Floats]] = {budget: [] for budget in budgets}
    present: list[int] = []
    for index in range(len(bins.low)):
        here = table.of(table.bin == index)
        known, example = np.unique(here.example, return_inverse=True)
        if not len(known):
            continue
        present.append(index)
        resamples = Resamples(len(known), settings.n_resamples, settings.seed + index)
        for budget in budgets:
            mine = here.budget == budget
            sums[budget].append(Sums.of(example[mine], here.score[mine], here.failed[mine], len(known)))
            means[budget].append(resamples.mean(sums[budget][-1]))
            full = sums[FULL][-1] if FULL in sums else None
            stats += [
                Stat(budget, index, metric, found)
                for metric, found in _of_bin(resamples, sums[budget][-1], full, here.of(mine))
            ]
    lengths = bins.mean_tokens[present]
    for budget in budgets:
        effective = effective_length(np.stack(means[budget]), lengths, settings.effective)
        stats.append(Stat(budget, -1, EFFECTIVE, interval(effective)))
    return stats, [Budget(budget, present, sums[budget]) for budget in budgets]


def _of_bin(
    resamples: Resamples, sums: Sums, full: Sums | None, rows: Table
) -> Iterator[tuple[str, Interval]]:
    n = float((sums.n > 0).sum())
    yield "n", Interval(n, n, n)
    yield MEAN, proportion(resamples.mean(sums), n)
    yield STD, interval(resamples.std(sums))
    if (sums.n > 1).any():
        yield WITHIN, interval(resamples.within_std(sums))
    yield FAILURES, proportion(resamples.failure_rate(sums), n)
    if full is not None and full is not sums:
        yield DIFFERENCE, interval(resamples.difference(sums, full))
    for name, percent in _QUANTILES:
        yield f"{name}_p{percent}", _quantile(rows.timed[name], percent)
    yield "kv_kept_share", _mean(rows.timed["kv_kept"] / rows.timed["kv_prompt"])
    yield "prompt_tokens", _mean(rows.prompt_tokens)


def _quantile(values: Floats, percent: int) -> Interval:
    """Return a quantile of what was measured; it has no interval: seconds are of this machine on this day."""
    known = values[np.isfinite(values)]
    return (
        Interval(float(np.quantile(known, percent / 100)), *[float("nan")] * 2) if len(known) else UNDEFINED
    )


def _mean(values: Floats) -> Interval:
    known = values[np.isfinite(values)]
    return Interval(float(known.mean()), *[float("nan")] * 2) if len(known) else UNDEFINED


def effective_length(means: Floats, lengths: Floats, kept: float) -> Floats:
    """Return the mean length of the longest bin with at least ``kept`` of the shortest one's score. [1 + R]

    NoLiMa's definition; NaN where the shortest bin's score is 0.

    Parameters
    ----------
    means
        Mean score of each bin in each resample. [bins, 1 + R]
    lengths
        Mean tokens of each bin.
    """
    enough = means >= kept * means[0] - 1e-12
    longest = len(means) - 1 - np.argmax(enough[::-1], axis=0)
    return np.where(means[0] > 0, lengths[longest], np.nan)
