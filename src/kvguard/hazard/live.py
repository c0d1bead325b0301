"""The hazard of the few rows of one decoding step, at little cost per call."""

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvguard.hazard.train import HazardModel

Floats = NDArray[np.float32]

_NO_CHILD = -1


class LiveHazard:
    """A hazard model that is asked once per step; its rows are finite.

    All trees and rows descend together, a level at a time. Between two steps the language model empties the
    CPU's caches, so what counts is how little is fetched again: nodes lie level by level in flat arrays, the
    two children of a node side by side. ``benchmarks/guard.py`` measures it against ``inplace_predict``.
    """

    def __init__(self, model: HazardModel) -> None:
        learner = json.loads(model.booster.save_raw("json"))["learner"]
        base = _leaf(_log_odds(learner["learner_model_param"]["base_score"]))  # a tree: the margin before all
        level = [(tree, 0) for tree in (base, *learner["gradient_booster"]["model"]["trees"])]
        self._roots = np.arange(len(level))[:, None]  # [T, 1]
        self._depth = 0
        feature: list[int] = []
        threshold: list[float] = []
        child: list[int] = []
        leaf: list[float] = []
        n_nodes = len(level)
        while level:
            below: list[tuple[dict[str, Any], int]] = []
            for tree, node in level:
                left, value = tree["left_children"][node], tree["split_conditions"][node]
                inner = left != _NO_CHILD
                feature.append(tree["split_indices"][node])
                threshold.append(value if inner else np.inf)  # a leaf is its own left child
                child.append(n_nodes + len(below) if inner else len(child))
                leaf.append(0.0 if inner else value)
                if inner:
                    below += [(tree, left), (tree, tree["right_children"][node])]
            self._depth += bool(below)
            n_nodes += len(below)
            level = below
        self._feature, self._child = np.array(feature, dtype=np.intp), np.array(child, dtype=np.intp)
        self._threshold, self._leaf = np.array(threshold, dtype=np.float32), np.array(leaf, dtype=np.float32)
        self._calibration = model.calibration

    def predict(self, rows: Floats) -> Floats:
        """Return the hazard of each token.

        Parameters
        ----------
        rows
            Columns in the order of the model's features. [R, F]
        """
        values = rows.reshape(-1)
        starts = np.arange(len(rows)) * rows.shape[1]
        node = self._roots  # [T, R] from the first level on
        for _ in range(self._depth):
            right = values.take(self._feature.take(node) + starts) >= self._threshold.take(node)
            node = self._child.take(node) + right
        margin = np.empty(len(rows), dtype=np.float32)
        margin[:] = np.add.accumulate(self._leaf.take(node), axis=0)[-1]  # tree by tree, as XGBoost adds
        return self._calibration(margin)


def _leaf(value: np.float32) -> dict[str, Any]:
    """Return a tree of one leaf, as XGBoost writes it."""
    return {"left_children": [_NO_CHILD], "split_indices": [0], "split_conditions": [value]}


def _log_odds(base_score: str) -> np.float32:
    """Return the margin of no trees, rounded as XGBoost rounds it."""
    probability = np.float32(base_score.strip("[]"))
    return np.float32(-math.log(np.float32(1) / probability - np.float32(1)))
