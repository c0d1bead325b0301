"""The hazard model: gradient-boosted trees over token features, and a calibrated probability from them."""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import pandas as pd
import psutil
import xgboost as xgb
from numpy.typing import NDArray
from tqdm import tqdm

from kvguard.engine.presses import NONE
from kvguard.errors import KvguardError
from kvguard.guard.calibration import fit_calibration
from kvguard.guard.hazard_model import N_JOBS, HazardModel, margin_of
from kvguard.store.results import Results
from kvguard.store.schemas import PARTS, TABLES, conform
from kvguard.studies.catastrophes.params import TrainParams
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS, Protocol
from kvguard.studies.catastrophes.train.hazards import of_horizon, without
from kvguard.studies.catastrophes.train.labels import Bools, all_token_target
from kvguard.studies.catastrophes.train.metrics import best_f1_threshold
from kvguard.studies.catastrophes.train.rows import Rows, StoredRows, load_rows, rows_to_fit
from kvguard.studies.catastrophes.train.splits import make_split, part_of_traces

_log = logging.getLogger(__name__)

N_EXPLAINED = 4000  # test tokens whose SHAP values are averaged
_BINS_SHARE = 0.25  # of the free memory: the most that the quantised features of a fit take


@dataclass(frozen=True)
class Training:
    """What the ``train`` stage makes.

    Attributes
    ----------
    split
        A ``split`` or ``split_v1`` table.
    facts
        Tables model, the facts of it, and importance.
    repeats
        The further fits of the model, each with a seed of its own; of the headline protocol only.
    test
        The rows of the test traces.
    hazards
        What the model, and those that it is compared with, forecast for them; see
        :mod:`kvguard.studies.catastrophes.train.hazards`.
    """

    model: HazardModel
    repeats: list[HazardModel]
    split: pd.DataFrame
    facts: Results
    test: Rows
    hazards: dict[str, pd.DataFrame]


def selected_features(protocol: Protocol, exclude: Sequence[str]) -> list[str]:
    """Return the protocol's features without the excluded ones.

    Raises
    ------
    KvguardError
        An excluded feature does not exist, or none is left.
    """
    columns = protocol.features
    for name in exclude:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise KvguardError(
                f"train.exclude_features: {name} is no feature of protocol {protocol.name}{hint}"
            )
    kept = [name for name in columns if name not in exclude]
    if not kept:
        raise KvguardError("train.exclude_features leaves no feature; exclude fewer")
    return kept


def train(
    features_path: Path,
    traces: pd.DataFrame,
    params: TrainParams,
    seed: int,
    protocol: str = HEADLINE,
    *,
    model: str = "",
) -> Training:
    """Split, train on the train part, choose on the protocol's tune part, forecast the test part.

    Parameters
    ----------
    traces
        The judged traces: trace_id, prompt_id, compressor, catastrophes, and the protocol's onset.
    model
        The language model's name, for the results.
    """
    rules, horizon = PROTOCOLS[protocol], params.horizon
    columns = selected_features(rules, params.exclude_features)
    traces = rules.select(traces)
    split = make_split(traces, rules, params.split, seed)
    part = part_of_traces(traces, split)
    parts = load_parts(features_path, traces, part, columns, params, rules.tune_part)
    horizons = sorted({*params.horizons} - {horizon})
    folds = [name for name in traces["compressor"][part == "test"].unique() if name != NONE]
    hazard_model, *repeats = (
        fit_hazard(parts.fitting, parts.tuning, params, seed + number)
        for number in range(params.fits if protocol == HEADLINE else 1)
    )
    hazards = {of_horizon(horizon): _forecast(hazard_model, parts.test)}

    def forecast(name: str, parts: Parts) -> None:
        """Store what a model fitted and chosen on these ``parts`` forecasts."""
        try:
            fitted = fit_hazard(parts.fitting, parts.tuning, params, seed)
        except KvguardError as error:  # the other compressors never fail, say
            _log.warning("%s: undefined: %s", name, error)
            hazards[name] = conform("hazards", pd.DataFrame(columns=list(TABLES["hazards"].columns)))
            return
        hazards[name] = _forecast(fitted, parts.test)

    with tqdm(total=len(horizons) + len(folds), desc=f"hazard {model} {protocol}", unit="fit") as bar:
        for this in horizons:
            forecast(of_horizon(this), parts.labelled(this))
            bar.update()
        for name in folds:
            ids = traces["trace_id"][traces["compressor"] == name].to_numpy()
            forecast(without(name), parts.leaving_out(ids))
            bar.update()
    facts = Results("train", model, protocol)
    facts.add("model", "hazard", _facts(hazard_model, traces, part, parts))
    for feature, shares in importance(hazard_model, parts.test.features).items():
        facts.add("importance", feature, shares)
    return Training(hazard_model, repeats, split, facts, parts.test, hazards)


