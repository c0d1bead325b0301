"""A run in MLflow: the settings, the numbers of every bin, the figures, and the database itself."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from kv_transition.paths import Paths
from kv_transition.settings import Settings


def track(connection: sqlite3.Connection, settings: Settings, paths: Paths) -> None:
    """Log an experiment group with kvguard's tracking: where its store lies is found as for every stage."""
    from kvguard import tracking

    summary = json.loads(paths.summary.read_text(encoding="utf-8"))
    model = settings.engine.spawn_model or settings.model.name
    with tracking.run("transition", model=model, params=settings.snapshot()) as run:
        run.log_metrics({scope: _values(summary[scope]) for scope in ("first", "all") if scope in summary})
        for path in (paths.report, paths.page, paths.summary, paths.figures, paths.tables):
            run.log_artifact(path, path.name if path.is_dir() else None)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / paths.database.name
            with closing(sqlite3.connect(copy)) as target:  # what lies in the WAL too
                connection.backup(target)
            run.log_artifact(copy)


def _values(found: Any) -> Any:
    """Return nested numbers: of an interval its value."""
    if not isinstance(found, dict):
        return found
    if found.keys() == {"value", "low", "high"}:
        return found["value"]
    return {name: _values(value) for name, value in found.items()}
