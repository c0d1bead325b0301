"""The hazard of the few rows of one decoding step, at little cost per call."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from kvguard.engine.compiled import compiled
from kvguard.errors import KvguardError
from kvguard.guard.calibration import Calibration, as_card, from_card

Floats = NDArray[np.float32]

_NO_CHILD = -1
_NODE = np.dtype(
    [("feature", np.int32), ("threshold", np.float32), ("child", np.int32), ("leaf", np.float32)]
)


@dataclass(frozen=True)
class HazardModel:
    """A booster, the features it reads, its calibration, and the threshold of its best F1.

    Calibration and threshold come from the tune part's tokens before an onset: the hazard is the
    probability that a catastrophe begins within H tokens given that none has begun.
    """

    booster: xgb.Booster
    features: tuple[str, ...]
    calibration: Calibration
    threshold: float

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the hazard of each token.

        Parameters
        ----------
        rows
            Columns in the order of ``features``. [N, F] float32
        """
        return self.calibration(margin_of(self.booster, rows))

    def texts(self) -> dict[str, str]:
        """Return the booster and what belongs to it as JSON, by file name."""
        card = {
            "features": self.features,
            "threshold": self.threshold,
            "calibration": as_card(self.calibration),
        }
        return {
            _MODEL: self.booster.save_raw("json").decode(),
            _CARD: json.dumps(card, indent=2) + "\n",
        }

    @classmethod
    def load(cls, folder: Path) -> "HazardModel":
        """Read a saved model.

        Raises
        ------
        KvguardError
            A file is missing or unreadable.
        """
        booster = xgb.Booster({"nthread": N_JOBS})
        try:
            card = json.loads((folder / _CARD).read_text())
            booster.load_model(folder / _MODEL)
            calibrated = from_card(card["calibration"])
            return cls(booster, tuple(card["features"]), calibrated, float(card["threshold"]))
        except (OSError, ValueError, KeyError, TypeError, xgb.core.XGBoostError) as error:
            reason = str(error).splitlines()[0][:120]
            raise KvguardError(
                f"{folder}: no readable hazard model ({reason}); run `dvc repro train`"
            ) from error


class LiveHazard:
    """A hazard model that is asked once per step; its rows are finite.

    Between two steps the language model empties the CPU's caches, so what counts is how little is fetched
    again: all of a node lies in 16 bytes, its two children side by side. ``benchmarks/guard.py`` measures it
    against ``inplace_predict``.
    """

    def __init__(self, model: HazardModel) -> None:
        learner = json.loads(model.booster.save_raw("json"))["learner"]
        base = _leaf(_log_odds(learner["learner_model_param"]["base_score"]))  # a tree: the margin before all
        level = [(tree, 0) for tree in (base, *learner["gradient_booster"]["model"]["trees"])]
        self._n_trees, self._depth = len(level), 0
        nodes: list[tuple[int, float, int, float]] = []
        n_nodes = len(level)
        while level:
            below: list[tuple[dict[str, Any], int]] = []
            for tree, node in level:
                left, value = tree["left_children"][node], tree["split_conditions"][node]
                if left == _NO_CHILD:
                    nodes.append((0, np.inf, len(nodes), value))  # a leaf is its own left child
                else:
                    nodes.append((tree["split_indices"][node], value, n_nodes + len(below), 0.0))
                    below += [(tree, left), (tree, tree["right_children"][node])]
            self._depth += bool(below)
            n_nodes += len(below)
            level = below
        self._nodes = np.array(nodes, dtype=_NODE)
        self._calibration = model.calibration

    def predict(self, rows: Floats) -> Floats:
        """Return the hazard of each token.

        Parameters
        ----------
        rows
            Columns in the order of the model's features. [R, F]
        """
        margin = np.zeros(len(rows), dtype=np.float32)
        _add_leaves(self._nodes, self._n_trees, self._depth, np.ascontiguousarray(rows), margin)
        return self._calibration(margin)


@compiled()
def _add_leaves(nodes: NDArray[np.void], n_trees: int, depth: int, rows: Floats, margin: Floats) -> None:
    """Add the leaf that each row falls into, tree by tree, as XGBoost adds. [M], [R, F], [R]"""
    for tree in range(n_trees):
        for row in range(len(rows)):
            node = tree
            for _ in range(depth):  # to the deepest level: an end that varies costs more
                at = nodes[node]
                node = at.child + (rows[row, at.feature] >= at.threshold)
            margin[row] += nodes[node].leaf


def _leaf(value: np.float32) -> dict[str, Any]:
    """Return a tree of one leaf, as XGBoost writes it."""
    return {"left_children": [_NO_CHILD], "split_indices": [0], "split_conditions": [value]}


def _log_odds(base_score: str) -> np.float32:
    """Return the margin of no trees, rounded as XGBoost rounds it."""
    probability = np.float32(base_score.strip("[]"))
    return np.float32(-math.log(np.float32(1) / probability - np.float32(1)))


_BLOCK = 1 << 18  # rows scored at a time


N_JOBS = 2


_MODEL, _CARD = "booster.json", "hazard.json"


def margin_of(booster: xgb.Booster, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the booster's log-odds, block by block. [N]"""
    margin = np.empty(len(rows), dtype=np.float32)
    for begin in range(0, len(rows), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        margin[block] = booster.inplace_predict(rows[block], predict_type="margin")
    return margin