def _forecast(model: HazardModel, rows: Rows) -> pd.DataFrame:
    """Return the ``hazards`` table of some tokens."""
    hazard = model.predict(rows.features)
    return conform("hazards", pd.DataFrame({"trace_id": rows.trace_id, "t": rows.t, "hazard": hazard}))


@dataclass(frozen=True)
class Parts:
    """The tokens that a model is fitted on, those it is chosen on, and those it is measured on."""

    fitting: Rows
    tuning: Rows
    test: Rows

    def only(self, columns: Sequence[str]) -> "Parts":
        """Return them with the features ``columns``."""
        return Parts(self.fitting.only(columns), self.tuning.only(columns), self.test.only(columns))

    def labelled(self, horizon: int) -> "Parts":
        """Return them with the labels of another H."""
        return Parts(*(rows.labelled(horizon) for rows in (self.fitting, self.tuning, self.test)))

    def leaving_out(self, trace_ids: NDArray[np.integer]) -> "Parts":
        """Return the fold that is fitted and chosen without ``trace_ids``, and measured on them alone.

        Prompts stay in their parts, so the fold is as free of leaks as the whole.
        """
        return Parts(
            self.fitting.where(~np.isin(self.fitting.trace_id, trace_ids)),
            self.tuning.where(~np.isin(self.tuning.trace_id, trace_ids)),
            self.test.where(np.isin(self.test.trace_id, trace_ids)),
        )


def load_parts(
    features_path: Path,
    traces: pd.DataFrame,
    part: NDArray[np.object_],
    columns: Sequence[str],
    params: TrainParams,
    tune_part: str = "tune",
) -> Parts:
    """Load the labelled tokens of each part; ``max_tokens`` bounds what is fitted and chosen on.

    Without a bound these stay in their table, and a fit reads them row group by row group.

    Parameters
    ----------
    traces
        trace_id and onset.
    part
        Of each trace. [T]
    """
    parts = Parts(
        rows_to_fit(features_path, columns, traces[part == "train"], params.max_tokens),
        rows_to_fit(features_path, columns, traces[part == tune_part], params.max_tokens),
        load_rows(features_path, columns, traces[part == "test"]),
    )
    return parts.labelled(params.horizon)


def fit_hazard(fitting: Rows, tuning: Rows, params: TrainParams, seed: int) -> HazardModel:
    """Fit a booster on ``fitting``; choose its size, calibration and threshold on ``tuning``.

    All tokens train the trees; those at and after an onset are positives, so that a live guard still sees
    a high hazard in a catastrophe that it missed.

    Raises
    ------
    KvguardError
        Tokens of one class only.
    """
    targets = [all_token_target(rows.label, rows.pre_onset) for rows in (fitting, tuning)]
    early = tuning.pre_onset
    for name, target in (("train", targets[0]), ("tune", targets[1]), ("tune", tuning.label[early])):
        if _one_class(target):
            raise KvguardError(
                f"train: the labels of the {name} part are all {bool(target.any())}; "
                "raise sample.n or use a preset whose ratios make the model fail"
            )
    booster = _boost(fitting, tuning, targets, params, seed)
    margin = np.concatenate([margin_of(booster, block) for block in tuning.blocks()])[early]
    calibrated = fit_calibration(params.calibration, margin, tuning.label[early])
    threshold = best_f1_threshold(calibrated(margin), tuning.label[early])
    return HazardModel(booster, fitting.columns, calibrated, threshold)


def _one_class(target: Bools) -> bool:
    return bool(target.all() or not target.any())


