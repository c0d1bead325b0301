"""Two experiment groups side by side."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from kv_transition.analysis.bootstrap import Resamples, Sums
from kv_transition.analysis.queries import read_bins, read_table
from kv_transition.db import dao
from kv_transition.db.connect import connect
from kv_transition.settings import Analysis
from kvguard.errors import KvguardError
from kvguard.stats.bootstrap import interval


def compare(first: Path, second: Path) -> str:
    """Return a table of the scores of two groups, by budget and bin, with the interval of the difference.

    Where both asked the same examples the difference is paired by example; else the groups are resampled
    apart.

    Raises
    ------
    KvguardError
        They have other bins, other metrics, or no budget in common.
    """
    groups = [_read(path) for path in (first, second)]
    one, other = groups
    if one["headline"] != other["headline"]:
        raise KvguardError(
            f"compare: {one['id']} is scored by {one['headline']}, {other['id']} by {other['headline']}"
        )
    if one["edges"] != other["edges"]:
        raise KvguardError(
            f"compare: the bins of {one['id']} and {other['id']} differ: prepare both with the same edges "
            f"in binning.by"
        )
    budgets = [budget for budget in one["scores"] if budget in other["scores"]]
    if not budgets:
        raise KvguardError(f"compare: {one['id']} and {other['id']} have no budget in common")
    lines = [
        f"{one['headline']}: A is {one['id']}, B is {other['id']}",
        "",
        "| budget | tokens | A | B | B - A | |",
        "| ---: | --- | ---: | ---: | --- | --- |",
    ]
    for budget in budgets:
        for index, (low, high) in enumerate(zip(one["edges"], one["edges"][1:], strict=False)):
            mine, theirs = (group["scores"][budget].get(index, {}) for group in groups)
            lines.append(_row(budget, low, high, mine, theirs))
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    """Return what is compared of one group: its scores by budget, bin and example."""
    with contextlib.closing(connect(path)) as connection:
        dataset = dao.dataset(connection)
        if dataset is None:
            raise KvguardError(f"{path}: nothing is prepared in it")
        table, bins = read_table(connection, dataset.headline), read_bins(connection)
        group = connection.execute("SELECT id FROM experiments").fetchone()[0]
        names = [
            row[0]
            for row in connection.execute(
                "SELECT example_id FROM manifest_entries JOIN examples ON examples.id = example_ref WHERE "
                "EXISTS (SELECT 1 FROM requests JOIN responses ON request_id = requests.id JOIN scores ON "
                "response_id = responses.id WHERE entry_id = manifest_entries.id) ORDER BY "
                "manifest_entries.id"
            )
        ]
    scores: dict[float, dict[int, dict[str, list[float]]]] = {}
    for budget, index, example, score in zip(
        table.budget, table.bin, table.example, table.score, strict=True
    ):
        known = scores.setdefault(float(budget), {}).setdefault(int(index), {})
        known.setdefault(names[example], []).append(float(score))
    edges = [*bins.low.tolist(), float(bins.high[-1])]
    return {"id": group, "headline": dataset.headline, "edges": edges, "scores": scores}


def _row(
    budget: float, low: float, high: float, mine: dict[str, list[float]], theirs: dict[str, list[float]]
) -> str:
    shared = sorted(mine.keys() & theirs.keys())
    settings = Analysis()
    means = [_mean(known) for known in (mine, theirs)]
    if shared:
        resamples = Resamples(len(shared), settings.n_resamples, settings.seed)
        values = resamples.difference(_sums(theirs, shared), _sums(mine, shared))
        how = f"same {len(shared)} examples"
    elif mine and theirs:
        apart = []
        for number, known in enumerate((mine, theirs)):
            resamples = Resamples(len(known), settings.n_resamples, settings.seed + number)
            apart.append(resamples.mean(_sums(known, sorted(known))))
        values, how = apart[1] - apart[0], "other examples"
    else:
        values, how = np.full(2, math.nan), "not asked by both"
    found = interval(values)
    difference = (
        f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]" if math.isfinite(found.value) else ""
    )
    cells = [f"{budget:g}", f"{low:,.0f} to {high - 1:,.0f}", *(f"{m:.2f}" for m in means), difference, how]
    return f"| {' | '.join(cells)} |"


def _mean(known: dict[str, list[float]]) -> float:
    values = [value for scores in known.values() for value in scores]
    return float(np.mean(values)) if values else math.nan


def _sums(known: dict[str, list[float]], names: list[str]) -> Sums:
    scores = [np.asarray(known[name]) for name in names]
    n = np.array([len(one) for one in scores], dtype=np.float64)
    total, squared = (np.array([float((one**power).sum()) for one in scores]) for power in (1, 2))
    return Sums(n, total, squared, np.zeros_like(n))
