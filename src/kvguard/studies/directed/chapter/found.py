"""An experiment's results as figures, tables and sentences look them up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from kvguard.report.numbers import Numbers
from kvguard.stats.bootstrap import Interval
from kvguard.store.tables import read_table
from kvguard.studies.directed.analysis.analyse import ALL, HARD, STAGE, headline
from kvguard.studies.directed.layout import Layout
from kvguard.studies.directed.params import Protocol

SUBSETS = {ALL: "all", HARD: "hard"}


@dataclass(frozen=True)
class Found:
    """The results of one experiment with one model."""

    layout: Layout
    model: str
    name: str
    protocol: Protocol
    frame: pd.DataFrame

    @classmethod
    def read(cls, layout: Layout, name: str, protocol: Protocol) -> Found:
        """Read what ``kvguard directed experiment`` left."""
        frame = read_table("results", layout.results(name))
        return cls(layout, str(frame["model"].iloc[0]), name, protocol, frame)

    @cached_property
    def _numbers(self) -> Numbers:
        return Numbers(self.frame, [STAGE])

    @cached_property
    def datasets(self) -> list[str]:
        """The data sets, in their order."""
        names = self.frame.loc[self.frame["table"].str.startswith("levels "), "table"]
        return list(dict.fromkeys(name.split(" ")[1] for name in names))

    @property
    def others(self) -> list[str]:
        """The conditions beside the baseline."""
        return [name for name in self.protocol.conditions if name != self.protocol.baseline]

    @property
    def first(self) -> str:
        """The setting in which nothing but the condition varies."""
        return self.protocol.settings[0]

    def get(self, table: Sequence[str], subject: str, metric: str) -> Interval:
        """Return a number; the table's name in its parts."""
        return self._numbers.get(STAGE, self.model, self.name, " ".join(table), subject, metric)

    def subjects(self, table: Sequence[str]) -> list[str]:
        """Return the subjects of a table."""
        return self._numbers.subjects(STAGE, self.model, self.name, " ".join(table))

    def headline(self) -> dict[str, Any]:
        """Return the numbers of all and of hard examples, nested."""
        return headline(self.frame)

    def examples(self) -> dict[str, list[dict[str, Any]]]:
        """Return the examples that are shown, by data set."""
        paths = sorted(self.layout.shown(self.name, "x").parent.glob("*.json"))
        return {path.stem: json.loads(path.read_text(encoding="utf-8"))["examples"] for path in paths}
