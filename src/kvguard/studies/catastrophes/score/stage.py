"""The ``score`` stage: every interval of what ``train`` and ``evaluate`` chose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kvguard.engine.presses import NONE
from kvguard.guard.bundle import load_operating_point
from kvguard.stats.bootstrap import resample_weights
from kvguard.store.results import Results
from kvguard.store.schemas import conform
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.evaluate.operating_points import POINTS
from kvguard.studies.catastrophes.protocols import PROTOCOLS
from kvguard.studies.catastrophes.score.alarms import Alarms, add_alarms
from kvguard.studies.catastrophes.score.controllers import add_controllers, headline, replay_test
from kvguard.studies.catastrophes.score.hazards import add_forecasts, ranking_curve
from kvguard.studies.catastrophes.train.hazards import of_horizon, read_all_hazards
from kvguard.studies.catastrophes.train.splits import read_split

FORECASTS = ("predictor", "horizons", "cross_validation", "model")  # of the metrics file


@dataclass(frozen=True)
class Scores:
    """What the stage finds.

    Attributes
    ----------
    forecasts, controllers
        The results of ``train`` and of ``evaluate``.
    curve
        See :func:`kvguard.studies.catastrophes.score.hazards.ranking_curve`.
    controlled
        The ``controlled`` table: each test trace at the balanced operating point.
    """

    forecasts: Results
    controllers: Results
    curve: pd.DataFrame
    controlled: pd.DataFrame

    @property
    def controllers_headline(self) -> dict[str, Any]:
        """What the metrics file of ``evaluate`` holds."""
        return headline(self.controllers)

    def write(self, folder: Path) -> None:
        """Write every table."""
        self.forecasts.write(folder / "train.parquet")
        self.controllers.write(folder / "evaluate.parquet")
        write_table("curve", self.curve, folder / "curve.parquet")
        write_table("controlled", self.controlled, folder / "controlled.parquet")


def score(
    model: str,
    protocol: str,
    traces: pd.DataFrame,
    horizon: int,
    n_resamples: int,
    seed: int,
) -> Scores:
    """Measure what the earlier stages left of ``model``, on test prompts.

    Parameters
    ----------
    traces
        Judged traces.
    horizon
        The H of the hazard model.
    """
    rules = PROTOCOLS[protocol]
    traces = rules.select(traces)
    trained, evaluated = layout.trained(model, protocol), layout.evaluated(model, protocol)
    facts = {of: read_table("results", layout.facts(of, model, protocol)) for of in ("train", "evaluate")}
    forecasts, controllers = (Results(of, model, protocol) for of in facts)
    forecasts.add_frame(facts["train"])
    controllers.add_frame(facts["evaluate"])
    hazards, main = read_all_hazards(trained), of_horizon(horizon)
    of_model = facts["train"][facts["train"]["table"] == "model"].set_index("metric")["value"]
    add_forecasts(forecasts, hazards, traces, of_model["threshold"], horizon, n_resamples, seed)
    test = replay_test(hazards[main], traces, read_split(rules, trained), rules, horizon)
    points = {name: load_operating_point(evaluated, name) for name in POINTS}
    at_balanced = add_controllers(controllers, test, points, n_resamples, seed)
    compressed = (test.traces["compressor"] != NONE).to_numpy()
    recorded, safe_at = test.traces[compressed], at_balanced["safe_at"].to_numpy()[compressed]
    alarms = Alarms.of(recorded, recorded["kind"].to_numpy(), safe_at)
    weights = resample_weights(recorded["prompt_id"].nunique(), n_resamples, seed)
    add_alarms(controllers, "balanced", alarms, weights)
    return Scores(
        forecasts,
        controllers,
        ranking_curve(hazards[main], traces, horizon),
        conform("controlled", at_balanced),
    )
