"""Operating points: chosen from the search's trials by stated rules, kept in a file for the live guard.

``conservative``
    The largest reduction among trials whose false-positive rate is at most ``evaluate.conservative_fpr``.
``balanced``
    The same with ``evaluate.balanced_fpr``.
``aggressive``
    The largest reduction of all.

Ties go to the lower false-positive rate, then to more memory saved, then to the earlier trial. Where no trial
keeps a bound, the point is the trial of the lowest false-positive rate (ties: the larger reduction, then as
before), with a warning. All rates are those on the traces that were searched. Every point lies on the Pareto
front of the trials: one that dominated it would have been chosen.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvguard.guard.controller import ControllerParams
from kvguard.store.files import write_json
from kvguard.studies.catastrophes.params import EvaluateParams

_log = logging.getLogger(__name__)

POINTS_TABLE = "operating_points"  # among the results
POINTS = ("conservative", "balanced", "aggressive")
OBJECTIVES = ("reduction", "false_positive_rate", "kv_saved")
_FILE = "operating_points.json"


@dataclass(frozen=True)
class OperatingPoint:
    """A setting of the controller, the trial that found it, and what it did on the traces searched."""

    trial: int
    params: ControllerParams
    reduction: float
    false_positive_rate: float
    kv_saved: float

    @property
    def card(self) -> dict[str, Any]:
        """The fields of the controller's settings, and under ``tune`` what the search weighed."""
        return self.params.model_dump() | {"tune": {name: getattr(self, name) for name in OBJECTIVES}}


def choose(trials: pd.DataFrame, params: EvaluateParams) -> dict[str, OperatingPoint]:
    """Choose the operating points. {name: point}

    Parameters
    ----------
    trials
        trial, the fields of :class:`~kvguard.config.ControllerParams`, and the objectives; at least one row.
    """
    bounds = {"conservative": params.conservative_fpr, "balanced": params.balanced_fpr, "aggressive": np.inf}
    return {name: best(name, trials, bounds[name]) for name in POINTS}


def best(name: str, trials: pd.DataFrame, bound: float) -> OperatingPoint:
    """Choose the operating point ``name``, whose false-positive rate is to be at most ``bound``."""
    allowed = trials[trials["false_positive_rate"] <= bound]
    order = ["reduction", "false_positive_rate", "kv_saved", "trial"]
    if allowed.empty:
        lowest = trials["false_positive_rate"].min()
        _log.warning(
            "%s: no trial has a false-positive rate of at most %g: taking the lowest, %.3f",
            name,
            bound,
            lowest,
        )
        allowed = trials[trials["false_positive_rate"] == lowest]
    rising = [column in ("false_positive_rate", "trial") for column in order]
    best = allowed.sort_values(order, ascending=rising).iloc[0]
    return OperatingPoint(
        int(best["trial"]),
        ControllerParams(
            tau_low=float(best["tau_low"]),
            tau_high=float(best["tau_high"]),
            k_escalate=int(best["k_escalate"]),
            j_deescalate=int(best["j_deescalate"]),
        ),
        **{objective: float(best[objective]) for objective in OBJECTIVES},
    )


def mark(trials: pd.DataFrame, points: Mapping[str, OperatingPoint]) -> pd.DataFrame:
    """Return the ``pareto`` table: the trials, with the names of the operating points they became."""
    names: dict[int, list[str]] = {trial: [] for trial in trials["trial"]}
    for name, point in points.items():
        names[point.trial].append(name)
    return trials.assign(operating_point=[", ".join(names[trial]) or None for trial in trials["trial"]])


def as_trials(
    pareto: pd.DataFrame,
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield the name, the settings and the objectives of each trial, as they are tracked."""
    for row in pareto.to_dict("records"):
        settings = {field: row[field] for field in ControllerParams.model_fields}
        yield f"trial-{row['trial']}", settings, {name: row[name] for name in OBJECTIVES}


def save_operating_points(points: Mapping[str, OperatingPoint], folder: Path) -> Path:
    """Write the operating points to ``folder`` and return the file's path."""
    path = folder / _FILE
    write_json(path, {name: point.card for name, point in points.items()})
    return path
