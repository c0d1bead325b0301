"""Where a run puts what it makes."""

from __future__ import annotations

import re
from pathlib import Path

RUNS, METRICS = Path("runs/instructions"), Path("metrics/instructions")


def folder_of(model: str, suite: str) -> Path:
    """Return the folder of a run, where none is named."""
    name = re.sub(r"[^\w.-]+", "-", model).strip("-")
    return RUNS / f"{name}-{suite}"


def results(folder: Path) -> Path:
    """Return the results table of a run."""
    return folder / "numbers.parquet"


def metrics(folder: Path) -> Path:
    """Return a run's numbers as JSON."""
    return folder / "metrics.json"


def page(folder: Path) -> Path:
    """Return the page of a run."""
    return folder / "report.html"


def tables(folder: Path) -> Path:
    """Return the folder of a run's tables."""
    return folder / "tables"


def figures(folder: Path) -> Path:
    """Return the folder of a run's figures."""
    return folder / "figures"
