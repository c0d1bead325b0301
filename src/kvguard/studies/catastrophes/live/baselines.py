"""The settings of the triggers that the hazard has to beat, chosen on tune prompts.

Their risk has one threshold, tau_low = tau_high. The entropy trigger and the clock are given every chance: of
several k_escalate, each with the threshold at which the simulation saves as much memory as the hazard's
operating point does, or next to it, the one that prevents most.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kvguard.engine.presses import Condition
from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel
from kvguard.studies.catastrophes.evaluate.simulate import Replay, recorded
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.rows import load_rows
from kvguard.studies.catastrophes.train.splits import part_of_traces

_log = logging.getLogger(__name__)

_ESCALATE = (1, 2, 4, 8)
_N_THRESHOLDS = 60


def loop_setting(point: ControllerParams) -> ControllerParams:
    """Return the setting of the loop detector: it acts at the first token of a repetition."""
    return point.model_copy(update={"tau_low": 0.5, "tau_high": 0.5, "k_escalate": 1})


def matched_setting(
    risk: str,
    largest: float,
    features_path: Path,
    traces: pd.DataFrame,
    split: pd.DataFrame,
    hazard_model: HazardModel,
    point: ControllerParams,
    conditions: Sequence[Condition],
) -> ControllerParams:
    """Choose the setting of a trigger whose risk is one feature, as a share of its largest value.

    Parameters
    ----------
    risk
        The feature: ``entropy`` or, for a clock, ``token_position``.
    largest
        Of the feature's values: that of entropy is the logarithm of the vocabulary, in nats.
    traces, split
        The sweep's judged traces, and its prompts' parts.
    point
        The hazard's operating point.
    conditions
        Those that are run live; the ones of them that the sweep has are simulated.
    """
    tune = traces[part_of_traces(traces, split) == "tune"]
    known = recorded(tune.reset_index(drop=True), PROTOCOLS[HEADLINE])
    wanted = [(condition.compressor, condition.ratio) for condition in conditions]
    live = pd.MultiIndex.from_frame(known[["compressor", "ratio"]]).isin(wanted)
    known = known[live].reset_index(drop=True)
    columns = tuple(dict.fromkeys((*hazard_model.features, risk)))
    rows = load_rows(features_path, columns, known)
    hazard = hazard_model.predict(rows.only(hazard_model.features).features)
    target = Replay.of(known, rows, hazard).compressed.run(point)["kv_saved_controlled"].mean()
    share = np.minimum(rows.only([risk]).features[:, 0] / np.float32(largest), np.float32(1))
    return choose_setting(risk, Replay.of(known, rows, share).compressed, target, point)


def choose_setting(risk: str, tune: Replay, target: float, point: ControllerParams) -> ControllerParams:
    """Return the setting that prevents most among those that save next to ``target``, and no more.

    Parameters
    ----------
    risk
        What a warning calls it.
    tune
        Compressed traces with their risks.
    target
        Share of KV memory saved.
    """
    # Quantiles, closer together where risks are high.
    levels = 1 - np.geomspace(1e-4, 0.9, _N_THRESHOLDS)
    thresholds = np.unique(np.quantile(tune.hazard[np.isfinite(tune.hazard)], levels).clip(0, 1))
    best, least = [], []
    for k in dict.fromkeys((*_ESCALATE, point.k_escalate)):
        trials = [_trial(tune, _with(point, float(tau), k)) for tau in thresholds]
        least.append(min(trials, key=lambda trial: trial[1]))
        allowed = [trial for trial in trials if trial[1] <= target]
        if allowed:
            best.append(max(allowed, key=lambda trial: trial[1]))
    if not best:
        setting, saved, _ = min(least, key=lambda trial: trial[1])
        _log.warning("trigger by %s: no threshold saves as little as %.3f: taking %.3f", risk, target, saved)
        return setting
    return max(best, key=lambda trial: trial[2])[0]


def _with(point: ControllerParams, tau: float, k: int) -> ControllerParams:
    return point.model_copy(update={"tau_low": tau, "tau_high": tau, "k_escalate": k})


def _trial(tune: Replay, setting: ControllerParams) -> tuple[ControllerParams, float, float]:
    """Return a setting, the memory that it saves, and the share of catastrophes that it prevents."""
    done = tune.run(setting)
    prevented = done["failed"].mean() - done["failed_controlled"].mean()
    return setting, float(done["kv_saved_controlled"].mean()), float(prevented)
