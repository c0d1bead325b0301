"""What the ``report`` stage writes: the page, its tables as files, and every figure."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kvguard.models.decoding import texts_of
from kvguard.models.load import load_tokenizer
from kvguard.report import markup, page
from kvguard.store.files import write_text
from kvguard.store.results import read_results
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.chapter import explorer, sections
from kvguard.studies.catastrophes.chapter.catalogue import tables
from kvguard.studies.catastrophes.chapter.drawn import draw
from kvguard.studies.catastrophes.chapter.pipeline import Pipeline, numbers_of
from kvguard.studies.catastrophes.params import Params

_log = logging.getLogger(__name__)

REPORTS = Path("reports")
PAGE, TABLES = REPORTS / "report.html", REPORTS / "tables"
STAGES = (
    "measure",
    "ablate",
    "transfer",
    "live-validate",
    "certify",
)  # those without a protocol of their own
LIMIT = 10_000_000  # bytes of a page that still opens at once


@dataclass(frozen=True)
class Built:
    """What a report holds, as numbers."""

    n_bytes: int
    n_tables: int
    n_traces: int


def load_pipeline(params: Params) -> Pipeline:
    """Read the results of every stage that was run."""
    models = (params.model, params.transfer_to)
    paths = [
        *(layout.results(stage, model) for stage in STAGES for model in models),
        *(layout.live(model) / "latency.parquet" for model in models),
        *(
            layout.results(stage, model, protocol)
            for stage in ("train", "evaluate")
            for model in models
            for protocol in params.protocols
        ),
    ]
    return Pipeline(params, numbers_of(read_results(path for path in paths if path.is_file())))


def build(params: Params) -> Built:
    """Write the report of what was run; what was not says so, with the command that would."""
    pipeline = load_pipeline(params)
    found = tables(pipeline)
    markup.write(found.values(), TABLES)
    draw(pipeline)
    ready = [model for model in pipeline.models if explorer.is_ready(model)]
    explorers = [_explored(pipeline, model) for model in ready]
    unexplored = [
        (pipeline.title(model), "dvc repro evaluate") for model in pipeline.models if model not in ready
    ]
    text = page.render([sections.chapter(pipeline, found, explorers, unexplored)])
    write_text(PAGE, text)
    n_bytes = PAGE.stat().st_size
    if n_bytes > LIMIT:
        _log.warning(
            "%s: %.1f MB is slow to open; lower report.traces_per_condition", PAGE, n_bytes / 1_000_000
        )
    return Built(n_bytes, len(found), sum(len(each["traces"]) for each in explorers))


def _explored(pipeline: Pipeline, model: str) -> dict[str, Any]:
    tokenizer = load_tokenizer(model, pipeline.params.spec(model))
    shown, horizon = pipeline.params.report.traces_per_condition, pipeline.params.horizon
    decode = partial(texts_of, tokenizer)
    return {"title": pipeline.title(model), **explorer.explore(model, decode, shown, horizon)}
