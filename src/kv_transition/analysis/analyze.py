"""The phase `analyze`: from scores to the tables of the analysis, once for each scope."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Sequence

from kv_transition.analysis.aggregate import Stat, aggregate
from kv_transition.analysis.queries import ALL, FIRST, Bins, read_bins, read_table
from kv_transition.analysis.transition import Zone, detect
from kv_transition.db import dao
from kv_transition.settings import Settings
from kvguard.errors import KvguardError


def analyze(connection: sqlite3.Connection, settings: Settings, group: str) -> list[Zone]:
    """Fill bin_stats and transition_summary anew; return the zones of all examples.

    Where examples were added by `refine`, the first stage is analyzed by itself too: its bins were not
    chosen by what was seen.

    Raises
    ------
    KvguardError
        There are no scores, or responses without one.
    """
    dataset = dao.dataset(connection)
    if dataset is None or dao.unscored(connection):
        raise KvguardError("there are responses without scores: run `kv-transition score` first")
    bins = read_bins(connection)
    scopes = (FIRST, ALL) if len(dataset.manifest["stages"]) > 1 else (ALL,)
    dao.forget(connection, "analyze")
    zones: list[Zone] = []
    for scope in scopes:
        table = read_table(connection, dataset.headline, scope)
        stats, budgets = aggregate(table, bins, settings.analysis)
        zones = detect(budgets, settings.analysis)
        _enter(connection, group, scope, stats, zones, bins)
    return zones


def _enter(
    connection: sqlite3.Connection,
    group: str,
    scope: str,
    stats: Sequence[Stat],
    zones: Sequence[Zone],
    bins: Bins,
) -> None:
    with connection:
        connection.executemany(
            "INSERT INTO bin_stats (experiment_id, scope, budget, bin_index, metric, value, low, high) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    group,
                    scope,
                    one.budget,
                    one.bin,
                    one.metric,
                    *map(_null, (one.found.value, one.found.low, one.found.high)),
                )
                for one in stats
            ),
        )
        connection.executemany(
            "INSERT INTO transition_summary (experiment_id, scope, budget, found, start_bin, end_bin, "
            "start_tokens, end_tokens, p_value, rationale) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    group,
                    scope,
                    zone.budget,
                    zone.found,
                    zone.start,
                    zone.end,
                    None if zone.start is None else float(bins.low[zone.start]),
                    None if zone.end is None else float(bins.high[zone.end]) - 1,
                    zone.p_adjusted,
                    json.dumps({**zone.rationale, "p_permutation": zone.p_value}),
                )
                for zone in zones
            ),
        )


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
