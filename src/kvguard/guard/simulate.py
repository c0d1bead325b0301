"""The controller's benefit as recorded traces foretell it, without generating anything.

The assumption: a trace whose controller reaches SAFE before the onset (in a trace without a catastrophe:
at all) goes on as if it had never been compressed, so its outcome is that of the same prompt's ``none``
trace. One that reaches SAFE at the onset or later, or never, keeps its outcome.

KV memory saved by a trace is the mean, over its decoding steps t, of 1 - held / full, where full = prompt + t
tokens. Without control held = kept + t at every step of the trace. Under control this holds up to the
token at which SAFE fires; from then on the row holds the full cache and saves nothing, over the steps that
the ``none`` trace takes, and it does not return to compression.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.catastrophes import is_catastrophic
from kvguard.compressors import NONE, Condition
from kvguard.config import ControllerParams
from kvguard.errors import KvguardError
from kvguard.guard.controller import Controller, State
from kvguard.hazard.rows import Rows, load_rows
from kvguard.hazard.splits import part_of_traces
from kvguard.hazard.train import HazardModel
from kvguard.traces import conform

ALL = "all"
NEVER = -1
_QUARTILES = {"lead_time_q25": 0.25, "lead_time_median": 0.5, "lead_time_q75": 0.75}


@dataclass(frozen=True)
class Evaluation:
    """The simulation of one operating point.

    Attributes
    ----------
    summary
        A ``summary`` table: one row per condition, and one, ``all``, pooled over the compressed ones.
    metrics
        The rows of the summary as numbers, by condition; the pooled one is ``overall``.
    per_trace
        Outcomes with and without control, trace by trace; see :func:`simulate`.
    rows, hazard
        The tokens of the test prompts and their hazards, for figures. [N]
    """

    summary: pd.DataFrame
    metrics: dict[str, dict[str, float | None]]
    per_trace: pd.DataFrame
    rows: Rows
    hazard: NDArray[np.float32]


def evaluate(
    features_path: Path,
    traces: pd.DataFrame,
    split: pd.DataFrame,
    model: HazardModel,
    params: ControllerParams,
) -> Evaluation:
    """Score the test prompts' tokens and simulate the controller on their traces."""
    tested = traces[part_of_traces(traces, split) == "test"].reset_index(drop=True)
    rows = load_rows(features_path, model.features, tested["trace_id"].to_numpy())
    hazard = model.predict(rows.features)
    per_trace = simulate(tested, first_safe(tested["trace_id"].to_numpy(), rows, hazard, params))
    summary = summarise(per_trace)
    return Evaluation(summary, _as_metrics(summary), per_trace, rows, hazard)


