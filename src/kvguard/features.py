"""The features of a token, from one definition that serves whole tables and live decoding.

:func:`_derive` is the definition of all that are not a signal of the token itself. It sees the last 8
values of the rolled series; :func:`featurize_tokens` takes those from a table, :class:`FeatureState` from
what it was fed so far. The operations and their order are the same, so the features are equal bit for bit.

Rolling statistics run over the tokens t-7 .. t, and at t < 7 over the tokens so far; the standard deviation
is the population's. At t = 0 ``delta_h`` is 0, also in its rolling statistics, and ``delta_h_valid`` is 0.
Every feature but v1's ``token_position_v1`` (t / trace length) is causal.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.compiled import compiled
from kvguard.config import FeaturizeParams
from kvguard.errors import KvguardError
from kvguard.hazard.labels import hazard_labels
from kvguard.repetition import Ints, RepeatCounter, repeat_counts
from kvguard.schemas import FEATURES, ROLLED, SIGNALS, TABLES
from kvguard.traces import open_table, read_table, token_paths

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

WINDOW = 8  # tokens of a rolling statistic: part of the features' names
REPEAT_WINDOW = 20  # tokens of the window that rep_count counts
_N_SIGNALS = len(SIGNALS) - 1  # all but rank_of_chosen, which only v1 reads
_SERIES = (*ROLLED, "rep_count")
_ROLLED_SIGNALS = [SIGNALS.index(name) for name in ROLLED[:-1]]
_NO_ONSET = -1


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def __len__(self) -> int: ...

    def batch_decode(self, sequences: list[list[int]]) -> list[str]:
        """Return the text of each sequence of token ids."""


def feature_columns(protocol: Literal["v1", "v2"]) -> list[str]:
    """Return the model's features in order: 40 for v2; v1 has its own token_position and rank_of_chosen."""
    if protocol == "v2":
        return list(FEATURES)
    own_position = ["token_position_v1" if name == "token_position" else name for name in FEATURES]
    return [*own_position, "rank_of_chosen"]


def thinking_mask(tokenizer: Tokenizer, words: Iterable[str]) -> Bools:
    """Return for every token id whether its text, space around it and case aside, is one of ``words``. [V]"""
    wanted = {word.lower() for word in words}
    texts = tokenizer.batch_decode([[token_id] for token_id in range(len(tokenizer))])
    return np.array([text.strip().lower() in wanted for text in texts], dtype=bool)


def look_up(mask: Bools, token_ids: NDArray[Any]) -> Bools:
    """Return ``mask[token_ids]``; ids past its end (a padded vocabulary's) are no words. [R]"""
    found: Bools = mask[np.minimum(token_ids, len(mask) - 1)] & (token_ids < len(mask))
    return found


@compiled()
def _derive(
    series: Floats,
    places: Ints,
    t: Ints,
    thinking: Bools,
    ratio: Floats,
    max_new_tokens: int,
    out: Floats,
) -> None:
    """Write the features of R tokens that follow their signals in ``FEATURES``; the one definition.

    Parameters
    ----------
    series
        Values of ``_SERIES``, the tokens of a trace one after another; delta_h is written here. [M, 5]
    places
        Where each token stands in ``series``; the tokens before it come first. [R]
    t, thinking, ratio
        Token index, whether the token is a thinking word, compression ratio. [R]
    out
        [R, 15]
    """
    for row in range(len(places)):
        newest = places[row]
        values = series[newest]
        values[3] = values[0] - series[newest - 1, 0] if t[row] else np.float32(0)
        n = min(t[row] + 1, WINDOW)
        count = np.float32(n)
        out[row, 0] = values[3]
        out[row, 1] = t[row] > 0
        out[row, 2] = values[4]
        out[row, 3] = thinking[row]
        for rolled in range(4):
            mean = variance = np.float32(0)
            for back in range(n):
                mean += series[newest - back, rolled]
            mean /= count
            for back in range(n):
                deviation = series[newest - back, rolled] - mean
                variance += deviation * deviation
            out[row, 4 + 2 * rolled] = mean
            out[row, 5 + 2 * rolled] = np.sqrt(variance / count)
        repeats = np.float32(0)
        for back in range(n):
            repeats += series[newest - back, 4]
        out[row, 12] = repeats
        out[row, 13] = np.float32(t[row]) / np.float32(max_new_tokens)
        out[row, 14] = ratio[row]


class FeatureState:
    """Features token by token for many rows at once; every row has its own clock.

    Parameters
    ----------
    ratios
        Compression ratio of each row. [B]
    mask
        See :func:`thinking_mask`. [V]
    """

    def __init__(self, ratios: NDArray[Any], mask: Bools, max_new_tokens: int) -> None:
        n_rows = len(ratios)
        self._ratios = np.array(ratios, dtype=np.float32)
        self._mask = mask
        self._max_new_tokens = max_new_tokens
        self._t = np.zeros(n_rows, dtype=np.int64)
        # Every value of every series, so that a row can be rewound.
        self._series = np.zeros((n_rows, max_new_tokens, len(_SERIES)), dtype=np.float32)
        self._repeats = RepeatCounter(n_rows, REPEAT_WINDOW, max_new_tokens)
        self._rows = np.arange(n_rows)

    def update(self, signals: Floats, token_ids: NDArray[Any], rows: Ints | slice = slice(None)) -> Floats:
        """Take the next token of each of ``rows`` and return its features.

        Parameters
        ----------
        signals
            In the order of ``SIGNALS``; rank_of_chosen may be left out. [R, 25 or 26]
        token_ids
            [R]
        rows
            Which rows these are, all by default.

        Returns
        -------
        Floats
            In the order of ``FEATURES``. [R, 40]

        Raises
        ------
        IndexError
            A row has had its ``max_new_tokens`` tokens.
        """
        row_numbers = self._rows[rows]
        t = self._t[row_numbers]
        self._series[row_numbers, t, :3] = signals[:, _ROLLED_SIGNALS]
        self._series[row_numbers, t, 4] = self._repeats.update(token_ids, rows)
        thinking, ratio = look_up(self._mask, token_ids), self._ratios[row_numbers]
        out = np.empty((len(t), len(FEATURES)), dtype=np.float32)
        out[:, :_N_SIGNALS] = signals[:, :_N_SIGNALS]
        series, places = self._series.reshape(-1, len(_SERIES)), row_numbers * self._max_new_tokens + t
        _derive(series, places, t, thinking, ratio, self._max_new_tokens, out[:, _N_SIGNALS:])
        self._t[row_numbers] = t + 1
        return out

    def rewind(self, row: int, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens of ``row``; with 0 it is free for another sequence."""
        self._t[row] = n_tokens
        self._repeats.rewind(row, n_tokens)

    def set_ratio(self, row: int, ratio: float) -> None:
        """Let the compression ratio of ``row`` be ``ratio`` from its next token on."""
        self._ratios[row] = ratio


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

    series = np.empty((len(t), len(_SERIES)), dtype=np.float32)
    for column, name in enumerate(ROLLED[:-1]):
        series[:, column] = tokens[name].to_numpy()
    series[:, 4] = repeat_counts(tokens["token_id"].to_numpy(), lengths, REPEAT_WINDOW)
    thinking = look_up(mask, tokens["token_id"].to_numpy())

    out = np.empty((len(FEATURES), len(t)), dtype=np.float32)
    for row, name in enumerate(SIGNALS[:-1]):
        out[row] = tokens[name].to_numpy()
    _derive(series, np.arange(len(t)), t, thinking, ratio, max_new_tokens, out[_N_SIGNALS:].T)
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
