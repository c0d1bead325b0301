"""What the live generations say, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kvguard.guard.controller import ControllerParams
from kvguard.judging.catastrophes import is_catastrophic
from kvguard.stats.bootstrap import mean_by, resample_weights
from kvguard.store.results import Results
from kvguard.studies.catastrophes.live.gap import add_gap, simulate_live
from kvguard.studies.catastrophes.live.names import DECODING, PREFILL, STAGE, STATIC, SWITCH
from kvguard.studies.catastrophes.live.outcomes import add_policies, arms_of, sound
from kvguard.studies.catastrophes.protocols import HEADLINE


def live_results(
    model: str,
    table: pd.DataFrame,
    point: ControllerParams,
    offsets: Sequence[int],
    n_resamples: int,
    seed: int,
) -> Results:
    """Fill the tables policies-prefill, policies-decoding, gap, switch and prompts.

    Parameters
    ----------
    table
        The live table.
    point
        The operating point that the hazard was watched with.
    offsets
        Tokens before the onset at which failing traces were restored.
    """
    results = Results(STAGE, model, HEADLINE)
    kept = sound(table)
    n_prompts = {"n_prompts": table["prompt_id"].nunique(), "n_used": kept["prompt_id"].nunique()}
    results.add("prompts", "all", n_prompts)
    for regime in (PREFILL, DECODING):
        if ((kept["regime"] == regime) & (kept["policy"] == STATIC)).any():
            arms = arms_of(kept, regime)
            weights = arms.weights(n_resamples, seed)
            add_policies(results, arms, regime, weights, seed)
            if regime == PREFILL:
                simulated = simulate_live(kept, point)
                add_gap(results, arms, simulated, weights)
    add_switch(results, kept, offsets, n_resamples, seed)
    return results


def headline(results: Results) -> dict[str, Any]:
    """Return what the metrics file holds: every table, over all conditions together."""
    found = results.metrics(*results.frame["table"].unique())
    return {
        table: {subject: numbers for subject, numbers in subjects.items() if "/" not in subject}
        for table, subjects in found.items()
    }


def add_switch(
    results: Results, live: pd.DataFrame, offsets: Sequence[int], n_resamples: int, seed: int
) -> None:
    """Add the table switch: what became of the cases at each offset.

    Parameters
    ----------
    live
        A live table, see :func:`kvguard.studies.catastrophes.live.outcomes.sound`.
    """
    rows = live[live["regime"] == SWITCH].reset_index(drop=True)
    if rows.empty:
        return
    cluster, prompts = pd.factorize(rows["prompt_id"])
    weights = resample_weights(len(prompts), n_resamples, seed)
    recovered, correct = ~is_catastrophic(rows), rows["correct"].astype("float64").to_numpy()
    for offset in dict.fromkeys(offsets):
        here = (rows["policy"] == str(offset)).to_numpy()
        if here.any():
            values = {
                "recovered": mean_by(weights, cluster[here], recovered[here]),
                "correct": mean_by(weights, cluster[here], correct[here]),
            }
            results.add_resampled("switch", str(offset), values)
            results.add("switch", str(offset), {"n_traces": int(here.sum())})
