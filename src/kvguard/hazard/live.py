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

    All trees and rows descend together, a level at a time, through trees filled up to one depth. Between two
    steps the language model empties the CPU's caches, and this layout is less to fetch again than XGBoost's:
    with cold caches 64 rows through 300 trees of depth 6 take 0.5 ms here, 1.1 ms in ``inplace_predict`` on
    one core, and 16 ms there where a second thread has to be woken on a busy core (``benchmarks/guard.py``).
    A tree takes 16 bytes x 2^depth, so this is not for deep trees.
    """

    def __init__(self, model: HazardModel) -> None:
        learner = json.loads(model.booster.save_raw("json"))["learner"]
        trees = learner["gradient_booster"]["model"]["trees"]
        depth = max((_depth(tree, 0) for tree in trees), default=0)
        n_trees = 1 + len(trees)  # the first is a single leaf, the margin before all trees
        self._features = [np.zeros((n_trees, 1 << level), dtype=np.intp) for level in range(depth)]
        self._thresholds = [np.zeros((n_trees, 1 << level), dtype=np.float32) for level in range(depth)]
        self._leaves = np.zeros((n_trees, 1 << depth), dtype=np.float32)
        self._leaves[0] = _log_odds(learner["learner_model_param"]["base_score"])
        for number, tree in enumerate(trees, start=1):
            self._fill(number, tree)
        self._roots = np.arange(n_trees)[:, None]  # [T, 1]
        self._calibration = model.calibration

    def _fill(self, number: int, tree: dict[str, Any], node: int = 0, level: int = 0, place: int = 0) -> None:
        """Enter ``node`` and all below it; a leaf above the last level fills all places under it."""
        if tree["left_children"][node] == _NO_CHILD:
            width = self._leaves.shape[1] >> level
            self._leaves[number, place * width : (place + 1) * width] = tree["split_conditions"][node]
            return
        self._features[level][number, place] = tree["split_indices"][node]
        self._thresholds[level][number, place] = tree["split_conditions"][node]
        self._fill(number, tree, tree["left_children"][node], level + 1, 2 * place)
        self._fill(number, tree, tree["right_children"][node], level + 1, 2 * place + 1)

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
        for features, thresholds in zip(self._features, self._thresholds, strict=True):
            right = values.take(features.take(node) + starts) >= thresholds.take(node)
            node = 2 * node + right
        margin = np.empty(len(rows), dtype=np.float32)
        margin[:] = np.add.accumulate(self._leaves.take(node), axis=0)[-1]  # tree by tree, as XGBoost adds
        return self._calibration(margin)


def _depth(tree: dict[str, Any], node: int) -> int:
    left, right = tree["left_children"][node], tree["right_children"][node]
    return 0 if left == _NO_CHILD else 1 + max(_depth(tree, left), _depth(tree, right))


def _log_odds(base_score: str) -> np.float32:
    """Return the margin of no trees, rounded as XGBoost rounds it."""
    probability = np.float32(base_score.strip("[]"))
    return np.float32(-math.log(np.float32(1) / probability - np.float32(1)))
