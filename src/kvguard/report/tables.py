"""What happened to a model under each condition, as tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kvguard.catastrophes import DETECTORS, is_catastrophic, is_failure_v1

CONDITION = ["compressor", "ratio"]


def outcomes(traces: pd.DataFrame) -> pd.DataFrame:
    """Count how the traces of each condition ended, in the order the conditions first appear.

    Returns
    -------
    DataFrame
        Indexed by compressor and ratio: n, accuracy (NaN where nothing is scored), cfr, cbr, one share for
        every kind of catastrophe, wrong, tokens (mean length).
    """
    correct = traces["correct"].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    columns = {
        "n": np.ones(len(traces)),
        "accuracy": correct,
        "cfr": is_failure_v1(traces).astype(float),
        "cbr": is_catastrophic(traces).astype(float),
        **{
            kind: traces["catastrophes"].map(lambda found, kind=kind: kind in found).to_numpy(dtype=float)
            for kind in DETECTORS
        },
        "wrong": 1.0 - correct,
        "tokens": traces["token_ids"].map(len).to_numpy(dtype=float),
    }
    frame = pd.DataFrame(columns).assign(**{name: traces[name].to_numpy() for name in CONDITION})
    grouped = frame.groupby(CONDITION, sort=False)
    return grouped.mean().assign(n=grouped.size())


def signal_ranges(traces: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """Return mean and largest entropy and smallest top-1 probability over the tokens of each condition."""
    joined = tokens.merge(traces[["trace_id", *CONDITION]], on="trace_id")
    grouped = joined.groupby(CONDITION, sort=False)
    ranges = pd.DataFrame(
        {
            "mean_entropy": grouped["entropy"].mean(),
            "max_entropy": grouped["entropy"].max(),
            "min_top1_prob": grouped["top1_prob"].min(),
        }
    )
    return ranges.reindex(pd.MultiIndex.from_frame(traces[CONDITION].drop_duplicates()))


def overall(traces: pd.DataFrame) -> dict[str, float]:
    """Return the rates over all traces."""
    everything = outcomes(traces.assign(compressor="all", ratio=0.0))
    return {str(key): float(value) for key, value in everything.iloc[0].items()}
