"""One experiment from its examples to its results, for one model and any number of data sets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from kvguard.config import check_known
from kvguard.store.files import write_json
from kvguard.store.results import Results
from kvguard.store.tables import read_table, write_table
from kvguard.studies.directed.analysis.analyse import analyse
from kvguard.studies.directed.chapter.shown import shown
from kvguard.studies.directed.layout import Layout
from kvguard.studies.directed.params import Params
from kvguard.studies.directed.run import TABLE, Scored, cells_of, choose, score
from kvguard.studies.directed.sources import open_dataset
from kvguard.studies.directed.tracks import TRACKS, Opening

if TYPE_CHECKING:
    from kvguard.models.spec import ModelSpec
    from kvguard.studies.directed.params import Protocol

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model by its name, and where it comes from."""

    name: str
    spec: ModelSpec


def score_dataset(
    name: str,
    protocol: Protocol,
    subject: Subject,
    dataset_name: str,
    n: int | None,
    params: Params,
    layout: Layout,
    on_progress: Callable[[int, int], None],
) -> Scored:
    """Score a protocol's cells on one data set, and write its table and the examples that its page shows.

    Raises
    ------
    KvguardError
        The data set or the model cannot be read, or a document is too long.
    """
    check_known(f"experiments.{name}.track", protocol.track, TRACKS)
    called, settings = params.dataset(dataset_name)
    dataset = open_dataset(called, settings, params.seed)
    opening = Opening(name, subject.name, subject.spec, params, protocol, dataset, layout.folder)
    with TRACKS[protocol.track](opening) as bench:
        examples = choose(dataset, bench, settings, n)
        scored = score(
            bench,
            dataset,
            examples,
            cells_of(protocol),
            layout.journal(called, protocol.track),
            params.scoring.chunk,
            lambda done: on_progress(done, len(examples)),
        )
    write_table(TABLE, scored.table, layout.table(name, called))
    write_json(layout.shown(name, called), {"examples": shown(examples, scored, protocol)})
    return scored


def conclude(name: str, protocol: Protocol, params: Params, layout: Layout) -> Results:
    """Analyse what was scored of an experiment, and write its results.

    Data sets that were scored under another protocol, with other cells or metrics, are left out.
    """
    found = [read_table(TABLE, path) for path in layout.tables(name)]
    alike = [table for table in found if _is_of(table, protocol)]
    if len(alike) < len(found):
        _log.warning("%s: %d data sets of another protocol left out", name, len(found) - len(alike))
    results = analyse(
        pd.concat(alike, ignore_index=True), layout.model, name, protocol, params.analysis, params.seed
    )
    results.write(layout.results(name))
    return results


def _is_of(table: pd.DataFrame, protocol: Protocol) -> bool:
    scored = set(zip(table["condition"], table["setting"]))
    wanted = {(cell.condition, cell.setting) for cell in cells_of(protocol)}
    return wanted <= scored and set(protocol.metrics) <= set(table["metric"])
