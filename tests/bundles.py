"""Guards in a folder that alarm where they are told to: trees fitted in milliseconds, no pipeline."""

from pathlib import Path

import numpy as np
import xgboost as xgb

from kvguard.guard.bundle import Card
from kvguard.guard.calibration import Platt
from kvguard.guard.columns import FEATURES
from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel
from kvguard.models.identity import weights_digest
from kvguard.studies.catastrophes.evaluate.operating_points import OperatingPoint, save_operating_points
from kvguard.studies.catastrophes.export import export, save_hazard

MAX_NEW_TOKENS = 40
NEVER = 2.0


def hazard_model(position=NEVER, uncompressed=False, features=FEATURES):
    """A hazard near 1 from a share of the token budget on, and near 0 before.

    Parameters
    ----------
    uncompressed
        Also while nothing is compressed.
    """
    rng = np.random.default_rng(0)
    rows = rng.random((4000, len(FEATURES)), dtype=np.float32)
    ratio = rows[:, FEATURES.index("compression_ratio")]
    ratio[:2000] = 0
    rows[-1, FEATURES.index("token_position")] = 3  # one is always labelled
    label = (rows[:, FEATURES.index("token_position")] >= position) & (uncompressed | (ratio > 0))
    shape = {"max_depth": 3, "eta": 1.0, "nthread": 1, "objective": "binary:logistic"}
    columns = [FEATURES.index(name) for name in features if name in FEATURES]
    booster = xgb.train(shape, xgb.DMatrix(rows[:, columns], label), 4)
    return HazardModel(booster, tuple(features), Platt(1.0, 0.0), 0.5)


def write_bundle(folder: Path, model=None, *, params=None, weights="", **hazard):
    """Write a guard that alarms as :func:`hazard_model` says; it knows ``model`` as its own."""
    point = ControllerParams(tau_low=0.4, tau_high=0.6, k_escalate=3, j_deescalate=4)
    points = {
        name: OperatingPoint(0, params or point, 0.5, 0.05, 0.3)
        for name in ("conservative", "balanced", "aggressive")
    }
    source = folder.parent / f"{folder.name}-source"
    save_hazard(hazard_model(**hazard), source)
    save_operating_points(points, source)
    card = Card(
        model="tiny",
        source="path:tiny",
        weights=weights_digest(model) if model is not None else weights,
        protocol="v2",
        horizon=32,
        thinking_words=("so", "then"),
        max_new_tokens=MAX_NEW_TOKENS,
        conditions=("none", "knorm@0.5"),
    )
    export(source, source, card, folder)
    return folder
