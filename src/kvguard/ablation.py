"""What is left when features, or parts of the controller, are taken away."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from kvguard.config import AblateParams, ControllerParams, EvaluateParams, TrainParams
from kvguard.forecasts import choose_threshold, control_values, minus, with_threshold
from kvguard.guard.simulate import NEVER, Replay, recorded, safe_from, simulate
from kvguard.hazard.metrics import Measured, pre_onset_ranking
from kvguard.hazard.protocols import PROTOCOLS
from kvguard.hazard.rows import Rows, load_rows
from kvguard.hazard.splits import part_of_traces
from kvguard.hazard.train import HazardModel, fit_hazard, load_parts
from kvguard.results import Results
from kvguard.statistics import Floats, resample_weights

_REPETITION = ("rep_count", "rep_count_sum_8")
_RISK = ("entropy_mean_8", "rep_count_sum_8")
# A rank crowds at its top: the grid of a risk score goes on where that of a probability ends.
_TOP_RANKS = (0.975, 0.99, 0.995, 0.999)

FEATURE_SETS: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "no_compression_ratio": lambda name: name != "compression_ratio",
    "no_rep": lambda name: name not in _REPETITION,
    "no_position": lambda name: name != "token_position",
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
    params: AblateParams,
    *,
    model: str,
    seed: int,
    n_resamples: int,
) -> Results:
    """Fill the tables features, controllers, hysteresis and thresholds, on test prompts under protocol v2.

    Parameters
    ----------
    traces
        Judged traces.
    hazard_model, point
        The full model, and the balanced operating point.
    """
    part = part_of_traces(traces, split)
    parts = load_parts(features_path, traces, part, hazard_model.features, train.max_tokens)
    known = recorded(traces, PROTOCOLS["v2"])
    tune_traces, test_traces = known[part == "tune"], known[part == "test"]
    # Every token of them: parts.tuning may have been thinned, and the controller sees all.
    tune_rows = load_rows(features_path, hazard_model.features, tune_traces["trace_id"].to_numpy())
    results = Results("ablate", model)

    def tune_replay(scores: np.ndarray) -> Replay:
        return Replay.of(tune_traces, tune_rows, scores).compressed

    def test_replay(scores: np.ndarray) -> Replay:
        return Replay.of(test_traces, parts.test, scores).compressed

    test = test_replay(hazard_model.predict(parts.test.features))
    weights = resample_weights(test.traces["prompt_id"].nunique(), n_resamples, seed)
    balanced = control_values(weights, test.run(point))

    def with_features(columns: Sequence[str]) -> dict[str, Floats]:
        fewer = parts.only(columns)
        chosen = (
            hazard_model
            if tuple(columns) == hazard_model.features
            else fit_hazard(fewer.fitting, fewer.tuning, train, seed)
        )
        scores = chosen.predict(fewer.test.features)
        tune = tune_replay(chosen.predict(tune_rows.only(columns).features))
        setting = choose_threshold(tune, params.thresholds, point, evaluate)
        tested = Measured.of(traces, parts.test)
        ranking = pre_onset_ranking(resample_weights(tested.n_prompts, n_resamples, seed), tested, scores)
        return {**ranking, **control_values(weights, test_replay(scores).run(setting))}

    found: dict[tuple[str, ...], dict[str, Floats]] = {}
    for name, keeps in tqdm(FEATURE_SETS.items(), desc=f"ablate {model}", unit="set", disable=None):
        columns = tuple(filter(keeps, hazard_model.features))
        if columns not in found:  # without rank_of_chosen, logit_only is minimal already
            found[columns] = with_features(columns)
        results.add_resampled("features", name, minus(found[columns], found[hazard_model.features], "full"))

    risk = choose_threshold(
        tune_replay(_risk_score(tune_rows, parts.fitting)), (*params.thresholds, *_TOP_RANKS), point, evaluate
    )
    n_steps = test.hazard.shape[1]
    controllers = {
        "hazard": balanced,
        "always_safe": control_values(
            weights, simulate(test.traces, safe_from(np.zeros(len(test.traces), dtype=np.int64), n_steps))
        ),
        "random": _random(weights, test, test.run(point)["safe_at"].to_numpy(), params.n_random, seed),
        "risk_score": control_values(weights, test_replay(_risk_score(parts.test, parts.fitting)).run(risk)),
    }
    for name, values in controllers.items():
        results.add_resampled("controllers", name, minus(values, balanced, "hazard"))
    for k in params.hysteresis:
        setting = point.model_copy(update={"k_escalate": k})
        results.add_resampled("hysteresis", str(k), control_values(weights, test.run(setting)))
    for tau in params.thresholds:
        values = control_values(weights, test.run(with_threshold(point, tau)))
        results.add_resampled("thresholds", f"{tau:g}", values)
    return results


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


def _random(weights: Floats, test: Replay, safe_at: np.ndarray, n_draws: int, seed: int) -> dict[str, Floats]:
    """Return the mean over draws of a predictor that fires as often, and as late, but at random traces.

    Each draw deals the hazard's moments of SAFE out anew among the traces; one that falls behind the end
    of its trace is moved to the trace's last token.
    """
    rng = np.random.default_rng(seed)
    last = test.traces["n_tokens"].to_numpy() - 1
    total: dict[str, Floats] = {}
    for _ in range(n_draws):
        dealt = rng.permutation(safe_at)
        dealt = np.where(dealt == NEVER, NEVER, np.minimum(dealt, last))
        values = control_values(weights, simulate(test.traces, safe_from(dealt, test.hazard.shape[1])))
        total = {name: total.get(name, 0.0) + value / n_draws for name, value in values.items()}
    return total
