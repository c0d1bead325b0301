"""How good the forecasts of ``train`` are on test prompts."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.presses import NONE
from kvguard.judging.onsets import kinds_of
from kvguard.stats.bootstrap import resample_weights
from kvguard.store.results import Results
from kvguard.store.schemas import conform
from kvguard.studies.catastrophes.score.matched import add_matched
from kvguard.studies.catastrophes.train.hazards import horizons_of, of_horizon, without
from kvguard.studies.catastrophes.train.labels import Bools, all_token_target
from kvguard.studies.catastrophes.train.metrics import (
    RANKING,
    Curve,
    Measured,
    all_token_metrics,
    pre_onset_metrics,
    pre_onset_ranking,
    reliability,
)
from kvguard.studies.catastrophes.train.rows import Rows, onset_of


def add_forecasts(
    results: Results,
    hazards: Mapping[str, pd.DataFrame],
    traces: pd.DataFrame,
    threshold: float,
    horizon: int,
    n_resamples: int,
    seed: int,
) -> None:
    """Add the tables predictor, reliability, horizons and cross_validation.

    Parameters
    ----------
    hazards
        What ``train`` forecast for test tokens, by the names of
        :mod:`kvguard.studies.catastrophes.train.hazards`; empty where no model could be fitted.
    traces
        The judged traces, those of the tokens among them, with the protocol's onsets.
    threshold
        At which the hazard model flags a token.
    horizon
        The H of the hazard model.
    """

    def measured(table: pd.DataFrame, ahead: int) -> Measured:
        return Measured.of(traces, rows_of(table, traces, ahead))

    def rank(table: str, subject: str, forecast: pd.DataFrame, ahead: int) -> None:
        if forecast.empty:
            results.add(table, subject, dict.fromkeys(RANKING))
            return
        tested = measured(forecast, ahead)
        weights = resample_weights(tested.n_prompts, n_resamples, seed)
        found = pre_onset_ranking(weights, tested, forecast["hazard"].to_numpy())
        results.add_resampled(table, subject, found)

    main = hazards[of_horizon(horizon)]
    tested = measured(main, horizon)
    _add_predictor(results, tested, main["hazard"].to_numpy(), threshold, n_resamples, seed)
    found_by = traces.set_index("trace_id")["onset_by"].reindex(tested.trace_id)
    weights = resample_weights(tested.n_prompts, n_resamples, seed)
    add_matched(results, tested, main["hazard"].to_numpy(), kinds_of(found_by), weights)
    for ahead in horizons_of(hazards):
        rank("horizons", str(ahead), hazards[of_horizon(ahead)], ahead)
    compressor = traces.set_index("trace_id")["compressor"].reindex(tested.trace_id)
    early = tested.rows.pre_onset
    for name in compressor[compressor != NONE].unique():
        rank("cross_validation", name, hazards[without(name)], horizon)
        its = np.isin(tested.rows.trace_id, compressor.index[compressor == name])
        results.add("cross_validation", name, _counts(tested.rows.label[early & its]))


def ranking_curve(hazards: pd.DataFrame, traces: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """Return the ``curve`` table of the pre-onset tokens: thresholds falling, what each of them flags."""
    rows = rows_of(hazards, traces, horizon)
    early, once = rows.pre_onset, np.ones((1, 1))
    score, target = hazards["hazard"].to_numpy()[early], rows.label[early]
    curve = Curve.resampled(once, np.zeros(len(score), dtype=np.int64), score, target)
    columns = {name: getattr(curve, name)[0] for name in ("recall", "fpr", "precision")}
    counts = {"n_positive": int(target.sum()), "n_negative": int((~target).sum())}
    return conform("curve", pd.DataFrame({"threshold": curve.threshold, **columns, **counts}))


def rows_of(table: pd.DataFrame, traces: pd.DataFrame, horizon: int) -> Rows:
    """Return the tokens of a hazards table with the labels of ``horizon``."""
    trace_id, t = (table[name].to_numpy() for name in ("trace_id", "t"))
    nothing: NDArray[np.float32] = np.empty((len(t), 0), dtype=np.float32)
    return Rows(nothing, onset_of(traces, trace_id), trace_id, t, horizon=horizon)


def _add_predictor(
    results: Results,
    tested: Measured,
    hazard: NDArray[np.float32],
    threshold: float,
    n_resamples: int,
    seed: int,
) -> None:
    """Add the tables predictor and reliability."""
    weights = resample_weights(tested.n_prompts, n_resamples, seed)
    early = tested.rows.pre_onset
    target = all_token_target(tested.rows.label, early)
    for subject, measure, its_target in (
        ("pre_onset", pre_onset_metrics, target[early]),
        ("all", all_token_metrics, target),
    ):
        results.add_resampled("predictor", subject, measure(weights, tested, hazard, threshold))
        results.add("predictor", subject, _counts(its_target))
    for number, (means, n_tokens) in enumerate(reliability(weights, tested, hazard)):
        results.add_resampled("reliability", str(number), means)
        results.add("reliability", str(number), {"n_tokens": n_tokens})


def _counts(target: Bools) -> dict[str, float]:
    return {"n_tokens": len(target), "n_positive": int(target.sum())}
