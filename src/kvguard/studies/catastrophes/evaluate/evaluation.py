"""Evaluation: operating points chosen on the tune part, and what they do on the test part, looked at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kvguard.guard.hazard_model import HazardModel
from kvguard.stats.bootstrap import resample_weights
from kvguard.store.results import Results
from kvguard.store.schemas import conform
from kvguard.studies.catastrophes.evaluate.operating_points import POINTS, OperatingPoint, choose, mark
from kvguard.studies.catastrophes.evaluate.search import search
from kvguard.studies.catastrophes.evaluate.simulate import OVERALL, Replay, metrics_by_condition, recorded
from kvguard.studies.catastrophes.params import EvaluateParams
from kvguard.studies.catastrophes.train.protocols import Protocol
from kvguard.studies.catastrophes.train.rows import load_rows
from kvguard.studies.catastrophes.train.splits import part_of_traces

_POINTS_TABLE = "operating_points"


@dataclass(frozen=True)
class Evaluation:
    """What the ``evaluate`` stage finds.

    Attributes
    ----------
    points
        The operating points by name.
    pareto
        A ``pareto`` table: all trials of the search.
    results
        Tables operating_points, and controller-NAME for each of them.
    per_trace
        The test traces at the balanced point, see
        :func:`~kvguard.studies.catastrophes.evaluate.simulate.simulate`.
    tokens
        trace_id, hazard and entropy of their tokens.
    """

    points: Mapping[str, OperatingPoint]
    pareto: pd.DataFrame
    results: Results
    per_trace: pd.DataFrame
    tokens: pd.DataFrame

    @property
    def controlled(self) -> pd.DataFrame:
        """The ``controlled`` table."""
        return conform("controlled", self.per_trace)

    @property
    def headline(self) -> dict[str, Any]:
        """The operating points, and what they do over all compressed conditions, as nested mappings."""
        points = self.results.metrics(_POINTS_TABLE)
        controllers = self.results.metrics(*(f"controller-{name}" for name in POINTS))
        return points | {table: {OVERALL: found[OVERALL]} for table, found in controllers.items()}


def load_replay(features_path: Path, traces: pd.DataFrame, hazard_model: HazardModel) -> Replay:
    """Score the tokens of recorded traces, once for all settings.

    Parameters
    ----------
    traces
        See :func:`kvguard.studies.catastrophes.evaluate.simulate.recorded`.
    """
    rows = load_rows(features_path, hazard_model.features, traces["trace_id"].to_numpy())
    return Replay.of(traces, rows, hazard_model.predict(rows.features))


def evaluate(
    features_path: Path,
    traces: pd.DataFrame,
    split: pd.DataFrame,
    hazard_model: HazardModel,
    protocol: Protocol,
    params: EvaluateParams,
    *,
    model: str = "",
    seed: int = 0,
    n_resamples: int = 1000,
    journal: Path | None = None,
) -> Evaluation:
    """Search thresholds on the protocol's tune part, choose operating points, run them on the test part.

    Parameters
    ----------
    traces
        Judged traces.
    model
        The language model's name, for the results.
    journal
        Where the search is kept, so that it resumes; None for nowhere.
    """
    known = recorded(protocol.select(traces), protocol)
    part = part_of_traces(known, split)
    tune = load_replay(features_path, known[part == protocol.tune_part], hazard_model)
    trials = search(tune, split, protocol, params.n_trials, seed, journal)
    points = choose(trials, params)
    results = Results("evaluate", model, protocol.name)
    for name, point in points.items():
        card = point.card
        results.add(_POINTS_TABLE, name, card.pop("tune") | card)
    test = load_replay(features_path, known[part == "test"], hazard_model)
    weights = resample_weights(test.traces["prompt_id"].nunique(), n_resamples, seed)
    per_trace = {name: test.run(point.params) for name, point in points.items()}
    for name, outcomes in per_trace.items():
        for subject, values in metrics_by_condition(weights, outcomes).items():
            results.add_resampled(f"controller-{name}", subject, values)
    pareto = conform("pareto", mark(trials, points))
    return Evaluation(points, pareto, results, per_trace["balanced"], _tokens(features_path, test))


def _tokens(features_path: Path, test: Replay) -> pd.DataFrame:
    trace_id = test.traces["trace_id"].to_numpy()
    rows = load_rows(features_path, ["entropy"], trace_id)
    hazard = test.hazard[pd.Index(trace_id).get_indexer(rows.trace_id), rows.t]
    return pd.DataFrame({"trace_id": rows.trace_id, "hazard": hazard, "entropy": rows.features[:, 0]})
