"""Tests of paired outcomes."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

from kvguard.stats.bootstrap import LEVEL, UNDEFINED, Floats, Interval, interval, share

K = TypeVar("K", bound=Hashable)


def mcnemar(more: int, less: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: that both kinds of discordant pair are as likely.

    Parameters
    ----------
    more, less
        Pairs in which only the first outcome is 1, and in which only the second is. Without any, p is 1.
    """
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(more, more + less).pvalue) if more + less else 1.0


def discordant_odds(more: int, less: int) -> Interval:
    """Return the odds ratio of matched pairs, with the exact interval of Clopper and Pearson (1934).

    Its estimate is the ratio of the discordant counts. Half a pair is added to both (Haldane 1956, Anscombe
    1956), so that it stays finite without any of one kind, and is 1 without any of either; the interval
    then has no bound on that side: 0 or infinity.
    """
    from scipy.stats import binomtest  # slow to import

    share_of_more = binomtest(more, more + less).proportion_ci(LEVEL) if more + less else (0.0, 1.0)
    low, high = (float(p / (1 - p)) if p < 1 else float("inf") for p in share_of_more)
    return Interval((more + 0.5) / (less + 0.5), low, high)


def holm(p: Floats) -> Floats:
    """Correct the p-values of a family of tests by Holm's step-down method (1979). [M]

    NaN is no test: it stays NaN and the family is the rest.
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]  # NaN sorts last
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def compare(
    values: Mapping[K, Floats], pairs: Mapping[K, K], weights: Floats
) -> dict[K, dict[str, Interval | float]]:
    """Compare each outcome with its control on the same prompts, as one family of tests.

    The difference (outcome minus control) with its interval over prompts, the odds ratio of the discordant
    pairs with its exact interval, the p-value of McNemar's exact test, and that value after Holm's correction
    over all pairs. Prompts that either side has not scored are left out.

    Parameters
    ----------
    values
        An outcome of every prompt, NaN where it was not scored. [P] each
    pairs
        Name of an outcome -> name of its control.
    weights
        Of the prompts in each resample. [R, P]
    """
    compared: dict[K, dict[str, Interval | float]] = {}
    for name, control in pairs.items():
        change = values[name] - values[control]
        scored = np.isfinite(change)
        counts = int((change > 0).sum()), int((change < 0).sum())
        compared[name] = {
            "difference": interval(share(weights, np.nan_to_num(change), scored)),
            "odds_ratio": discordant_odds(*counts) if scored.any() else UNDEFINED,
            "p": mcnemar(*counts) if scored.any() else np.nan,
        }
    corrected = holm(np.array([numbers["p"] for numbers in compared.values()], dtype=float))
    for numbers, p in zip(compared.values(), corrected, strict=True):
        numbers["p_holm"] = float(p)
    return compared
