"""Every number that a stage finds, in one long table.

A result is named by its stage, model and protocol, and within them by a table (``predictor``), a subject
(``pre_onset``, ``snapkv@0.5``) and a metric (``auroc``). The report, the paper and the comparison of
protocols read this table and nothing else, so a number is computed once.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kvguard.stats.bootstrap import Interval, interval
from kvguard.store.schemas import TABLES, conform
from kvguard.store.tables import read_table, write_table

NO_PROTOCOL = ""


class Results:
    """Collects the results of one stage."""

    def __init__(self, stage: str, model: str, protocol: str = NO_PROTOCOL) -> None:
        self._origin = (stage, model, protocol)
        self._rows: list[tuple[str, str, str, float, float, float]] = []

    def add(self, table: str, subject: str, values: Mapping[str, Interval | float | int | None]) -> None:
        """Add the metrics of one subject; a plain number has no interval, None is undefined."""
        for metric, found in values.items():
            number = np.nan if found is None else found
            numbers = number if isinstance(number, Interval) else Interval(float(number), np.nan, np.nan)
            self._rows.append((table, subject, metric, numbers.value, numbers.low, numbers.high))

    def add_resampled(self, table: str, subject: str, values: Mapping[str, np.ndarray]) -> None:
        """Add metrics given as values over resamples, the sample's first. {metric: [R]}"""
        self.add(table, subject, {metric: interval(found) for metric, found in values.items()})

    def add_frame(self, frame: pd.DataFrame) -> None:
        """Add the rows of a ``results`` table."""
        names = ["table", "subject", "metric", "value", "low", "high"]
        self._rows += frame[names].itertuples(index=False, name=None)

    @property
    def frame(self) -> pd.DataFrame:
        """The ``results`` table so far."""
        names = list(TABLES["results"].columns)
        rows = [(*self._origin, *row) for row in self._rows]
        return conform("results", pd.DataFrame(rows, columns=names))

    def metrics(self, *tables: str) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """Return the named tables as nested mappings: {table: {subject: {metric: {value, low, high}}}}."""
        nested: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
        for table, subject, metric, value, low, high in self._rows:
            if table in tables:
                found = Interval(value, low, high).as_dict()
                nested.setdefault(table, {}).setdefault(subject, {})[metric] = found
        return nested

    def write(self, path: Path) -> None:
        """Write the ``results`` table."""
        write_table("results", self.frame, path)


def read_results(paths: Iterable[Path]) -> pd.DataFrame:
    """Read the results tables of several stages as one."""
    frames = [read_table("results", path) for path in paths]
    return pd.concat(frames, ignore_index=True) if frames else Results("", "").frame
