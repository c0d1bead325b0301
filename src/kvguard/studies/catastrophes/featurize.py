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
from kvguard.studies.catastrophes.params import FeaturizeParams
from kvguard.studies.catastrophes.train.labels import hazard_labels

_NO_ONSET = -1


def featurize_tokens(
    tokens: pd.DataFrame, traces: pd.DataFrame, params: FeaturizeParams, max_new_tokens: int, mask: Bools
) -> pd.DataFrame:
    """Return the features table of a tokens table.

    Parameters
    ----------
    tokens
        A tokens table ordered by (trace_id, t), each trace whole.
    traces
        Needs trace_id, ratio and onset (null = none) of at least these traces.
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
    ratio, onset = _trace_columns(traces, trace_id[starts])
    ratio, onset = np.repeat(ratio, lengths), np.repeat(onset, lengths)

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
    label, pre_onset = hazard_labels(t, onset, params.horizon)
    columns = {
        "trace_id": trace_id,
        "t": tokens["t"].to_numpy(),
        **dict(zip(FEATURES, out, strict=True)),
        "rank_of_chosen": tokens["rank_of_chosen"].to_numpy(),
        "token_position_v1": (t / np.repeat(lengths, lengths)).astype(np.float32),
        "label": label,
        "pre_onset": pre_onset,
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


def _trace_columns(traces: pd.DataFrame, wanted: NDArray[Any]) -> tuple[Floats, Ints]:
    """Return ratio and onset (``_NO_ONSET`` for none) of the traces ``wanted``. [T], [T]"""
    rows = pd.Index(traces["trace_id"]).get_indexer(wanted)
    if (rows < 0).any():
        stray = wanted[int(np.argmax(rows < 0))]
        raise KvguardError(
            f"tokens table: trace {stray} is not in the traces table; run `dvc repro generate`"
        )
    onset = traces["onset"].fillna(_NO_ONSET).to_numpy(dtype=np.int64)
    return traces["ratio"].to_numpy(dtype=np.float32)[rows], onset[rows]


def featurize(
    generate_dir: Path, params: FeaturizeParams, max_new_tokens: int, mask: Bools, out_path: Path
) -> dict[str, float]:
    """Write the features table of a generated dataset, one part after another so that memory stays low.

    Rows are ordered part by part, and by (trace_id, t) inside a part.

    Returns
    -------
    dict
        n_tokens, n_traces, and the shares of tokens that are labelled and that stand before the onset.
    """
    traces = read_table("traces", Path(generate_dir) / "traces.parquet", ["trace_id", "ratio", "onset"])
    totals = {"n_tokens": 0, "n_traces": 0, "label": 0, "pre_onset": 0}
    with open_table("features", out_path) as writer:
        for path in token_paths(generate_dir):
            tokens = read_table("tokens", path).sort_values(
                ["trace_id", "t"], kind="stable", ignore_index=True
            )
            features = featurize_tokens(tokens, traces, params, max_new_tokens, mask)
            writer.write(features)
            totals["n_tokens"] += len(features)
            totals["n_traces"] += features["trace_id"].nunique()
            totals["label"] += int(features["label"].sum())
            totals["pre_onset"] += int(features["pre_onset"].sum())
    shares = {f"{name}_share": totals[name] / max(totals["n_tokens"], 1) for name in ("label", "pre_onset")}
    return {"n_tokens": totals["n_tokens"], "n_traces": totals["n_traces"], **shares}
