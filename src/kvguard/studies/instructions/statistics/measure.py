"""How many instructions were followed, under which arm, of which type, standing where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvguard.stats.bootstrap import Interval, interval, mean_by, share, sum_by
from kvguard.store.results import Results
from kvguard.studies.instructions.arms import Arm
from kvguard.studies.instructions.statistics.answers import LEVELS, Answers
from kvguard.studies.instructions.statistics.comparisons import add_comparisons
from kvguard.studies.instructions.statistics.forgetting import add_forgetting
from kvguard.studies.instructions.statistics.judged import add_agreement

STAGE = "instructions"


def measure(answers: Answers, model: str, suite: str) -> Results:
    """Return all numbers of a run."""
    results = Results(STAGE, model, suite)
    for arm in answers.arms:
        results.add("followed", str(arm), _followed(answers, arm))
    for name, of in (("types", _types), ("positions", _positions)):
        for arm in answers.arms:
            for label, values in _by(answers, arm, of).items():
                results.add(name, f"{arm}/{label}", values)
    add_comparisons(results, answers)
    add_forgetting(results, answers)
    add_agreement(results, answers)
    return results


def _followed(answers: Answers, arm: Arm) -> dict[str, Interval | float | None]:
    """Return what became of the answers of one arm."""
    weights = answers.weights
    values: dict[str, Interval | float | None] = {}
    for level in LEVELS:
        outcome = answers.prompt[level][arm]
        places, verdicts = answers.verdicts(arm, level)
        values[f"prompt_{level}"] = interval(mean_by(weights, np.arange(len(outcome)), outcome))
        values[f"instruction_{level}"] = interval(mean_by(weights, places, verdicts))
    pairs = [(place, not after) for place, _, before, after in answers.against_baseline(arm) if before]
    lost = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    values["forgotten"] = interval(mean_by(weights, lost[:, 0].astype(np.int64), lost[:, 1]))
    present = [answers.get(key, arm) for key in answers.keys]
    failed = np.array([np.nan if row is None else float(bool(row["catastrophes"])) for row in present])
    values["cbr"] = interval(mean_by(weights, np.arange(len(failed)), failed))
    n, kept = answers.column(arm, "n_prompt"), answers.column(arm, "n_kept")
    values |= {
        "n": int(np.isfinite(answers.prompt["strict"][arm]).sum()),
        "unfit": sum("unfit" in answers.rows.get((key, str(arm)), {}) for key in answers.keys),
        "unscored": sum(row is not None and None in row["strict"] for row in present),
        "removed": _mean(1 - kept / n),
        "protected": _mean(answers.column(arm, "n_protected") / n),
        "tokens": _mean(answers.column(arm, "n_tokens")),
        "kv_saved": _mean(answers.column(arm, "kv_saved")),
    }
    return values


def _mean(values: Any) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _by(
    answers: Answers, arm: Arm, of: Callable[[Mapping[str, Any], int], str | None]
) -> dict[str, dict[str, Interval | float | None]]:
    """Return the share followed of the instructions of each label, and how many there are."""
    found: dict[str, list[tuple[int, bool]]] = {}
    for place, key in enumerate(answers.keys):
        row = answers.get(key, arm)
        for number, verdict in enumerate(row["strict"] if row is not None else ()):
            label = of(row, number) if row is not None else None
            if label is not None and verdict is not None:
                found.setdefault(label, []).append((place, verdict))
    n = answers.weights.shape[1]
    measured: dict[str, dict[str, Interval | float | None]] = {}
    for label, pairs in sorted(found.items()):
        places, verdicts = (np.array(column) for column in zip(*pairs, strict=True))
        every = sum_by(places, np.ones(len(places)), n)
        rate = interval(share(answers.weights, sum_by(places, verdicts, n), every))
        measured[label] = {"instruction_strict": rate, "n": len(pairs)}
    return measured


def _types(row: Mapping[str, Any], number: int) -> str:
    return str(row["instructions"][number])


def _positions(row: Mapping[str, Any], number: int) -> str | None:
    """Return where an instruction stands: as the suite says, else in which third of the prompt it begins."""
    start = row["starts"][number]
    if row["position"] is not None or start is None:
        return row["position"]
    return ("start", "middle", "end")[3 * start // row["n_prompt"]]
