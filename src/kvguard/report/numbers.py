"""What tables and sentences are made of: numbers by name, how they are written, rows for each model.

A table has a group of rows for each model. A model, or a stage of it, that was not run is a group without
rows and with the command that would fill it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pandas as pd

from kvguard.stats.bootstrap import UNDEFINED, Interval


class Kind(Enum):
    """How a number is written: its factor and its decimals."""

    PERCENT = (100.0, 1)
    FRACTION = (1.0, 3)
    SMALL = (1.0, 2)
    TENTH = (1.0, 1)
    COUNT = (1.0, 0)
    P = (1.0, 4)

    def write(self, value: float) -> str:
        """Return ``value`` as text; what is not a number as a dash."""
        factor, decimals = self.value
        if np.isnan(value):
            return "–"
        if np.isinf(value):
            return "∞" if value > 0 else "-∞"
        if self is Kind.P and value < 0.0001:
            return "< 0.0001"
        text = f"{value * factor:,.{decimals}f}"
        return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


@dataclass(frozen=True)
class Cell:
    """A number of a table, ready to be written."""

    found: Interval
    kind: Kind

    @property
    def value(self) -> str:
        """The number."""
        return self.kind.write(self.found.value)

    @property
    def interval(self) -> str:
        """Its interval, empty where it has none."""
        if not np.isfinite([self.found.low, self.found.high]).all():
            return ""
        return f"[{self.kind.write(self.found.low)}, {self.kind.write(self.found.high)}]"


@dataclass(frozen=True)
class Group:
    """The rows of one model; without rows, ``command`` measures them."""

    label: str
    rows: tuple[tuple[str | Cell, ...], ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Table:
    """One table of the report.

    Attributes
    ----------
    name
        Of its Markdown and LaTeX files.
    heads
        Of the columns; the first ``n_labels`` hold text.
    """

    name: str
    title: str
    note: str
    heads: tuple[str, ...]
    n_labels: int
    groups: tuple[Group, ...]


class Numbers:
    """Looks numbers up by what they are called.

    Parameters
    ----------
    results
        A ``results`` table of several stages.
    by_protocol
        The stages whose numbers are told apart by their protocol.
    """

    def __init__(self, results: pd.DataFrame, by_protocol: Collection[str]) -> None:
        self.frame = results
        self._found: dict[tuple[str, ...], Interval] = {}
        self._subjects: dict[tuple[str, ...], dict[str, None]] = {}
        for stage, model, protocol, table, subject, metric, value, low, high in results.itertuples(
            index=False
        ):
            key = (stage, model, protocol if stage in by_protocol else "", table)
            self._found[(*key, subject, metric)] = Interval(value, low, high)
            self._subjects.setdefault(key, {})[subject] = None

    def get(self, stage: str, model: str, protocol: str, table: str, subject: str, metric: str) -> Interval:
        """Return a number; one that was not measured is all NaN."""
        return self._found.get((stage, model, protocol, table, subject, metric), UNDEFINED)

    def names(self) -> list[tuple[str, ...]]:
        """Return what every number is called: the arguments of :meth:`get`."""
        return list(self._found)

    def subjects(self, stage: str, model: str, protocol: str, table: str) -> list[str]:
        """Return the subjects of a table in its order; none where the stage was not run."""
        return list(self._subjects.get((stage, model, protocol, table), ()))


def known(*found: Interval) -> bool:
    """Whether all of these numbers were measured."""
    return bool(np.isfinite([interval.value for interval in found]).all())


def percent(found: Interval) -> str:
    """Return a share with its interval, in percent."""
    return _written(found, Kind.PERCENT, " %")


def points(found: Interval) -> str:
    """Return a difference of shares with its interval, in points."""
    return _written(found, Kind.PERCENT, " points")


def fraction(found: Interval) -> str:
    """Return a number with its interval."""
    return _written(found, Kind.FRACTION, "")


def _written(found: Interval, kind: Kind, unit: str) -> str:
    cell = Cell(found, kind)
    return f"{cell.value}{unit} {cell.interval}".rstrip()
