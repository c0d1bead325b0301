"""What the analysis reads from the database, as arrays."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_transition.db.dao import MEASURED
from kvguard.errors import KvguardError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FIRST, ALL = "first", "all"


@dataclass(frozen=True)
class Table:
    """One row per scored response: arrays of one length.

    Attributes
    ----------
    budget, bin
        The budget as it is written in the settings; the bin's index.
    example
        Rises from 0 over the examples of all bins; a response to the same example at another budget has the
        same.
    score, failed
        The headline metric; whether any failure was found.
    timed
        Seconds, bytes and entries by name, NaN where nobody told.
    """

    budget: Floats
    bin: Ints
    example: Ints
    score: Floats
    failed: Floats
    counted_tokens: Floats
    prompt_tokens: Floats
    timed: dict[str, Floats]

    def of(self, chosen: NDArray[np.bool_]) -> Table:
        """Return some of its rows."""
        return Table(
            self.budget[chosen],
            self.bin[chosen],
            self.example[chosen],
            self.score[chosen],
            self.failed[chosen],
            self.counted_tokens[chosen],
            self.prompt_tokens[chosen],
            {name: values[chosen] for name, values in self.timed.items()},
        )


@dataclass(frozen=True)
class Bins:
    """The bins of a data set: edges in tokens, and the mean length of the examples asked."""

    low: Floats
    high: Floats
    mean_tokens: Floats


def read_table(connection: sqlite3.Connection, headline: str, scope: str = ALL) -> Table:
    """Return all scored responses, or those to the examples of the first stage.

    Raises
    ------
    KvguardError
        There are none.
    """
    rows = connection.execute(
        f"SELECT runs.budget, bin_index, manifest_entries.id, scores.{headline}, "
        "EXISTS (SELECT 1 FROM failures WHERE failures.response_id = responses.id), "
        f"n_tokens, prompt_tokens, {', '.join(MEASURED)} "
        "FROM responses JOIN scores ON scores.response_id = responses.id "
        "JOIN telemetry ON telemetry.response_id = responses.id "
        "JOIN requests ON requests.id = request_id JOIN runs ON runs.id = run_id "
        "JOIN manifest_entries ON manifest_entries.id = entry_id JOIN bins ON bins.id = bin_id "
        "JOIN examples ON examples.id = example_ref "
        "WHERE stage = 1 OR ? ORDER BY responses.request_id",
        (scope == ALL,),
    ).fetchall()
    if not rows:
        raise KvguardError("there is no score to analyze: run `kv-transition score` first")
    found = np.array([tuple(row) for row in rows], dtype=np.float64)
    _, example = np.unique(found[:, 2], return_inverse=True)
    return Table(
        found[:, 0],
        found[:, 1].astype(np.int64),
        example.astype(np.int64),
        found[:, 3],
        found[:, 4],
        found[:, 5],
        found[:, 6],
        {name: found[:, 7 + column] for column, name in enumerate(MEASURED)},
    )


def read_bins(connection: sqlite3.Connection) -> Bins:
    """Return the bins in order."""
    rows = connection.execute(
        "SELECT low, high, avg(n_tokens) FROM bins LEFT JOIN manifest_entries ON bin_id = bins.id "
        "LEFT JOIN examples ON examples.id = example_ref GROUP BY bins.id ORDER BY bin_index"
    ).fetchall()
    low, high, mean = np.array([tuple(row) for row in rows], dtype=np.float64).T
    return Bins(low, high, mean)


def failure_counts(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return how often each kind is the primary failure, and how often it holds at all, by budget and bin."""
    rows = connection.execute(
        "SELECT runs.budget, bin_index, kind, sum(is_primary) AS primary_, count(*) AS n FROM failures "
        "JOIN responses ON responses.id = response_id JOIN requests ON requests.id = request_id "
        "JOIN runs ON runs.id = run_id JOIN manifest_entries ON manifest_entries.id = entry_id "
        "JOIN bins ON bins.id = bin_id GROUP BY runs.budget, bin_index, kind "
        "ORDER BY runs.budget DESC, bin_index, kind"
    )
    return [dict(row) for row in rows]


def excerpts(connection: sqlite3.Connection, per_kind: int = 2) -> list[dict[str, Any]]:
    """Return the first failed answers of each kind and budget, and wrong answers that did not fail."""
    rows = connection.execute(
        "SELECT * FROM (SELECT coalesce(kind, 'WRONG_ANSWER') AS kind, runs.budget, bin_index, n_tokens, "
        "question, answers, text, error, parsed, evidence, row_number() OVER (PARTITION BY coalesce(kind, "
        "'WRONG_ANSWER'), runs.budget ORDER BY bin_index, responses.request_id) AS number FROM responses "
        "JOIN scores ON scores.response_id = responses.id LEFT JOIN failures ON failures.response_id = "
        "responses.id AND is_primary JOIN requests ON requests.id = request_id JOIN runs ON runs.id = "
        "run_id JOIN manifest_entries ON manifest_entries.id = entry_id JOIN bins ON bins.id = bin_id JOIN "
        "examples ON examples.id = example_ref WHERE kind IS NOT NULL OR (em = 0 AND substring_em = 0)) "
        "WHERE number <= ? ORDER BY kind, budget DESC, number",
        (per_kind,),
    )
    return [{**dict(row), "answers": json.loads(row["answers"])} for row in rows]


def request_counts(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return for each budget how many requests were planned, answered, retried, and how often in all."""
    rows = connection.execute(
        "SELECT runs.budget, count(*) AS planned, count(responses.id) AS answered, "
        "coalesce(sum(attempts > 1), 0) AS retried, coalesce(sum(attempts), 0) AS attempts, "
        "coalesce(sum(error IS NOT NULL), 0) AS errors FROM requests JOIN runs ON runs.id = run_id "
        "LEFT JOIN responses ON responses.request_id = requests.id GROUP BY runs.budget ORDER BY "
        "runs.budget DESC"
    )
    return [dict(row) for row in rows]
