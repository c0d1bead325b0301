"""The traces that the report's explorer shows, packed for a page.

The tokens of all traces of a model stand one after another in one compressed block, a number of few bytes per
token and signal, so that a thousand traces take less room than the library that plots them.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvguard.engine.presses import NONE
from kvguard.guard.bundle import load_operating_point
from kvguard.guard.controller import ControllerParams, State, states_of
from kvguard.judging.catastrophes import is_catastrophic
from kvguard.judging.judge import read_judged
from kvguard.store.tables import read_table, read_tokens
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.chapter.onset_tables import RULES
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.hazards import of_horizon, read_hazards
from kvguard.studies.catastrophes.train.splits import part_of_traces, read_split

POINT = "balanced"
Decode = Callable[[list[int]], list[str]]


def is_ready(model: str) -> bool:
    """Whether the stages that the explorer reads were run for a model."""
    folders = (layout.trained(model, HEADLINE), layout.evaluated(model, HEADLINE))
    return layout.traces(model).is_file() and all(folder.is_dir() for folder in folders)


def explore(model: str, decode: Decode, per_condition: int, horizon: int) -> dict[str, Any]:
    """Return what the explorer shows of a model; see :func:`packed`.

    Parameters
    ----------
    decode
        Token ids -> the text of each.
    per_condition
        At most this many traces of test prompts for each condition, failures first.
    horizon
        The H of the hazard model.
    """
    trained = layout.trained(model, HEADLINE)
    point = load_operating_point(layout.evaluated(model, HEADLINE), POINT)
    traces = read_judged(layout.traces(model))
    parts = part_of_traces(traces, read_split(PROTOCOLS[HEADLINE], trained))
    tested = traces[parts == "test"]
    chosen = sample(tested, per_condition)
    hazards = read_hazards(trained, of_horizon(horizon))
    signals = _signals(layout.generated(model), chosen["trace_id"])
    tokens = signals.merge(hazards, on=["trace_id", "t"], how="left", validate="one_to_one")
    return packed(tested, chosen, tokens, read_table("prompts", layout.prompts(model)), point, decode)


def _signals(folder: Path, trace_ids: pd.Series[Any]) -> pd.DataFrame:
    tokens = read_tokens(folder, ["token_id", "entropy", "top1_prob"])
    return tokens[tokens["trace_id"].isin(trace_ids)]


def sample(traces: pd.DataFrame, per_condition: int) -> pd.DataFrame:
    """Return at most ``per_condition`` traces of each compressed condition, catastrophes first."""
    compressed = traces[traces["compressor"] != NONE]
    order = np.lexsort([compressed["trace_id"], ~is_catastrophic(compressed)])
    first = compressed.iloc[order].groupby(["compressor", "ratio"], sort=False).head(per_condition)
    return first.sort_values("trace_id", ignore_index=True)


def packed(
    traces: pd.DataFrame,
    chosen: pd.DataFrame,
    tokens: pd.DataFrame,
    prompts: pd.DataFrame,
    point: ControllerParams,
    decode: Decode,
) -> dict[str, Any]:
    """Pack traces for the page.

    Parameters
    ----------
    traces
        Judged traces, the ``none`` trace of each prompt of ``chosen`` among them.
    chosen
        The traces to show, ordered by trace_id.
    tokens
        Their tokens, ordered by (trace_id, t): token_id, entropy, top1_prob, hazard.

    Returns
    -------
    dict
        ``pieces``: the texts of the tokens that occur; ``prompts``: id, question, answer and the uncompressed
        trace; ``traces``: a record for each; ``block``: zlib and base64 of, for all N tokens in turn, the
        number of the piece and the entropy in thousandths of a nat (uint16, little-endian), then the largest
        probability and the hazard in 255ths, and the controller's state (uint8); ``point``: its settings.
    """
    lengths = chosen["token_ids"].map(len).to_numpy(dtype=np.int64)
    token_ids, piece = np.unique(tokens["token_id"].to_numpy(), return_inverse=True)
    states = states_of(tokens["hazard"].to_numpy(), lengths, point)
    asked = prompts[prompts["prompt_id"].isin(chosen["prompt_id"])].reset_index(drop=True)
    return {
        "point": point.model_dump(),
        "pieces": decode([int(token_id) for token_id in token_ids]),
        "prompts": _prompts(asked, traces),
        "traces": _records(chosen, asked, lengths, states),
        "n": len(tokens),
        "block": _block(piece, tokens, states),
    }


def _prompts(asked: pd.DataFrame, traces: pd.DataFrame) -> list[dict[str, Any]]:
    none = traces[traces["compressor"] == NONE].set_index("prompt_id")
    return [
        {
            "id": row.prompt_id,
            "question": row.question,
            "answer": " | ".join(row.references),
            "uncompressed": _verdict(none.loc[row.prompt_id]) | {"text": none.loc[row.prompt_id, "text"]},
        }
        for row in asked.itertuples()
    ]


def _records(
    chosen: pd.DataFrame, asked: pd.DataFrame, lengths: np.ndarray, states: np.ndarray
) -> list[dict[str, Any]]:
    """Describe each trace of ``chosen``; ``lengths`` [R] are theirs, ``states`` [N] those of their tokens."""
    place = {prompt_id: number for number, prompt_id in enumerate(asked["prompt_id"])}
    starts = np.cumsum(lengths) - lengths
    return [
        {
            "id": int(row["trace_id"]),
            "prompt": place[row["prompt_id"]],
            "compressor": row["compressor"],
            "ratio": row["ratio"],
            "start": int(begin),
            "n": int(n),
            "onset": None if pd.isna(row["onset"]) else int(row["onset"]),
            "rule": RULES.get(f"by_{row['onset_by']}", ""),
            "safe": _first(states[begin : begin + n] == State.SAFE),
            **_verdict(row),
        }
        for (_, row), begin, n in zip(chosen.iterrows(), starts, lengths, strict=True)
    ]


def _block(piece: np.ndarray, tokens: pd.DataFrame, states: np.ndarray) -> str:
    """Compress what is known of all tokens [N], column by column."""
    columns = [
        piece.astype("<u2").tobytes(),
        _steps(tokens["entropy"], 1000, "<u2"),
        _steps(tokens["top1_prob"], 255, "u1"),
        _steps(tokens["hazard"], 255, "u1"),
        states.tobytes(),
    ]
    return base64.b64encode(zlib.compress(b"".join(columns), 9)).decode()


def _verdict(trace: pd.Series[Any]) -> dict[str, Any]:
    return {
        "correct": None if pd.isna(trace["correct"]) else bool(trace["correct"] >= 0.5),
        "predicted": trace["predicted"],
        "catastrophes": list(trace["catastrophes"]),
    }


def _steps(values: pd.Series[Any], steps: int, dtype: str) -> bytes:
    """Return values as whole numbers of 1 / ``steps``, cut off where ``dtype`` ends."""
    return np.clip(np.rint(values.to_numpy() * steps), 0, np.iinfo(dtype).max).astype(dtype).tobytes()


def _first(flags: np.ndarray) -> int | None:
    return int(np.argmax(flags)) if flags.any() else None
