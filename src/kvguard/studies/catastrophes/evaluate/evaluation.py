"""Evaluation: operating points chosen on the tune part; ``score`` looks at what they do on the test part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kvguard.guard.hazard_model import HazardModel
from kvguard.store.results import Results
from kvguard.store.schemas import conform
from kvguard.studies.catastrophes.evaluate.operating_points import POINTS_TABLE, OperatingPoint, choose, mark
from kvguard.studies.catastrophes.evaluate.search import search
from kvguard.studies.catastrophes.evaluate.simulate import Replay, recorded
from kvguard.studies.catastrophes.params import EvaluateParams
from kvguard.studies.catastrophes.protocols import Protocol
from kvguard.studies.catastrophes.train.rows import load_rows
from kvguard.studies.catastrophes.train.splits import part_of_traces


@dataclass(frozen=True)
class Evaluation:
    """What the ``evaluate`` stage finds.

    Attributes
    ----------
    points
        The operating points by name.
    pareto
        A ``pareto`` table: all trials of the search.
    facts
        Table operating_points.
    """

    points: Mapping[str, OperatingPoint]
    pareto: pd.DataFrame
    facts: Results


def load_replay(features_path: Path, traces: pd.DataFrame, hazard_model: HazardModel) -> Replay:
    """Score the tokens of recorded traces, once for all settings.

    Parameters
    ----------
    traces
        See :func:`kvguard.studies.catastrophes.evaluate.simulate.recorded`.
    """
    rows = load_rows(features_path, hazard_model.features, traces)
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
    journal: Path | None = None,
) -> Evaluation:
    """Search thresholds on the protocol's tune part and choose operating points.

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
    facts = Results("evaluate", model, protocol.name)
    for name, point in points.items():
        card = point.card
        facts.add(POINTS_TABLE, name, card.pop("tune") | card)
    return Evaluation(points, conform("pareto", mark(trials, points)), facts)
