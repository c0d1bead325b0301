"""How long `kv-transition` takes to prepare 10,000 examples of 4,000 tokens, and to analyze 100,000 requests.

python benchmarks/transition.py [--examples 10000] [--requests 100000]
"""

import contextlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from kv_transition import phases
from kv_transition.data.example import Example
from kv_transition.db import dao

TOKENIZER = Path("src/kvguard/models/reference/weights/qwen2").resolve()
BUDGETS, BINS = (1.0, 0.5, 0.2), 5


def config(folder: Path, n_per_bin: int, low: int, high: int) -> Path:
    path = folder / "x.yaml"
    path.write_text(
        f"dataset: {{name: longarith, n_per_bin: {n_per_bin}, min_tokens: {low}, max_tokens: {high}}}\n"
        f"model: {{tokenizer: {TOKENIZER}}}\n"
        "engine: {endpoints: {1.0: http://x/v1, 0.5: http://x/v1, 0.2: http://x/v1}}\n"
        f"output: {{exp_group_id: bench{n_per_bin}}}\n"
    )
    return path


def fill(connection: sqlite3.Connection, group: str, n_per_bin: int) -> int:
    """Answer requests by chance, worse with the bin; return how many those are."""
    manifest = {
        "dataset_id": "bench", "name": "longarith", "task": None, "tokenizer": "none", "template_hash": "",
        "headline": "em", "bins": {"edges": [*range(100, 700, 100)], "n_pool": [0] * BINS},
        "stages": [{"stage": 1}], "chosen": [],
    }  # fmt: skip
    examples = [
        [Example(f"{index}/{i}", "q", "c", ("1",), n_tokens=150 + 100 * index) for i in range(n_per_bin)]
        for index in range(BINS)
    ]
    dao.enter_dataset(connection, group, manifest, examples)
    rng, n = np.random.default_rng(0), 0
    for budget in BUDGETS:
        run_id = dao.open_run(connection, group, budget, "snapkv")
        dao.plan_requests(connection, run_id, 1, 0)
        rows = connection.execute(
            "SELECT requests.id, bin_index FROM requests "
            "JOIN manifest_entries ON manifest_entries.id = entry_id "
            "JOIN bins ON bins.id = bin_id WHERE run_id = ?",
            (run_id,),
        ).fetchall()
        right = rng.random(len(rows)) > 0.05 + 0.15 * (1 - budget) * np.array([row[1] for row in rows])
        f1 = np.where(right, 1.0, rng.random(len(rows)))
        with connection:
            for (request, _), is_right, value in zip(rows, right.tolist(), f1.tolist(), strict=True):
                response = (request, request, "Answer: 1", "stop", 200, 1, "t", "t")
                connection.execute(
                    "INSERT INTO responses (id, request_id, text, finish_reason, http_status, attempts, "
                    "started_at, answered_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    response,
                )
                connection.execute(
                    "INSERT INTO telemetry (response_id, latency_s, ttft_s) VALUES (?, 1.0, 0.5)", (request,)
                )
                connection.execute(
                    "INSERT INTO scores VALUES (?, '1', ?, ?, ?)", (request, float(is_right), value, value)
                )
        n += len(rows)
    return n


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Yield where the seconds of the body will stand: by the clock, and of this process."""
    took: dict[str, float] = {}
    wall, cpu = time.monotonic(), time.process_time()
    yield took
    took.update(s=round(time.monotonic() - wall, 1), cpu_s=round(time.process_time() - cpu, 1))


@click.command()
@click.option("--examples", default=10_000, show_default=True)
@click.option("--requests", default=100_000, show_default=True)
def main(examples: int, requests: int) -> None:
    """Time both, and print them as JSON."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        with (
            phases.opened(config(folder, examples // BINS, 3900, 4100), fresh=True) as group,
            timed() as took,
        ):
            phases.prepare(group)
        found["prepare"] = {"examples": examples, **took}
        n_per_bin = requests // BINS // len(BUDGETS) + 1
        with phases.opened(config(folder, n_per_bin, 100, 600), fresh=True) as group:
            n = fill(group.connection, group.paths.group, n_per_bin)
            for headline in ("em", "f1"):  # of a few values, and of many
                with group.connection:
                    group.connection.execute("UPDATE datasets SET headline = ?", (headline,))
                with timed() as took:
                    phases.analyze(group)
                found[f"analyze_{headline}"] = {"requests": n, **took}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
