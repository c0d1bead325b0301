"""Hazard metrics against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from kvguard.hazard.metrics import Curve, best_f1_threshold, hazard_metrics, ranking_metrics

scored = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@given(scored, st.integers(0, 7))
def test_metrics_agree_with_scikit_learn_ties_included(pairs, level):
    scores, target = np.array([s for s, _ in pairs]) / 8, np.array([y for _, y in pairs])
    threshold = level / 8
    found = ranking_metrics(scores, target, threshold)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(target, scores))
    assert found["auprc"] == pytest.approx(reference.average_precision_score(target, scores))
    flagged = scores >= threshold
    assert found["f1"] == pytest.approx(reference.f1_score(target, flagged, zero_division=0))
    assert found["recall"] == pytest.approx(reference.recall_score(target, flagged))
    fpr, recall, _ = reference.roc_curve(target, scores, drop_intermediate=False)
    assert found["recall_at_5pct_fpr"] == pytest.approx(recall[fpr <= 0.05].max())
    best = best_f1_threshold(scores, target)
    f1 = [reference.f1_score(target, scores >= tau, zero_division=0) for tau in np.unique(scores)]
    assert reference.f1_score(target, scores >= best) == pytest.approx(max(f1))


def test_one_class_leaves_metrics_undefined():
    found = ranking_metrics(np.array([0.1, 0.9]), np.array([False, False]), 0.5)
    assert found["auroc"] is None
    assert (found["n_tokens"], found["n_positive"]) == (2, 0)
    assert best_f1_threshold(np.array([0.5]), np.array([False])) == float("inf")
    assert ranking_metrics(np.zeros(0), np.zeros(0, dtype=bool), 0.5)["auroc"] is None


def test_pre_onset_metrics_leave_out_what_has_begun():
    scores = np.array([0.2, 0.8, 0.9, 0.1])
    label = np.array([False, True, False, False])
    pre_onset = np.array([True, True, False, True])
    found = hazard_metrics(scores, label, pre_onset, 0.5)
    assert (found["pre_onset"]["n_tokens"], found["pre_onset"]["n_positive"]) == (3, 1)
    assert (found["all"]["n_tokens"], found["all"]["n_positive"]) == (4, 2)
    assert found["pre_onset"]["auroc"] == found["all"]["auroc"] == 1.0


def test_an_infinite_threshold_flags_nothing():
    found = ranking_metrics(np.array([0.1, 0.9]), np.array([False, True]), float("inf"))
    assert (found["f1"], found["recall"], found["precision"]) == (0.0, 0.0, 1.0)
    assert Curve.of(np.array([0.1, 0.9]), np.array([False, True])).threshold[0] == np.inf
