"""Running an experiment: its cells are scored example by example, and what is there is kept.

The unit of what is kept is an example's row in a cell. It is found again by a key that names the example's
content, the cell and all that the track says its rows depend on; so another n, more conditions or another
experiment of the same track go on with what is there.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kvguard.errors import KvguardError
from kvguard.store.journal import Journal, open_journal
from kvguard.store.parts import digest
from kvguard.store.schemas import conform
from kvguard.studies.directed.examples import Example
from kvguard.studies.directed.params import DatasetParams, Protocol
from kvguard.studies.directed.sources import Dataset
from kvguard.studies.directed.tracks import Bench, Cell, Row

_log = logging.getLogger(__name__)
TABLE = "directed"


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Attributes
    ----------
    table
        One row per example, cell and metric, see ``directed`` in :mod:`kvguard.store.schemas`.
    texts
        Example id and cell -> what its page shows.
    n_made, n_kept
        Rows scored now, and found.
    """

    table: pd.DataFrame
    texts: dict[tuple[str, Cell], dict[str, str]]
    n_made: int
    n_kept: int


def cells_of(protocol: Protocol) -> list[Cell]:
    """Return the cells of a protocol: every condition in every setting."""
    return [Cell(condition, setting) for setting in protocol.settings for condition in protocol.conditions]


def choose(dataset: Dataset, bench: Bench, params: DatasetParams, n: int | None) -> list[Example]:
    """Return the first ``n`` examples, or all, that the model can read; see :class:`DatasetParams`.

    Raises
    ------
    KvguardError
        A document is too long and the settings reject it; or there are not so many.
    """
    chosen: list[Example] = []
    skipped = 0
    for example in dataset.examples:
        if len(chosen) == n:
            break
        length, room = bench.length(example), bench.room(example)
        most = min(room, params.max_tokens or room)
        if length <= most:
            chosen.append(example)
        elif params.longer == "cut" and most > 0:
            chosen.append(bench.cut(example, most))
        elif params.longer == "reject":
            raise KvguardError(
                f"data set {dataset.name}, example {example.id}: its document has {length} tokens and {most} "
                f"can be read: set datasets.{dataset.name}.longer to skip or cut, or shorten it"
            )
        else:
            skipped += 1
    if skipped:
        _log.warning("data set %s: %d examples skipped: their documents are too long", dataset.name, skipped)
    if not chosen or (n is not None and len(chosen) < n):
        raise KvguardError(
            f"data set {dataset.name}: {len(chosen)} examples that the model can read, {n or 1} asked: "
            f"ask for fewer (-n), or raise datasets.{dataset.name}.max_tokens"
        )
    return chosen


def score(
    bench: Bench,
    dataset: Dataset,
    examples: Sequence[Example],
    cells: Sequence[Cell],
    journal: Path,
    chunk: int,
    on_progress: Callable[[int], None] = lambda n: None,
) -> Scored:
    """Score every example in every cell, ``chunk`` examples at a time; go on with what the journal holds.

    Parameters
    ----------
    on_progress
        Called with the number of examples done, after each chunk.
    """
    with open_journal(journal) as kept:
        keys = {
            (example.id, cell): digest(
                [bench.fingerprint, dataclasses.asdict(example), cell.condition, cell.setting]
            )
            for example in examples
            for cell in cells
        }
        found = {record["key"]: record for record in kept.records}
        n_made = 0
        for start in range(0, len(examples), chunk):
            batch = examples[start : start + chunk]
            for cell_group in _by_missing(batch, cells, keys, found):
                rows = bench.rows(*cell_group)
                _add(rows, keys, kept, found)
                n_made += len(rows)
            on_progress(min(start + chunk, len(examples)))
    records = {place: found[key] for place, key in keys.items()}
    return Scored(
        _table(dataset, examples, cells, records),
        {place: record["texts"] for place, record in records.items()},
        n_made,
        len(records) - n_made,
    )


def _by_missing(
    batch: Sequence[Example],
    cells: Sequence[Cell],
    keys: dict[tuple[str, Cell], str],
    found: dict[str, Any],
) -> list[tuple[list[Example], list[Cell]]]:
    """Group examples by the cells that they lack: mostly one group, of all examples and all cells."""
    groups: dict[tuple[Cell, ...], list[Example]] = {}
    for example in batch:
        missing = tuple(cell for cell in cells if keys[example.id, cell] not in found)
        if missing:
            groups.setdefault(missing, []).append(example)
    return [(examples, list(missing)) for missing, examples in groups.items()]


def _add(
    rows: Sequence[Row], keys: dict[tuple[str, Cell], str], journal: Journal, found: dict[str, Any]
) -> None:
    records = [
        {
            "key": keys[row.example, row.cell],
            "example": row.example,
            "condition": row.cell.condition,
            "setting": row.cell.setting,
            "metrics": {name: _finite(value) for name, value in row.metrics.items()},
            "texts": dict(row.texts),
        }
        for row in rows
    ]
    journal.add(records)
    found.update({str(record["key"]): record for record in records})


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _table(
    dataset: Dataset,
    examples: Sequence[Example],
    cells: Sequence[Cell],
    records: dict[tuple[str, Cell], dict[str, Any]],
) -> pd.DataFrame:
    rows = [
        (example.id, example.document, dataset.name, cell.condition, cell.setting, metric, value)
        for example in examples
        for cell in cells
        for metric, value in records[example.id, cell]["metrics"].items()
    ]
    names = ["example", "document", "dataset", "condition", "setting", "metric", "value"]
    return conform(TABLE, pd.DataFrame(rows, columns=names))
