"""Fitting a hazard model on rows in memory, and on rows that stay in their table: time and peak memory.

    python benchmarks/boost.py --tokens 3800000

Each fit runs in a process of its own, and is measured over what that process holds with the libraries
loaded. The features are random: memory does not depend on them.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np
import pandas as pd

from kvguard.guard.columns import FEATURES
from kvguard.store.schemas import TABLES, conform
from kvguard.store.tables import ROW_GROUP, open_table
from kvguard.studies.catastrophes.params import load_params
from kvguard.studies.catastrophes.train import fit as train_module
from kvguard.studies.catastrophes.train.rows import rows_to_fit
from memory import reset, resident

TRACE = 256  # tokens of a trace
ONSET = 192  # of every tenth trace
KINDS = ("in memory", "streamed", "streamed, bins on disk")


def make(path: Path, n_tokens: int) -> int:
    """Write a features table of made-up traces, a tenth of them failing; return how many they are."""
    rng = np.random.default_rng(0)
    n_traces = n_tokens // TRACE
    with open_table("features", path) as table:
        for begin in range(0, n_traces * TRACE, ROW_GROUP):
            row = np.arange(begin, min(begin + ROW_GROUP, n_traces * TRACE))
            values = rng.random((len(row), len(FEATURES)), dtype=np.float32)
            frame = pd.DataFrame(values, columns=list(FEATURES)).assign(trace_id=row // TRACE, t=row % TRACE)
            signed = [name for name in FEATURES if name.startswith("logprob_") or name == "avg_logp"]
            frame[signed] *= -1
            frame["entropy"] += (frame["trace_id"] % 10 == 0) & frame["t"].between(ONSET - 32, ONSET - 1)
            frame = frame.reindex(columns=list(TABLES["features"].columns), fill_value=0)
            table.write(conform("features", frame))
    return n_traces


def measure(kind: str, path: Path, n_traces: int, rounds: int) -> tuple[int, float]:
    """Return the peak in bytes and the seconds of one fit, in a fresh process."""
    params = load_params().train
    boost = params.xgboost.model_copy(update={"n_estimators": rounds})
    params = params.model_copy(update={"xgboost": boost})
    if kind.endswith("disk"):
        train_module._BINS_SHARE = 0.0
    bound = n_traces * TRACE if kind == "in memory" else None
    trace_id = np.arange(n_traces, dtype=np.int32)
    onset = pd.array(np.where(trace_id % 10 == 0, ONSET, -1), dtype="Int32")
    traces = pd.DataFrame({"trace_id": trace_id, "onset": onset})
    reset(on_cuda=False)
    before, started = resident(), time.perf_counter()
    fitting, tuning = (
        rows_to_fit(path, FEATURES, chosen, bound).labelled(params.horizon)
        for chosen in (traces[10:], traces[:10])
    )
    train_module.fit_hazard(fitting, tuning, params, 17)
    return resident(peak=True) - before, time.perf_counter() - started


@click.command(help=__doc__)
@click.option("--tokens", default=3_800_000, show_default=True)
@click.option("--rounds", default=20, show_default=True, help="Trees at most.")
def main(tokens: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.parquet"
        n_traces = make(path, tokens)
        first = 0
        for kind in KINDS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peak, seconds = pool.submit(measure, kind, path, n_traces, rounds).result()
            first = first or peak
            click.echo(f"{kind:24}{peak / 1e6:9.0f} MB{peak / first:8.2f}x{seconds:8.1f} s")


if __name__ == "__main__":
    main()
