"""What is left when features are taken away: each set is fitted again, and gets a threshold of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from kvguard.guard.columns import DRIFT
from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel
from kvguard.studies.catastrophes.evaluate.simulate import Replay, recorded
from kvguard.studies.catastrophes.forecasts import choose_threshold
from kvguard.studies.catastrophes.params import EvaluateParams, TrainParams
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.fit import fit_hazard, load_parts
from kvguard.studies.catastrophes.train.rows import Rows, load_rows
from kvguard.studies.catastrophes.train.splits import part_of_traces
from kvguard.studies.catastrophes.variants import RISK_SCORE, Variant

_REPETITION = ("rep_count", "rep_count_sum_8")
_RISK = ("entropy_mean_8", "rep_count_sum_8")
# A rank crowds at its top: the grid of a risk score goes on where that of a probability ends.
_TOP_RANKS = (0.975, 0.99, 0.995, 0.999)

FEATURE_SETS: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "no_compression_ratio": lambda name: name != "compression_ratio",
    "no_rep": lambda name: name not in _REPETITION,
    "no_position": lambda name: name != "token_position",
    "no_drift": lambda name: name not in DRIFT,
    "logit_only": lambda name: name not in (*_REPETITION, "compression_ratio"),
    "logit_only_minimal": lambda name: name not in (*_REPETITION, "compression_ratio", "rank_of_chosen"),
    "position_only": lambda name: name == "token_position",
}


def ablate(
    features_path: Path,
    traces: pd.DataFrame,
    split: pd.DataFrame,
    hazard_model: HazardModel,
    point: ControllerParams,
    train: TrainParams,
    evaluate: EvaluateParams,
    grid: Sequence[float],
    *,
    model: str,
    seed: int,
) -> dict[str, Variant]:
    """Return the hazard model with fewer features, by the names of ``FEATURE_SETS``, and the risk score.

    Parameters
    ----------
    traces
        Judged traces.
    hazard_model, point
        The full model, and the balanced operating point, which gives the hysteresis.
    grid
        The thresholds to choose from, on tune prompts.
    """
    rules = PROTOCOLS[HEADLINE]
    traces = rules.select(traces)
    part = part_of_traces(traces, split)
    known = recorded(traces, rules)[part == "tune"]
    parts = load_parts(features_path, traces, part, hazard_model.features, train)
    # Every token of the tune traces: those to fit on may have been thinned, and the controller sees all.
    tune = load_rows(features_path, hazard_model.features, known)

    def variant(tune_scores: np.ndarray, test_scores: np.ndarray, levels: Sequence[float]) -> Variant:
        replay = Replay.of(known, tune, tune_scores).compressed
        return Variant.of(parts.test, test_scores, choose_threshold(replay, levels, point, evaluate))

    def with_features(columns: Sequence[str]) -> Variant:
        fewer, chosen = parts.only(columns), hazard_model
        if tuple(columns) != hazard_model.features:
            chosen = fit_hazard(fewer.fitting, fewer.tuning, train, seed)
        return variant(chosen.predict(tune.only(columns).features), chosen.predict(fewer.test.features), grid)

    fitted: dict[tuple[str, ...], Variant] = {}
    found: dict[str, Variant] = {}
    for name, keeps in tqdm(FEATURE_SETS.items(), desc=f"ablate {model}", unit="set", disable=None):
        columns = tuple(filter(keeps, hazard_model.features))
        if columns not in fitted:  # without rank_of_chosen, logit_only is minimal already
            fitted[columns] = with_features(columns)
        found[name] = fitted[columns]
    risks = [_risk_score(rows, parts.fitting) for rows in (tune, parts.test)]
    return {**found, RISK_SCORE: variant(risks[0], risks[1], (*grid, *_TOP_RANKS))}


def _risk_score(rows: Rows, fitting: Rows) -> np.ndarray:
    """Return a score without any model: the higher of two ranks. [N]

    The ranks are those of the mean entropy and of the repeats of the last 8 tokens among the training
    tokens: the share of them that lies strictly below.
    """
    score = np.zeros(len(rows.t), dtype=np.float32)
    for name in _RISK:
        if name in rows.columns:  # unless train.exclude_features took it away
            known = np.sort(np.concatenate(list(fitting.only([name]).blocks()))[:, 0])
            below = np.searchsorted(known, rows.only([name]).features[:, 0], side="left")
            score = np.maximum(score, (below / len(known)).astype(np.float32))
    return score
