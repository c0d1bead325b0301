"""What the operating points of ``evaluate`` do to test prompts, simulated."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from kvguard.guard.controller import ControllerParams
from kvguard.stats.bootstrap import resample_weights
from kvguard.store.results import Results
from kvguard.studies.catastrophes.evaluate.operating_points import POINTS, POINTS_TABLE
from kvguard.studies.catastrophes.evaluate.simulate import OVERALL, Replay, metrics_by_condition, recorded
from kvguard.studies.catastrophes.protocols import Protocol
from kvguard.studies.catastrophes.score.hazards import rows_of
from kvguard.studies.catastrophes.train.splits import part_of_traces


def replay_test(
    hazards: pd.DataFrame, traces: pd.DataFrame, split: pd.DataFrame, protocol: Protocol, horizon: int
) -> Replay:
    """Return the test traces under the hazard model's forecasts.

    Parameters
    ----------
    hazards
        Of the tokens of the test traces.
    traces
        Judged traces.
    """
    known = recorded(protocol.select(traces), protocol)
    known = known[part_of_traces(known, split) == "test"]
    return Replay.of(known, rows_of(hazards, traces, horizon), hazards["hazard"].to_numpy())


def add_controllers(
    results: Results, test: Replay, points: Mapping[str, ControllerParams], n_resamples: int, seed: int
) -> pd.DataFrame:
    """Add a table controller-NAME for each operating point; return the traces at the balanced one.

    Returns
    -------
    pd.DataFrame
        See :func:`kvguard.studies.catastrophes.evaluate.simulate.simulate`.
    """
    weights = resample_weights(test.traces["prompt_id"].nunique(), n_resamples, seed)
    per_trace = {name: test.run(point) for name, point in points.items()}
    for name, outcomes in per_trace.items():
        for subject, values in metrics_by_condition(weights, outcomes).items():
            results.add_resampled(f"controller-{name}", subject, values)
    return per_trace["balanced"]


def headline(results: Results) -> dict[str, Any]:
    """Return the operating points, and what they do over all compressed conditions, as nested mappings."""
    points = results.metrics(POINTS_TABLE)
    controllers = results.metrics(*(f"controller-{name}" for name in POINTS))
    alarms = results.metrics("alarms-balanced")
    return points | {table: {OVERALL: found[OVERALL]} for table, found in controllers.items()} | alarms