def _boost(
    fitting: Rows, tuning: Rows, targets: Sequence[Bools], params: TrainParams, seed: int
) -> xgb.Booster:
    """Return a booster trained on ``fitting`` and cut to its best number of trees on ``tuning``."""
    settings = params.xgboost.model_dump()
    rounds, patience = settings.pop("n_estimators"), settings.pop("early_stopping_rounds")
    weight = params.positive_weight
    if weight == "balanced":
        weight = float((~targets[0]).sum() / targets[0].sum())
    with TemporaryDirectory() as folder:
        learned = _matrix(fitting, targets[0], Path(folder) / "train", settings["max_bin"])
        watched = _matrix(tuning, targets[1], Path(folder) / "tune", settings["max_bin"], learned)
        booster = xgb.train(
            {
                **settings,
                "objective": "binary:logistic",
                "eval_metric": "logloss",
                "scale_pos_weight": weight,
                "tree_method": "hist",
                "seed": seed,
                "nthread": N_JOBS,
            },
            learned,
            num_boost_round=rounds,
            evals=[(watched, "tune")],
            callbacks=[xgb.callback.EarlyStopping(rounds=patience, save_best=True)],
            verbose_eval=False,
        )
        del learned, watched  # before the folder of their pages
    return booster


class _Blocks(xgb.DataIter):
    """Hands rows to a matrix block by block; one on disk keeps its pages in files named after ``cache``."""

    def __init__(self, rows: Rows, target: Bools, cache: Path | None) -> None:
        self.rows, self.target = rows, target
        self.reset()
        super().__init__(cache_prefix=None if cache is None else str(cache))

    def reset(self) -> None:
        """Begin again."""
        self.blocks, self.begin = self.rows.blocks(), 0

    def next(self, input_data: Callable[..., None]) -> bool:
        """Hand over the next block; tell whether there was one."""
        block = next(self.blocks, None)
        if block is None:
            return False
        here = slice(self.begin, self.begin + len(block))
        self.begin = here.stop
        input_data(data=block, label=self.target[here], feature_names=list(self.rows.columns))
        return True


def _matrix(
    rows: Rows, target: Bools, cache: Path, max_bin: int, like: xgb.DMatrix | None = None
) -> xgb.DMatrix:
    """Return rows with quantised features: in memory, a byte for each, or on disk if that is too much.

    Parameters
    ----------
    cache
        How the names of files begin.
    like
        The matrix that gives the bins.
    """
    shape = {"max_bin": max_bin, "ref": like, "nthread": N_JOBS}
    n_bytes = len(target) * len(rows.columns)
    if isinstance(rows, StoredRows) and n_bytes > _BINS_SHARE * psutil.virtual_memory().available:
        return xgb.ExtMemQuantileDMatrix(_Blocks(rows, target, cache), **shape)
    return xgb.QuantileDMatrix(_Blocks(rows, target, None), **shape)


def _facts(
    model: HazardModel, traces: pd.DataFrame, part: NDArray[np.object_], parts: Parts
) -> dict[str, float]:
    """Return what was trained on what."""
    return {
        "threshold": model.threshold,
        "n_trees": model.booster.num_boosted_rounds(),
        "n_features": len(model.features),
        "n_train_tokens": len(parts.fitting.label),
        **{f"n_{name}_prompts": traces["prompt_id"][part == name].nunique() for name in PARTS},
    }


def importance(model: HazardModel, rows: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Return each feature's gain and mean absolute SHAP value.

    The gain is the mean fall of the training loss per split on the feature, 0 for one that no split uses.
    SHAP values (Lundberg et al. 2020, exact for trees) are in log-odds, over ``N_EXPLAINED`` tokens spaced
    evenly over ``rows``.

    Parameters
    ----------
    rows
        [N, F]
    """
    spaced = rows[np.unique(np.linspace(0, len(rows) - 1, N_EXPLAINED).astype(np.int64))]
    matrix = xgb.DMatrix(spaced, feature_names=list(model.features), nthread=N_JOBS)
    contributions = model.booster.predict(matrix, pred_contribs=True)[:, :-1]  # the last is the bias
    gain = cast(dict[str, float], model.booster.get_score(importance_type="gain"))
    return {
        name: {"gain": gain.get(name, 0.0), "mean_abs_shap": float(shap)}
        for name, shap in zip(model.features, np.abs(contributions).mean(axis=0), strict=True)
    }
