"""Do rules and judge agree where both were asked?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kvguard.stats.bootstrap import Floats
from kvguard.store.results import Results
from kvguard.studies.instructions.statistics.answers import Answers

CALLS = (
    "called", "cached", "yes", "no", "nonsense", "refused", "timeout", "rate_limited", "failed", "capped",
    "given_up", "cost",
)  # fmt: skip


def add_agreement(results: Results, answers: Answers) -> None:
    """Add the table ``judge``: verdicts of the judge alone, and Cohen's kappa where there are both."""
    place = {key: number for number, key in enumerate(answers.keys)}
    pairs, alone, silent = [], 0, 0
    for (key, _), row in answers.rows.items():
        if "unfit" in row or key not in place:
            continue
        for ruled, verdict, judged in zip(row.get("ruled", ()), row["strict"], row["judged"], strict=False):
            if judged is None:
                silent += not ruled
            elif ruled:
                pairs.append((place[key], verdict, judged))
            else:
                alone += 1
    if not (pairs or alone or silent):
        return
    found = np.array(pairs, dtype=np.int64).reshape(-1, 3)
    weights = answers.weights[:, found[:, 0]]
    rule, judge = found[:, 1].astype(bool), found[:, 2].astype(bool)
    results.add("judge", "all", {"n_both": len(pairs), "n_alone": alone, "n_unscored": silent})
    results.add_resampled(
        "judge",
        "all",
        {"kappa": kappa(rule, judge, weights), "agreement": _mean(weights, rule == judge)},
    )


def add_calls(results: Results, notes: Sequence[Mapping[str, float | None]]) -> None:
    """Add the table ``judge-calls``: what came of asking the judge, over all runs."""
    if notes:
        total = {name: sum(note.get(name) or 0 for note in notes) for name in CALLS}
        unpriced = any(note.get("cost") is None for note in notes)
        results.add("judge-calls", "all", {**total, "cost": None if unpriced else total["cost"]})


def kappa(first: np.ndarray, second: np.ndarray, weights: Floats) -> Floats:
    """Return Cohen's kappa of two judges' verdicts, [N] each, in each resample of weights [R, N]. [R]"""
    agreed, one, other = (_mean(weights, values) for values in (first == second, first, second))
    chance = one * other + (1 - one) * (1 - other)
    return np.divide(agreed - chance, 1 - chance, out=np.full(len(agreed), np.nan), where=chance < 1)


def _mean(weights: Floats, values: np.ndarray) -> Floats:
    total = weights.sum(axis=1)
    return np.divide(weights @ values, total, out=np.full(len(total), np.nan), where=total > 0)
