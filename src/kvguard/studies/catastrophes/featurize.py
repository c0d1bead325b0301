"""The features table of a generated data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.columns import SIGNALS
from kvguard.engine.repetition import Ints, repeat_counts
from kvguard.errors import KvguardError
from kvguard.guard.columns import FEATURES, ROLLED
from kvguard.guard.features import N_READ, REPEAT_WINDOW, SERIES, Bools, Floats, derive, look_up
from kvguard.store.schemas import TABLES
from kvguard.store.tables import open_table, read_table, token_paths


def featurize_tokens(
    tokens: pd.DataFrame, traces: pd.DataFrame, max_new_tokens: int, mask: Bools
) -> pd.DataFrame:
    """Return the features table of a tokens table.

    Parameters
    ----------
    tokens
        A tokens table ordered by (trace_id, t), each trace whole.
    traces
        Needs trace_id and ratio of at least these traces.
    mask
        See :func:`thinking_mask`. [V]

    Raises
    ------
    KvguardError
        A trace is not in ``traces``, or its tokens are not numbered 0, 1, 2, ...
    """
    trace_id = tokens["trace_id"].to_numpy()
    t = tokens["t"].to_numpy().astype(np.int64)
    starts = np.flatnonzero(np.diff(trace_id, prepend=-1))
    lengths = np.diff(starts, append=len(trace_id))
    _check_order(trace_id, t, np.arange(len(t)) - np.repeat(starts, lengths))
    ratio = np.repeat(_ratio_of(traces, trace_id[starts]), lengths)

    series = np.empty((len(t), len(SERIES)), dtype=np.float32)
    for column, name in enumerate(ROLLED[:-1]):
        series[:, column] = tokens[name].to_numpy()
    series[:, 4] = repeat_counts(tokens["token_id"].to_numpy(), lengths, REPEAT_WINDOW)
    thinking = look_up(mask, tokens["token_id"].to_numpy())

    out = np.empty((len(FEATURES), len(t)), dtype=np.float32)
    for row, name in enumerate(SIGNALS[:-1]):
        out[row] = tokens[name].to_numpy()
    limit = np.full(len(t), max_new_tokens)
    derive(series, np.arange(len(t)), t, thinking, ratio, limit, out[N_READ:].T)
    columns = {
        "trace_id": trace_id,
        "t": tokens["t"].to_numpy(),
        **dict(zip(FEATURES, out, strict=True)),
        "rank_of_chosen": tokens["rank_of_chosen"].to_numpy(),
        "token_position_v1": (t / np.repeat(lengths, lengths)).astype(np.float32),
    }
    return pd.DataFrame({name: columns[name] for name in TABLES["features"].columns}, copy=False)


def _check_order(trace_id: NDArray[Any], t: Ints, expected: Ints) -> None:
    wrong = (t != expected) | (np.diff(trace_id, prepend=trace_id[:1]) < 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise KvguardError(
            f"tokens table: column t, row {row}: trace {trace_id[row]} has t = {t[row]} where "
            f"{expected[row]} is due; make it again with `dvc repro generate`"
        )


def _ratio_of(traces: pd.DataFrame, wanted: NDArray[Any]) -> Floats:
    """Return the compression ratio of the traces ``wanted``. [T]"""
    rows = pd.Index(traces["trace_id"]).get_indexer(wanted)
    if (rows < 0).any():
        stray = wanted[int(np.argmax(rows < 0))]
        raise KvguardError(
            f"tokens table: trace {stray} is not in the traces table; run `dvc repro generate`"
        )
    return traces["ratio"].to_numpy(dtype=np.float32)[rows]


def featurize(generate_dir: Path, max_new_tokens: int, mask: Bools, out_path: Path) -> dict[str, int]:
    """Write the features table of a generated dataset, one part after another so that memory stays low.

    Rows are ordered part by part, and by (trace_id, t) inside a part.

    Returns
    -------
    dict
        n_tokens, n_traces.
    """
    traces = read_table("traces", Path(generate_dir) / "traces.parquet", ["trace_id", "ratio"])
    totals = {"n_tokens": 0, "n_traces": 0}
    with open_table("features", out_path) as writer:
        for path in token_paths(generate_dir):
            tokens = read_table("tokens", path).sort_values(
                ["trace_id", "t"], kind="stable", ignore_index=True
            )
            features = featurize_tokens(tokens, traces, max_new_tokens, mask)
            writer.write(features)
            totals["n_tokens"] += len(features)
            totals["n_traces"] += features["trace_id"].nunique()
    return totals
