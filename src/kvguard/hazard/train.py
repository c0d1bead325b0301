"""The hazard model: gradient-boosted trees over token features."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xgboost as xgb
from numpy.typing import NDArray

from kvguard.config import TrainParams
from kvguard.errors import KvguardError
from kvguard.features import feature_columns
from kvguard.hazard.labels import all_token_target
from kvguard.hazard.metrics import best_f1_threshold, hazard_metrics
from kvguard.hazard.rows import Rows, load_rows
from kvguard.hazard.splits import part_of_traces, split_by_prompt

_BLOCK = 1 << 18  # rows scored at a time
_N_JOBS = 2
_MODEL, _CARD = "booster.json", "hazard.json"


@dataclass(frozen=True)
class HazardModel:
    """A booster with the features it reads and the threshold of its best F1 on tune prompts."""

    booster: xgb.Booster
    features: tuple[str, ...]
    threshold: float

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the hazard: the probability that a catastrophe is imminent or has begun.

        Parameters
        ----------
        rows
            Columns in the order of ``features``. [N, F] float32
        """
        hazard = np.empty(len(rows), dtype=np.float32)
        for begin in range(0, len(rows), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            hazard[block] = self.booster.inplace_predict(rows[block])
        return hazard

    def save(self, folder: Path) -> None:
        """Write the booster and what belongs to it to ``folder`` as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        self.booster.save_model(folder / _MODEL)
        card = {"features": list(self.features), "threshold": self.threshold}
        (folder / _CARD).write_text(json.dumps(card, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "HazardModel":
        """Read a saved model.

        Raises
        ------
        KvguardError
            A file is missing or unreadable.
        """
        booster = xgb.Booster({"nthread": _N_JOBS})
        try:
            card = json.loads((folder / _CARD).read_text())
            booster.load_model(folder / _MODEL)
            return cls(booster, tuple(card["features"]), float(card["threshold"]))
        except (OSError, ValueError, KeyError, xgb.core.XGBoostError) as error:
            reason = str(error).splitlines()[0][:120]
            raise KvguardError(
                f"{folder}: no readable hazard model ({reason}); run `dvc repro train`"
            ) from error


@dataclass(frozen=True)
class Training:
    """What the ``train`` stage makes.

    Attributes
    ----------
    split
        A ``split`` table.
    metrics
        Of the test prompts, over ``pre_onset`` and over ``all`` tokens, and the facts of the training.
    test, test_hazard
        The rows of the test prompts and their hazards, for figures. [N]
    """

    model: HazardModel
    split: pd.DataFrame
    metrics: dict[str, Any]
    test: Rows
    test_hazard: NDArray[np.float32]


def selected_features(protocol: Literal["v1", "v2"], exclude: Sequence[str]) -> list[str]:
    """Return the protocol's features without the excluded ones.

    Raises
    ------
    KvguardError
        An excluded feature does not exist, or none is left.
    """
    columns = feature_columns(protocol)
    for name in exclude:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise KvguardError(f"train.exclude_features: {name} is no feature of protocol {protocol}{hint}")
    kept = [name for name in columns if name not in exclude]
    if not kept:
        raise KvguardError("train.exclude_features leaves no feature; exclude fewer")
    return kept


def train(
    features_path: Path,
    traces: pd.DataFrame,
    params: TrainParams,
    seed: int,
    protocol: Literal["v1", "v2"] = "v2",
) -> Training:
    """Split the prompts, train on train prompts with early stopping on tune prompts, measure on test prompts.

    Parameters
    ----------
    traces
        The judged traces: trace_id, prompt_id, catastrophes.
    """
    columns = selected_features(protocol, params.exclude_features)
    split = split_by_prompt(traces, params.split, seed)
    part = part_of_traces(traces, split)
    trace_ids = traces["trace_id"].to_numpy()
    fitting, tuning = (
        load_rows(features_path, columns, trace_ids[part == name]) for name in ("train", "tune")
    )
    booster = fit(fitting, tuning, params, seed, columns)
    n_fitted = len(fitting.label)
    del fitting
    untuned = HazardModel(booster, tuple(columns), float("inf"))
    tune_hazard = untuned.predict(tuning.features)
    threshold = best_f1_threshold(tune_hazard[tuning.pre_onset], tuning.label[tuning.pre_onset])
    del tuning
    model = HazardModel(booster, tuple(columns), threshold)
    test = load_rows(features_path, columns, trace_ids[part == "test"])
    hazard = model.predict(test.features)
    metrics = {
        **hazard_metrics(hazard, test.label, test.pre_onset, threshold),
        "threshold": threshold,
        "n_trees": booster.num_boosted_rounds(),
        "n_features": len(columns),
        "n_train_tokens": n_fitted,
        "n_prompts": split["part"].value_counts().to_dict(),
    }
    return Training(model, split, metrics, test, hazard)


def fit(fitting: Rows, tuning: Rows, params: TrainParams, seed: int, columns: Sequence[str]) -> xgb.Booster:
    """Return a booster trained on ``fitting`` and cut to its best number of trees on ``tuning``.

    All tokens take part; those at and after an onset are positives, so that a live guard still sees a
    high hazard in a catastrophe that it missed.

    Raises
    ------
    KvguardError
        The train or the tune prompts have tokens of one class only.
    """
    targets = [all_token_target(rows.label, rows.pre_onset) for rows in (fitting, tuning)]
    for name, target in zip(("train", "tune"), targets, strict=True):
        if target.all() or not target.any():
            raise KvguardError(
                f"train: the labels of the {name} prompts are all {bool(target.any())}; "
                "raise sample.n or use a preset whose ratios make the model fail"
            )
    settings = params.xgboost.model_dump()
    rounds, patience = settings.pop("n_estimators"), settings.pop("early_stopping_rounds")
    shape = {"max_bin": settings["max_bin"], "feature_names": list(columns), "nthread": _N_JOBS}
    learned = xgb.QuantileDMatrix(fitting.features, targets[0], **shape)
    watched = xgb.QuantileDMatrix(tuning.features, targets[1], ref=learned, **shape)
    return xgb.train(
        {
            **settings,
            "objective": "binary:logistic",
            "eval_metric": "logloss",
            "tree_method": "hist",
            "seed": seed,
            "nthread": _N_JOBS,
        },
        learned,
        num_boost_round=rounds,
        evals=[(watched, "tune")],
        callbacks=[xgb.callback.EarlyStopping(rounds=patience, save_best=True)],
        verbose_eval=False,
    )
