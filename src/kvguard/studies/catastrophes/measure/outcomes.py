"""How the traces of each condition ended."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.presses import NONE, Condition
from kvguard.judging.catastrophes import DETECTORS, is_catastrophic
from kvguard.judging.onsets import RULES
from kvguard.stats.bootstrap import Floats, mean_by
from kvguard.store.results import Results
from kvguard.studies.catastrophes.protocols import is_failure_v1

CONDITION = ["compressor", "ratio"]
OVERALL = "overall"


def trace_outcomes(traces: pd.DataFrame) -> pd.DataFrame:
    """Return what is averaged over judged traces, NaN where it was not scored.

    Returns
    -------
    DataFrame
        One row for each trace: accuracy, accuracy_last (by the last answer of the text), cfr, cbr, every kind
        of catastrophe, wrong, amnesia, and tokens (the length); all but the last are between 0 and 1.
    """
    correct, last, amnesia = (
        traces[name].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
        if name in traces
        else np.full(len(traces), np.nan)  # the task has no such score
        for name in ("correct", "accuracy_last", "amnesia")
    )
    kinds = {
        kind: traces["catastrophes"].map(lambda found, kind=kind: kind in found).to_numpy(dtype=float)
        for kind in DETECTORS
    }
    columns = {
        "accuracy": correct,
        "accuracy_last": last,
        "cfr": is_failure_v1(traces).astype(float),
        "cbr": is_catastrophic(traces).astype(float),
        **kinds,
        "wrong": 1.0 - correct,
        "amnesia": amnesia,
        "tokens": traces["token_ids"].map(len).to_numpy(dtype=float),
    }
    return pd.DataFrame(columns, index=traces.index)


def outcomes(traces: pd.DataFrame) -> pd.DataFrame:
    """Average the outcomes over each condition, in the order the conditions first appear.

    Returns
    -------
    DataFrame
        Indexed by compressor and ratio: n, and the columns of :func:`trace_outcomes`.
    """
    grouped = trace_outcomes(traces).join(traces[CONDITION]).groupby(CONDITION, sort=False)
    means = grouped.mean()
    means.insert(0, "n", grouped.size())
    return means


def overall(traces: pd.DataFrame) -> dict[str, float]:
    """Return the averages over all traces."""
    return {"n": float(len(traces)), **trace_outcomes(traces).mean().to_dict()}


def subjects(traces: pd.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Return which traces each condition has, and ``overall`` all compressed ones where there are any. [T]"""
    compressor, ratio = (traces[name].to_numpy() for name in CONDITION)
    found = {str(c): (compressor == c.compressor) & (ratio == c.ratio) for c in conditions_of(traces)}
    compressed = compressor != NONE
    return {**found, OVERALL: compressed} if compressed.any() else found


def conditions_of(traces: pd.DataFrame) -> list[Condition]:
    """Return the conditions of the traces in the order in which they first appear."""
    return [Condition(*pair) for pair in traces[CONDITION].drop_duplicates().itertuples(index=False)]


def add_onsets(results: Results, traces: pd.DataFrame) -> None:
    """Add the table ``onsets``: the share of each condition's failing traces whose onset a rule found."""
    failing = is_catastrophic(traces)
    for subject, here in subjects(traces).items():
        found_by = traces["onset_by"][here & failing]
        if len(found_by):
            shares = {f"by_{rule}": float((found_by == rule).mean()) for rule in RULES}
            results.add("onsets", subject, {"n_failing": len(found_by), **shares})


def add_outcomes(
    results: Results, traces: pd.DataFrame, prompt: NDArray[np.integer[Any]], weights: Floats
) -> None:
    """Add the table ``outcomes``: every condition, and all compressed ones together.

    Parameters
    ----------
    prompt
        Number of each trace's prompt. [T]
    weights
        Of the prompts in each resample. [R, P]
    """
    columns = trace_outcomes(traces)
    for subject, here in subjects(traces).items():
        values = {
            name: mean_by(weights, prompt[here], column.to_numpy()[here]) for name, column in columns.items()
        }
        results.add("outcomes", subject, {"n": int(here.sum())})
        results.add_resampled("outcomes", subject, values)
