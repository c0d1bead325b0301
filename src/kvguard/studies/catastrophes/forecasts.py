"""One forecaster held against another: same test traces, one rule for thresholds, paired by prompt.

A forecaster gives every token a score. Its threshold tau_high is chosen on tune traces from a grid, as the
balanced operating point is (the largest reduction within the allowed false-positive rate); tau_low follows it
down where it must, and the hysteresis is the operating point's. So forecasters whose scores mean different
things, a calibrated hazard and a rank, say, are compared fairly.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kvguard.guard.controller import ControllerParams
from kvguard.stats.bootstrap import Floats
from kvguard.studies.catastrophes.evaluate.operating_points import best
from kvguard.studies.catastrophes.evaluate.simulate import Replay, controller_metrics
from kvguard.studies.catastrophes.params import EvaluateParams

Values = Mapping[str, Floats]

CONTROL = {
    "reduction": "reduction",
    "false_positive_rate": "false_positive_rate",
    "kv_saved": "kv_saved_controlled",
    "lead_time_median": "lead_time_median",
}


def with_threshold(point: ControllerParams, tau_high: float) -> ControllerParams:
    """Return ``point`` with another tau_high, and tau_low no higher."""
    return point.model_copy(update={"tau_high": tau_high, "tau_low": min(point.tau_low, tau_high)})


def choose_threshold(
    tune: Replay, grid: Sequence[float], point: ControllerParams, params: EvaluateParams
) -> ControllerParams:
    """Return ``point`` with the balanced threshold of the grid.

    Parameters
    ----------
    tune
        Compressed traces of the tune part, with the forecaster's scores.
    """
    once = np.ones((1, 1))
    trials = []
    for number, tau_high in enumerate(grid):
        setting = with_threshold(point, tau_high)
        per_trace = tune.run(setting)
        found = controller_metrics(once, np.zeros(len(per_trace), dtype=np.int64), per_trace)
        values = {name: float(np.nan_to_num(found[CONTROL[name]][0])) for name in list(CONTROL)[:3]}
        trials.append({"trial": number, **setting.model_dump(), **values})
    return best("balanced", pd.DataFrame(trials), params.balanced_fpr).params


def control_values(weights: Floats, per_trace: pd.DataFrame) -> dict[str, Floats]:
    """Return what a controller did, for every resample, under the short names of ``CONTROL``. {metric: [R]}

    Parameters
    ----------
    weights
        Of the prompts in the order of their first trace. [R, P]
    per_trace
        Compressed test traces, see :func:`kvguard.studies.catastrophes.evaluate.simulate.simulate`.
    """
    cluster, _ = pd.factorize(per_trace["prompt_id"])
    found = controller_metrics(weights, cluster, per_trace)
    kinds = {
        f"{kind}_reduction": found[f"{kind}_uncontrolled"] - found[f"{kind}_controlled"]
        for kind in ("looping", "non_termination")
    }
    return {**{short: found[name] for short, name in CONTROL.items()}, **kinds}


def minus(values: Values, reference: Values, name: str) -> dict[str, Floats]:
    """Return ``values`` and, paired by prompt, their differences to ``reference``, as METRIC_minus_NAME."""
    differences = {f"{metric}_minus_{name}": found - reference[metric] for metric, found in values.items()}
    return {**values, **differences}