def _as_metrics(summary: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    metrics = {}
    for row in summary.to_dict("records"):
        compressor, ratio = row.pop("compressor"), row.pop("ratio")
        name = "overall" if compressor == ALL else str(Condition(compressor, ratio))
        metrics[name] = {key: None if pd.isna(value) else float(value) for key, value in row.items()}
    return metrics


def first_safe(
    trace_ids: NDArray[Any], rows: Rows, hazard: NDArray[np.floating], params: ControllerParams
) -> NDArray[np.int64]:
    """Return the token at which each trace first reaches SAFE, ``NEVER`` if it does not. [T]

    Parameters
    ----------
    trace_ids
        The traces asked for. [T]
    rows, hazard
        Tokens, traces contiguous and in order of t, and their hazards. [N]
    """
    starts = np.flatnonzero(np.diff(rows.trace_id, prepend=-1))
    lengths = np.diff(starts, append=len(rows.trace_id))
    controller = Controller(len(starts), params)
    first = np.full(len(starts), NEVER, dtype=np.int64)
    for t in range(int(lengths.max(initial=0))):
        running = np.flatnonzero(lengths > t)
        states = controller.update(hazard[starts[running] + t], running)
        fired = running[states == State.SAFE]
        first[fired] = np.where(first[fired] == NEVER, t, first[fired])
    position = pd.Index(rows.trace_id[starts]).get_indexer(trace_ids)
    if (position < 0).any():
        stray = trace_ids[int(np.argmax(position < 0))]
        raise KvguardError(f"features table: trace {stray} has no rows; run `dvc repro featurize`")
    return first[position]


def simulate(traces: pd.DataFrame, safe_at: NDArray[np.int64]) -> pd.DataFrame:
    """Return each trace's outcome without and with control.

    Parameters
    ----------
    traces
        Judged traces, the ``none`` trace of every prompt among them.
    safe_at
        See :func:`first_safe`. [T]

    Returns
    -------
    pd.DataFrame
        trace_id, compressor, ratio, catastrophe, correct (NaN = not scored) and kv_saved, each of the latter
        three with its ``_controlled`` twin, safe_at (-1 = never) and lead_time (NaN unless SAFE fired before
        an onset).

    Raises
    ------
    KvguardError
        A prompt has no ``none`` trace.
    """
    baseline = _baseline_rows(traces)
    catastrophe = is_catastrophic(traces)
    correct = traces["correct"].astype("float64").to_numpy()
    onset = traces["onset"].astype("float64").to_numpy()
    fired = safe_at != NEVER
    switched = fired & ~(safe_at >= onset)
    n_tokens = traces["token_ids"].map(len).to_numpy(dtype=np.int64)
    prompt = traces["n_prompt_tokens"].to_numpy(dtype=np.int64)
    spared = prompt - traces["n_kept_tokens"].to_numpy(dtype=np.float64)
    steps_held = np.where(fired, safe_at + 1, n_tokens)
    controlled_steps = np.where(switched, np.maximum(n_tokens[baseline], steps_held), n_tokens)
    return pd.DataFrame(
        {
            "trace_id": traces["trace_id"].to_numpy(),
            "compressor": traces["compressor"].to_numpy(),
            "ratio": traces["ratio"].to_numpy(),
            "catastrophe": catastrophe,
            "catastrophe_controlled": np.where(switched, catastrophe[baseline], catastrophe),
            "correct": correct,
            "correct_controlled": np.where(switched, correct[baseline], correct),
            "safe_at": safe_at,
            "lead_time": np.where(switched & catastrophe, onset - safe_at, np.nan),
            "kv_saved": spared * _inverse_sum(prompt, n_tokens) / n_tokens,
            "kv_saved_controlled": spared * _inverse_sum(prompt, steps_held) / controlled_steps,
        }
    )


def _baseline_rows(traces: pd.DataFrame) -> NDArray[np.int64]:
    """Return the row of each trace's uncompressed twin. [T]"""
    none = np.flatnonzero(traces["compressor"] == NONE)
    position = pd.Index(traces["prompt_id"].iloc[none]).get_indexer(traces["prompt_id"])
    if (position < 0).any():
        stray = traces["prompt_id"].iloc[int(np.argmax(position < 0))]
        raise KvguardError(f"traces: prompt {stray} has no `{NONE}` trace; keep `{NONE}` in the preset")
    return none[position]


def _inverse_sum(first: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1/first + 1/(first + 1) + ... over n terms. [T]"""
    last = int((first + n).max(initial=0))
    harmonic = np.concatenate([[0.0, 0.0], np.cumsum(1.0 / np.arange(1, last + 1))])
    return harmonic[first + n] - harmonic[first]


def summarise(per_trace: pd.DataFrame) -> pd.DataFrame:
    """Return the ``summary`` table of simulated traces: each condition, then ``all`` compressed ones."""
    rows = [
        {"compressor": compressor, "ratio": ratio, **_rates(group)}
        for (compressor, ratio), group in per_trace.groupby(["compressor", "ratio"], sort=False)
    ]
    compressed = per_trace[per_trace["compressor"] != NONE]
    rows.append({"compressor": ALL, "ratio": np.nan, **_rates(compressed)})
    return conform("summary", pd.DataFrame(rows))


def _rates(traces: pd.DataFrame) -> dict[str, float]:
    fired = traces["safe_at"] != NEVER
    before, after = traces["catastrophe"].mean(), traces["catastrophe_controlled"].mean()
    return {
        "n_traces": len(traces),
        "cbr_uncontrolled": before,
        "cbr_controlled": after,
        "cbr_reduction": before - after,
        "cbr_reduction_relative": (before - after) / before if before > 0 else np.nan,
        "false_positive_rate": fired[~traces["catastrophe"]].mean(),
        "safe_rate": fired.mean(),
        "accuracy_uncontrolled": traces["correct"].mean(),
        "accuracy_controlled": traces["correct_controlled"].mean(),
        **{name: traces["lead_time"].quantile(q) for name, q in _QUARTILES.items()},
        "kv_saved_uncontrolled": traces["kv_saved"].mean(),
        "kv_saved_controlled": traces["kv_saved_controlled"].mean(),
    }
