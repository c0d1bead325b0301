"""The phase `score`: scores and failures of every response that has none."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from kv_transition.data.loader import rendering
from kv_transition.db import dao
from kv_transition.eval.failure_taxonomy import Failures
from kv_transition.eval.metrics import METRICS, parse, scores_of
from kv_transition.settings import Settings
from kvguard.errors import KvguardError


def score(connection: sqlite3.Connection, settings: Settings) -> int:
    """Score what has not been scored; return how many responses that were.

    Raises
    ------
    KvguardError
        There is no response.
    """
    dataset = dao.dataset(connection)
    rows = dao.unscored(connection)
    if dataset is None or (
        not rows and connection.execute("SELECT count(*) FROM responses").fetchone()[0] == 0
    ):
        raise KvguardError("there is no response to score: run `kv-transition run` first")
    _, cued = rendering(dataset.manifest["template"], settings.engine.api)
    taxonomy = Failures.load()
    scores: list[tuple[Any, ...]] = []
    failures: list[tuple[int, str, bool, str]] = []
    for row in rows:
        answered = dao.Answered(
            row["text"], row["finish_reason"], row["http_status"], row["error"], bool(row["timed_out"])
        )
        parsed = None if answered.error is not None else parse(answered.text, cued)
        found = scores_of(parsed, answered, json.loads(row["answers"]))
        scores.append((row["id"], parsed, *(found[name] for name in METRICS)))
        for number, failure in enumerate(taxonomy.of(answered, parsed, cued)):
            failures.append((row["id"], failure.kind, number == 0, failure.evidence))
    dao.enter_scores(connection, scores, failures)
    return len(rows)
