"""Instructions that are followed without compression and not with it: which go first, what foresees it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvguard.stats.bootstrap import UNDEFINED, Floats, Interval, interval
from kvguard.stats.paired import mcnemar
from kvguard.store.results import Results
from kvguard.studies.instructions.arms import Arm
from kvguard.studies.instructions.statistics.answers import Answers

ALL = "all"
_SCORES = {"hazard": "highest hazard", "hazard_mean": "mean hazard", "n_tokens": "length"}


def add_forgetting(results: Results, answers: Answers) -> None:
    """Add the tables ``first-forgotten`` and ``foreseen``."""
    for arm in answers.others:
        if found := _first(answers, arm):
            results.add("first-forgotten", str(arm), found)
    named = {str(arm): [arm] for arm in answers.others}
    evicting = [arm for arm in answers.others if arm.evicts and not arm.guarded]
    for subject, arms in {ALL: evicting, **named}.items():
        if found := _foreseen(answers, arms):
            results.add("foreseen", subject, found)


def _first(answers: Answers, arm: Arm) -> dict[str, Interval | float]:
    """Count, of examples with two instructions that are both followed uncompressed, which was forgotten.

    The first is the one that stands first in the prompt; where that is not known the example does not count.
    The test asks whether the first is forgotten as often as the other.
    """
    followed: dict[int, dict[int, bool]] = {}
    for place, number, before, after in answers.against_baseline(arm):
        if before:
            followed.setdefault(place, {})[number] = after
    both = []
    for place, pair in followed.items():
        row = answers.get(answers.keys[place], arm)
        starts = [] if row is None else row["starts"]
        if len(pair) == len(starts) == 2 and None not in starts and starts[0] != starts[1]:
            first = int(np.argmin(starts))
            both.append((pair[first], pair[1 - first]))
    if not both:
        return {}
    first, second = both.count((False, True)), both.count((True, False))
    return {
        "n": len(both),
        "first_only": first,
        "second_only": second,
        "both": both.count((False, False)),
        "p": mcnemar(first, second),
    }


def _foreseen(answers: Answers, arms: list[Arm]) -> dict[str, Interval | float]:
    """Return how well what is known of an answer tells whether an instruction was forgotten in it: AUROC.

    Only answers count whose example has an instruction that is followed uncompressed. A catastrophe, 0 or 1,
    is what is known afterwards; the length is what a clock would say.
    """
    places, forgotten = [], []
    scores: dict[str, list[float]] = {name: [] for name in (*_SCORES, "catastrophe")}
    for arm in arms:
        lost: dict[int, bool] = {}
        for place, _, before, after in answers.against_baseline(arm):
            if before:
                lost[place] = lost.get(place, False) or not after
        for place, is_lost in lost.items():
            row = answers.get(answers.keys[place], arm)
            if row is None or row.get("hazard") is None:
                continue
            places.append(place)
            forgotten.append(is_lost)
            scores["catastrophe"].append(float(bool(row["catastrophes"])))
            for name in _SCORES:
                scores[name].append(float(row[name]))
    if not places:
        return {}
    labels, weights = np.array(forgotten), answers.weights[:, np.array(places)]
    found: dict[str, Interval | float] = {"n": len(labels), "n_forgotten": int(labels.sum())}
    for name, values in scores.items():
        found[f"auroc_{name}"] = auroc(np.array(values), labels, weights)
    return found


def auroc(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Interval:
    """Return the chance that a positive scores higher than a negative, ties counted as half.

    Parameters
    ----------
    scores, labels
        [N], [N]
    weights
        Of each in each resample, the sample's first. [R, N]
    """
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    sums = {
        label: np.add.reduceat(weights[:, order] * (labels[order] == label), starts, axis=1)
        for label in (True, False)
    }  # [R, distinct scores]
    below = np.cumsum(sums[False], axis=1) - sums[False] / 2
    total = sums[True].sum(axis=1) * sums[False].sum(axis=1)
    won = (sums[True] * below).sum(axis=1)
    values = np.divide(won, total, out=np.full(len(won), np.nan), where=total > 0)
    return interval(values) if np.isfinite(values[0]) else UNDEFINED
