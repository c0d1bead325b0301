"""The phases `prepare` and `refine`: a data set counted, binned, chosen, and written down."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from kv_transition import paths as places
from kv_transition.data.binning import by_bin, choose, edges_of, ranked
from kv_transition.data.example import Example, render
from kv_transition.data.loader import Source, open_source, rendering
from kv_transition.data.tokenizer import Counter, LocalCounter, ServedCounter
from kv_transition.db import dao
from kv_transition.engines.endpoints import describe, serving
from kv_transition.engines.openai_compat import client_of
from kv_transition.paths import Paths
from kv_transition.settings import FULL, Settings
from kvguard.errors import KvguardError

SCHEMA_VERSION = 1
_TOGETHER = 256  # examples that are counted at once
_SPARE = 1.02  # candidates of a made data set, for each that is asked
_EDGES_SPARE = 4.0  # the same where bins are given, which need not be alike
_MOST_SPARE = 64  # how many times over a made data set is made longer until a bin has enough


def prepare(connection: sqlite3.Connection, settings: Settings, paths: Paths) -> dict[str, Any]:
    """Make the data set of an experiment and return its manifest."""
    with counting(settings, paths) as counter:
        source = open_source(settings.dataset, counter)
        template, _ = rendering(source.template, settings.engine.api)
        asked = settings.binning.n_bins * settings.dataset.n_per_bin
        spare = _SPARE if settings.binning.by == "quantiles" else _EDGES_SPARE
        pool = counted(source.pool(math.ceil(spare * asked) + settings.binning.n_bins), template, counter)
        edges = edges_of(settings.binning, [example.n_tokens for example in pool])
        candidates = by_bin(pool, edges)
        chosen = choose(candidates, edges, settings.dataset.n_per_bin, settings.dataset.seed)
        manifest = _manifest(settings, source, counter.name, edges, candidates, chosen)
    write_files(manifest, [example for examples in chosen for example in examples])
    dao.enter_dataset(connection, paths.group, manifest, chosen)
    return manifest


def refine(
    connection: sqlite3.Connection,
    settings: Settings,
    paths: Paths,
    bins: Sequence[int],
    n: int,
    why: Mapping[str, Any],
) -> dict[str, Any]:
    """Add ``n`` examples to some bins and return the manifest, which says that this choice was adaptive.

    Raises
    ------
    KvguardError
        The data set has not so many more.
    """
    row = dao.dataset(connection)
    assert row is not None
    manifest, known = row.manifest, dao.example_ids(connection)
    edges = manifest["bins"]["edges"]
    with counting(settings, paths) as counter:
        if counter.name != manifest["tokenizer"]:
            raise KvguardError(
                f"model.tokenizer: the data set was counted by {manifest['tokenizer']}, not by {counter.name}"
            )
        source = open_source(settings.dataset, counter)
        template, _ = rendering(source.template, settings.engine.api)
        added = _more(source, template, counter, edges, bins, n, known, settings.dataset.seed)
    stage = {
        "stage": manifest["stages"][-1]["stage"] + 1,
        "adaptive": True,
        "bins": list(bins),
        "n_per_bin": n,
    }
    manifest = {**manifest, "stages": [*manifest["stages"], {**stage, "why": dict(why)}]}
    for index, examples in added.items():
        manifest["chosen"][index] = [*manifest["chosen"][index], *map(_listed, examples)]
    dao.add_examples(connection, manifest, added)
    dao.reopen_runs(connection)
    write_files(manifest, [example for examples in added.values() for example in examples], more=True)
    return manifest


def _more(
    source: Source,
    template: str,
    counter: Counter,
    edges: Sequence[int],
    bins: Sequence[int],
    n: int,
    known: set[str],
    seed: int,
) -> dict[int, list[Example]]:
    size = math.ceil(_SPARE * (len(known) + n * (len(edges) - 1)))
    most, before = _MOST_SPARE * size, -1
    while True:
        pool = list(source.pool(size))
        found = by_bin(
            counted([one for one in pool if one.example_id not in known], template, counter), edges
        )
        if all(len(found[index]) >= n for index in bins):
            return {index: ranked(found[index], seed)[:n] for index in bins}
        if len(pool) <= before or size > most:
            few = ", ".join(
                f"{len(found[index])} in bin {index + 1}" for index in bins if len(found[index]) < n
            )
            raise KvguardError(
                f"refine: {n} more are asked for a bin, there are only {few}: ask for fewer with -n"
            )
        before, size = len(pool), 2 * size


def counted(examples: Iterable[Example], template: str, counter: Counter) -> list[Example]:
    """Return examples with the tokens of their prompts; some are counted while the next are made."""

    def count(some: Sequence[Example]) -> list[Example]:
        lengths = counter.count([render(template, one.question, one.context) for one in some])
        return [replace(one, n_tokens=n) for one, n in zip(some, lengths, strict=True)]

    left = iter(examples)
    with ThreadPoolExecutor(1) as beside:
        parts = [beside.submit(count, some) for some in iter(lambda: list(islice(left, _TOGETHER)), [])]
        return [example for part in parts for example in part.result()]


@contextlib.contextmanager
def counting(settings: Settings, paths: Paths) -> Iterator[Counter]:
    """Yield what counts tokens: a local tokenizer, or the endpoint of the largest budget."""
    if settings.model.tokenizer != "served":
        yield LocalCounter(settings.model.tokenizer)
        return
    budget = FULL if settings.engine.spawn else max(settings.kv.budgets)
    with serving(settings, budget, paths.logs) as endpoint, client_of(settings.engine) as client:
        server = describe(client, endpoint.base_url, settings.model.name)
        yield ServedCounter(client, endpoint.base_url, server["model"], settings.engine.api)


def _manifest(
    settings: Settings,
    source: Source,
    tokenizer: str,
    edges: Sequence[int],
    candidates: Sequence[Sequence[Example]],
    chosen: Sequence[Sequence[Example]],
) -> dict[str, Any]:
    prompt, _ = rendering(source.template, settings.engine.api)
    decisive = {
        "schema_version": SCHEMA_VERSION,
        "name": settings.dataset.name,
        "task": settings.dataset.task,
        "headline": settings.score.headline or source.headline,
        "settings": settings.dataset.model_dump(mode="json"),
        "tokenizer": tokenizer,
        "template": source.template,
        "template_hash": hashlib.sha256(prompt.encode()).hexdigest()[:16],
        "bins": {
            "by": settings.binning.model_dump(mode="json")["by"],
            "edges": list(edges),
            "n_pool": [len(found) for found in candidates],
        },
        "stages": [{"stage": 1, "adaptive": False, "n_per_bin": settings.dataset.n_per_bin}],
        "chosen": [list(map(_listed, examples)) for examples in chosen],
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    name = "-".join(filter(None, (settings.dataset.name, settings.dataset.task, digest)))
    return {"dataset_id": name, **decisive}


def _listed(example: Example) -> dict[str, Any]:
    return {"example_id": example.example_id, "n_tokens": example.n_tokens}


def write_files(manifest: Mapping[str, Any], examples: Sequence[Example], more: bool = False) -> Path:
    """Write the manifest and the examples beside the database; return their folder."""
    folder = places.processed(manifest["dataset_id"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "examples.jsonl").open("a" if more else "w", encoding="utf-8") as file:
        for example in examples:
            row = {
                "example_id": example.example_id,
                "question": example.question,
                "context": example.context,
                "answers": example.answers,
                "meta": example.meta,
                "n_tokens": example.n_tokens,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return folder
