"""What the live generations say, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kvguard.guard.controller import ControllerParams
from kvguard.judging.catastrophes import is_catastrophic
from kvguard.judging.onsets import kinds_of
from kvguard.stats.bootstrap import mean_by, resample_weights
from kvguard.store.results import Results
from kvguard.studies.catastrophes.live.gap import add_gap, simulate_live
from kvguard.studies.catastrophes.live.names import (
    BY_TRIGGER,
    DECODING,
    PREFILL,
    ROLLBACK,
    ROLLBACK_BEFORE,
    STAGE,
    STATIC,
    STOP_AT_ANSWER,
    SWITCH,
)
from kvguard.studies.catastrophes.live.outcomes import Arms, add_policies, arms_of, sound
from kvguard.studies.catastrophes.protocols import HEADLINE
from kvguard.studies.catastrophes.score.alarms import Alarms, add_alarms

# Policies whose triggers differ.
ALARMED = (ROLLBACK, ROLLBACK_BEFORE, STOP_AT_ANSWER, *BY_TRIGGER)


def live_results(
    model: str,
    table: pd.DataFrame,
    point: ControllerParams,
    offsets: Sequence[int],
    n_resamples: int,
    seed: int,
) -> Results:
    """Fill the tables policies-prefill, policies-decoding, alarms-POLICY, gap, switch and prompts.

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
                for policy in filter(arms.by_policy.__contains__, ALARMED):
                    add_alarms(results, policy, alarms_of(arms, policy), weights)
                simulated = simulate_live(kept, point)
                add_gap(results, arms, simulated, weights)
    add_switch(results, kept, offsets, n_resamples, seed)
    return results


def alarms_of(arms: Arms, policy: str) -> Alarms:
    """Return when a policy first acts, against the onsets of the static traces."""
    traces = arms.cases.assign(n_tokens=arms.by_policy[STATIC]["n_tokens"])
    return Alarms.of(traces, kinds_of(arms.cases["onset_by"]), arms.by_policy[policy]["safe_at"])


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
