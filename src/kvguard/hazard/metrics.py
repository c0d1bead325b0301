"""How well hazard scores rank and flag tokens: pre-onset tokens are the headline."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvguard.hazard.labels import Bools, all_token_target

Floats = NDArray[np.float64]
Scores = NDArray[np.floating[Any]]

MAX_FPR = 0.05


@dataclass(frozen=True)
class Curve:
    """What each threshold would flag, thresholds falling; the first point flags nothing.

    Attributes
    ----------
    threshold
        Scores at or above it are flagged; the first is infinite. [K]
    true_positives, false_positives
        Flagged tokens of either class. [K]
    """

    threshold: Floats
    true_positives: Floats
    false_positives: Floats

    @classmethod
    def of(cls, scores: Scores, target: Bools) -> "Curve":
        """Sort once and count; tied scores make one point."""
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        last_of_tie = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)[: len(falling)]
        hits = np.cumsum(target[order], dtype=np.float64)[last_of_tie]
        return cls(
            np.concatenate([[np.inf], falling[last_of_tie]]),
            np.concatenate([[0.0], hits]),
            np.concatenate([[0.0], last_of_tie + 1 - hits]),
        )

    @property
    def has_both_classes(self) -> bool:
        """Whether rates are defined at all."""
        return bool(self.true_positives[-1] > 0 and self.false_positives[-1] > 0)

    @property
    def recall(self) -> Floats:
        """Share of the positives that is flagged. [K]"""
        return self.true_positives / self.true_positives[-1]

    @property
    def fpr(self) -> Floats:
        """Share of the negatives that is flagged. [K]"""
        return self.false_positives / self.false_positives[-1]

    @property
    def precision(self) -> Floats:
        """Share of the flagged that is positive; 1 where nothing is flagged. [K]"""
        flagged = self.true_positives + self.false_positives
        return np.divide(self.true_positives, flagged, out=np.ones_like(flagged), where=flagged > 0)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall. [K]"""
        flagged = self.true_positives + self.false_positives
        return 2 * self.true_positives / (flagged + self.true_positives[-1])


def best_f1_threshold(scores: Scores, target: Bools) -> float:
    """Return the threshold of the highest F1 (the highest such threshold); infinite without positives."""
    if not target.any():
        return float("inf")
    curve = Curve.of(scores, target)
    return float(curve.threshold[np.argmax(curve.f1)])


def ranking_metrics(scores: Scores, target: Bools, threshold: float) -> dict[str, float | None]:
    """Return AUROC, AUPRC (average precision), recall at 5 % FPR, and F1, precision, recall at ``threshold``.

    None where a metric is undefined: all of them when only one class is present.
    """
    counts = {"n_tokens": len(scores), "n_positive": int(target.sum())}
    curve = Curve.of(scores, target)
    if not curve.has_both_classes:
        undefined = dict.fromkeys(("auroc", "auprc", "recall_at_5pct_fpr", "f1", "precision", "recall"))
        return {**undefined, **counts}
    within = np.searchsorted(curve.fpr, MAX_FPR, side="right") - 1
    at = np.count_nonzero(curve.threshold >= threshold) - 1
    return {
        "auroc": float(np.trapezoid(curve.recall, curve.fpr)),
        "auprc": float(np.sum(np.diff(curve.recall) * curve.precision[1:])),
        "recall_at_5pct_fpr": float(curve.recall[within]),
        "f1": float(curve.f1[at]),
        "precision": float(curve.precision[at]),
        "recall": float(curve.recall[at]),
        **counts,
    }


def hazard_metrics(
    scores: Scores, label: Bools, pre_onset: Bools, threshold: float
) -> dict[str, dict[str, float | None]]:
    """Return the metrics over pre-onset tokens and, with begun catastrophes as positives, over all tokens."""
    return {
        "pre_onset": ranking_metrics(scores[pre_onset], label[pre_onset], threshold),
        "all": ranking_metrics(scores, all_token_target(label, pre_onset), threshold),
    }
