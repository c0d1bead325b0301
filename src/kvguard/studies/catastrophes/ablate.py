"""What is left when features, or parts of the controller, are taken away."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel
from kvguard.stats.bootstrap import Floats, resample_weights
from kvguard.store.results import Results
from kvguard.studies.catastrophes.evaluate.simulate import NEVER, Replay, recorded, safe_from, simulate
from kvguard.studies.catastrophes.forecasts import choose_threshold, control_values, minus, with_threshold
from kvguard.studies.catastrophes.params import AblateParams, EvaluateParams, TrainParams
from kvguard.studies.catastrophes.train.fit import Parts, fit_hazard, load_parts
from kvguard.studies.catastrophes.train.metrics import Measured, pre_onset_ranking
from kvguard.studies.catastrophes.train.protocols import PROTOCOLS
from kvguard.studies.catastrophes.train.rows import Rows, load_rows
from kvguard.studies.catastrophes.train.splits import part_of_traces

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


@dataclass(frozen=True)
class _Bench:
    """What every variant is tried on: tune prompts choose its threshold, test prompts say what it does.

    Attributes
    ----------
    tune_rows
        Every token of the tune traces: ``parts.tuning`` may have been thinned, and the controller sees all.
    n_resamples, seed
        Of prompts.
    """

    tune_traces: pd.DataFrame
    test_traces: pd.DataFrame
    tune_rows: Rows
    parts: Parts
    point: ControllerParams
    evaluate: EvaluateParams
    n_resamples: int
    seed: int

    def tuned(self, scores: np.ndarray, grid: Sequence[float]) -> ControllerParams:
        """Return the operating point with the threshold that suits the scores of the tune tokens."""
        replay = Replay.of(self.tune_traces, self.tune_rows, scores).compressed
        return choose_threshold(replay, grid, self.point, self.evaluate)

    def replay(self, scores: np.ndarray) -> Replay:
        """Return the compressed test traces under the scores of the test tokens."""
        return Replay.of(self.test_traces, self.parts.test, scores).compressed

    def values(self, per_trace: pd.DataFrame) -> dict[str, Floats]:
        """Return what a controller did to the compressed test traces, for every resample."""
        weights = resample_weights(per_trace["prompt_id"].nunique(), self.n_resamples, self.seed)
        return control_values(weights, per_trace)


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
    known = recorded(traces, PROTOCOLS["v2"])
    tune_traces = known[part == "tune"]
    bench = _Bench(
        tune_traces=tune_traces,
        test_traces=known[part == "test"],
        tune_rows=load_rows(features_path, hazard_model.features, tune_traces["trace_id"].to_numpy()),
        parts=load_parts(features_path, traces, part, hazard_model.features, train.max_tokens),
        point=point,
        evaluate=evaluate,
        n_resamples=n_resamples,
        seed=seed,
    )
    test = bench.replay(hazard_model.predict(bench.parts.test.features))
    results = Results("ablate", model)
    _add_features(results, bench, traces, hazard_model, train, params, model)
    _add_controllers(results, bench, test, params)
    for k in params.hysteresis:
        setting = point.model_copy(update={"k_escalate": k})
        results.add_resampled("hysteresis", str(k), bench.values(test.run(setting)))
    for tau in params.thresholds:
        values = bench.values(test.run(with_threshold(point, tau)))
        results.add_resampled("thresholds", f"{tau:g}", values)
    return results


def _add_features(
    results: Results,
    bench: _Bench,
    traces: pd.DataFrame,
    full: HazardModel,
    train: TrainParams,
    params: AblateParams,
    model: str,
) -> None:
    """Add the table features: each set is trained again, and gets a threshold of its own."""
    tested = Measured.of(traces, bench.parts.test)
    weights = resample_weights(tested.n_prompts, bench.n_resamples, bench.seed)

    def with_features(columns: Sequence[str]) -> dict[str, Floats]:
        fewer, chosen = bench.parts.only(columns), full
        if tuple(columns) != full.features:
            chosen = fit_hazard(fewer.fitting, fewer.tuning, train, bench.seed)
        scores = chosen.predict(fewer.test.features)
        setting = bench.tuned(chosen.predict(bench.tune_rows.only(columns).features), params.thresholds)
        ranking = pre_onset_ranking(weights, tested, scores)
        return {**ranking, **bench.values(bench.replay(scores).run(setting))}

    found: dict[tuple[str, ...], dict[str, Floats]] = {}
    for name, keeps in tqdm(FEATURE_SETS.items(), desc=f"ablate {model}", unit="set", disable=None):
        columns = tuple(filter(keeps, full.features))
        if columns not in found:  # without rank_of_chosen, logit_only is minimal already
            found[columns] = with_features(columns)
        results.add_resampled("features", name, minus(found[columns], found[full.features], "full"))


def _add_controllers(results: Results, bench: _Bench, test: Replay, params: AblateParams) -> None:
    """Add the table controllers: the hazard model against predictors that need none.

    Parameters
    ----------
    test
        The compressed test traces under the hazard model.
    """
    by_hazard = test.run(bench.point)
    n_traces, n_steps = test.hazard.shape
    at_once = safe_from(np.zeros(n_traces, dtype=np.int64), n_steps)
    tune_risk = _risk_score(bench.tune_rows, bench.parts.fitting)
    risk = bench.tuned(tune_risk, (*params.thresholds, *_TOP_RANKS))
    by_risk = bench.replay(_risk_score(bench.parts.test, bench.parts.fitting)).run(risk)
    balanced = bench.values(by_hazard)
    controllers = {
        "hazard": balanced,
        "always_safe": bench.values(simulate(test.traces, at_once)),
        "random": _random(bench, test, by_hazard["safe_at"].to_numpy(), params.n_random),
        "risk_score": bench.values(by_risk),
    }
    for name, values in controllers.items():
        results.add_resampled("controllers", name, minus(values, balanced, "hazard"))


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


def _random(bench: _Bench, test: Replay, safe_at: np.ndarray, n_draws: int) -> dict[str, Floats]:
    """Return the mean over draws of a predictor that fires as often, and as late, but at random traces.

    Each draw deals the hazard's moments of SAFE out anew among the traces; one that falls behind the end
    of its trace is moved to the trace's last token.
    """
    rng = np.random.default_rng(bench.seed)
    last = test.traces["n_tokens"].to_numpy() - 1
    total: dict[str, Floats] = {}
    for _ in range(n_draws):
        dealt = rng.permutation(safe_at)
        dealt = np.where(dealt == NEVER, NEVER, np.minimum(dealt, last))
        values = bench.values(simulate(test.traces, safe_from(dealt, test.hazard.shape[1])))
        total = {name: total.get(name, 0.0) + value / n_draws for name, value in values.items()}
    return total
