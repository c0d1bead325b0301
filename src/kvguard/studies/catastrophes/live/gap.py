"""Whether the forecast comes true: the offline simulation of the fresh prompts against what the guard did.

The simulation replays the hazards of the static traces through the controller, as ``evaluate`` does with the
sweep's, and takes a trace that reaches SAFE before its onset to end as the uncompressed one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.guard.controller import ControllerParams
from kvguard.stats.bootstrap import Floats, mean_by, share, sum_by
from kvguard.store.results import Results
from kvguard.studies.catastrophes.evaluate.simulate import Replay, recorded
from kvguard.studies.catastrophes.live.names import PREFILL, STATIC, UNCOMPRESSED
from kvguard.studies.catastrophes.live.outcomes import Arms, Values
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS

Bools = NDArray[np.bool_]

FORECAST = ("restore", "rollback", "restart")  # the actions that the simulation is about


def simulate_live(live: pd.DataFrame, point: ControllerParams) -> pd.DataFrame:
    """Return what the simulation says of the static traces, by trace_id.

    Parameters
    ----------
    live
        A live table, see :func:`kvguard.studies.catastrophes.live.outcomes.sound`.

    Returns
    -------
    pd.DataFrame
        See :func:`kvguard.studies.catastrophes.evaluate.simulate.simulate`.
    """
    chosen = (live["regime"] == PREFILL) & live["policy"].isin([STATIC, UNCOMPRESSED])
    watched = live[chosen].reset_index(drop=True)
    traces = recorded(watched, PROTOCOLS[HEADLINE])
    hazard = np.full((len(traces), int(traces["n_tokens"].max())), np.nan, dtype=np.float32)
    inside = np.arange(hazard.shape[1]) < traces["n_tokens"].to_numpy()[:, None]
    hazard[inside] = np.concatenate(list(watched["hazard"]))
    return Replay(traces, hazard).compressed.run(point).set_index("trace_id")


def add_gap(results: Results, arms: Arms, simulated: pd.DataFrame, weights: Floats) -> None:
    """Add the table gap: the actions over all conditions, then under each."""
    for subset, suffix in [(arms, ""), *((arms.only(c), f"/{c}") for c in arms.conditions)]:
        failed = subset.by_policy[STATIC]["failed"]
        forecast = simulated.loc[subset.cases["trace_id"], "failed_controlled"].to_numpy(dtype=bool)
        for action in FORECAST:
            if action in subset.by_policy:
                found = subset.by_policy[action]["failed"]
                values = gap_values(weights, subset.cluster, failed, forecast, found)
                results.add_resampled("gap", f"{action}{suffix}", values)


def gap_values(
    weights: Floats, cluster: NDArray[np.int64], failed: Bools, simulated: Bools, live: Bools
) -> Values:
    """Return the two by two table of the failing traces, and the gap over all traces. {metric: [R]}

    Parameters
    ----------
    failed, simulated, live
        Which traces fail without control, under the simulated and under the real one. [T]
    """
    n = weights.shape[1]

    def total(chosen: Bools) -> Floats:
        return sum_by(cluster, chosen, n)

    predicted, prevented = failed & ~simulated, failed & ~live
    cells = {
        "predicted": predicted,
        "prevented": prevented,
        "both": predicted & prevented,
        "predicted_only": predicted & ~prevented,
        "prevented_only": prevented & ~predicted,
        "neither": failed & ~predicted & ~prevented,
    }
    whole = total(failed)
    cbr = {
        "cbr_simulated": mean_by(weights, cluster, simulated),
        "cbr_live": mean_by(weights, cluster, live),
    }
    return {
        "n_failed": weights @ whole,
        **{name: share(weights, total(chosen), whole) for name, chosen in cells.items()},
        "precision": share(weights, total(predicted & prevented), total(predicted)),
        **cbr,
        "gap": cbr["cbr_live"] - cbr["cbr_simulated"],
    }
