"""What the chapter is about: the study's settings, and the numbers of its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from kvguard.report.numbers import Cell, Group, Kind, Numbers, Table
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.chapter.figures import model_title
from kvguard.studies.catastrophes.params import Params


def numbers_of(results: pd.DataFrame) -> Numbers:
    """Return the numbers of a ``results`` table; only train and evaluate have a protocol."""
    return Numbers(results, by_protocol=("train", "evaluate"))


@dataclass(frozen=True)
class Pipeline:
    """What the report is about: its settings and the numbers of its stages."""

    params: Params
    numbers: Numbers

    @property
    def models(self) -> list[str]:
        """The models of this pipeline, the main one first."""
        return [self.params.model, self.params.transfer_to]

    @property
    def absent(self) -> list[str]:
        """The models that a reader expects and that are not part of it."""
        return [name for name in self.params.report.models if name not in self.models]

    def title(self, model: str) -> str:
        """Return how a model is called in headings."""
        return model_title(model, self.params.spec(model).is_reference)


Column = tuple[str, str, Kind]  # head, metric, how it is written


def groups_of(
    pipeline: Pipeline,
    stages: str,
    rows: Callable[[str], list[tuple[str | Cell, ...]]],
    everywhere: bool = False,
) -> tuple[Group, ...]:
    """Return a group for each model of the pipeline and, where ``everywhere``, for each absent one."""
    command = "dvc repro " + " ".join(dict.fromkeys(map(layout.made_by, stages.split())))
    made = []
    for model in pipeline.models:
        found = tuple(rows(model))
        made.append(Group(pipeline.title(model), found, "" if found else command))
    absent = pipeline.absent if everywhere else []
    return (*made, *(Group(name, command=f"dvc exp run -S model={name}") for name in absent))


_SUBJECT = {  # what the rows of a table are, where they are not conditions
    "onset_entropy": "traces",
    "features": "features",
    "controllers": "controller",
    "hysteresis": "k",
    "thresholds": "tau",
    "transfer": "trained → tested",
    "predictor": "tokens",
    "horizons": "H",
    "cross_validation": "left out",
    "operating_points": "operating point",
    "alarms-balanced": "failures",
}
_SPELLED = {"pre_onset": "pre-onset", "overall": "all compressed", "non_termination": "non-termination"}


def table_of(
    pipeline: Pipeline,
    name: str,
    title: str,
    note: str,
    stage: str,
    table: str,
    columns: Sequence[Column],
    protocols: Sequence[str] = ("",),
    everywhere: bool = False,
    subjects: Mapping[str, str] | None = None,
) -> Table:
    """Return a table of the results as it is: a row for each subject, protocol by protocol.

    Parameters
    ----------
    subjects
        Those that are shown, and what they are called; by default all.
    """
    numbers, several = pipeline.numbers, len(protocols) > 1

    def shown(measured: Sequence[str]) -> list[tuple[str, str]]:
        if subjects is None:
            return [(name, _SPELLED.get(name, name.replace("->", " → "))) for name in measured]
        return [(name, spelled) for name, spelled in subjects.items() if name in measured]

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        return [
            (
                *([protocol] if several else []),
                spelled,
                *(Cell(numbers.get(stage, model, protocol, table, subject, m), k) for _, m, k in columns),
            )
            for protocol in protocols
            for subject, spelled in shown(numbers.subjects(stage, model, protocol, table))
        ]

    labels = (*(["protocol"] if several else []), _SUBJECT.get(table, "condition"))
    heads = (*labels, *(head for head, _, _ in columns))
    return Table(name, title, note, heads, len(labels), groups_of(pipeline, stage, rows, everywhere))
