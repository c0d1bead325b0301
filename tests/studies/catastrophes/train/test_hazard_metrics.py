"""Hazard metrics against scikit-learn, resample by resample, and by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from kvguard.stats.bootstrap import resample_weights
from kvguard.studies.catastrophes.train.metrics import (
    Curve,
    Measured,
    all_token_metrics,
    auprc,
    auroc,
    best_f1_threshold,
    lead_times,
    pre_onset_metrics,
    ranking_metrics,
    recall_at_max_fpr,
    reliability,
    token_metrics,
)
from kvguard.studies.catastrophes.train.rows import Rows, onset_of

scored = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 4)), min_size=2, max_size=60)


def columns(triples):
    scores = np.array([score for score, _, _ in triples], dtype=np.float32) / 8
    return (
        scores,
        np.array([label for _, label, _ in triples]),
        np.array([prompt for _, _, prompt in triples]),
    )


def expected(scores, target, threshold):
    """The metrics as scikit-learn has them."""
    fpr, recall, _ = reference.roc_curve(target, scores, drop_intermediate=False)
    return {
        "auroc": reference.roc_auc_score(target, scores),
        "auprc": reference.average_precision_score(target, scores),
        "recall_at_5pct_fpr": recall[fpr <= 0.05].max(),
        "f1": reference.f1_score(target, scores >= threshold, zero_division=0),
        "brier": reference.brier_score_loss(target, scores),
    }


@settings(max_examples=25, deadline=None)
@given(scored, st.integers(0, 7), st.integers(0, 100))
def test_every_resample_agrees_with_scikit_learn_on_the_tokens_it_draws(triples, level, seed):
    scores, target, prompt = columns(triples)
    weights = resample_weights(5, 8, seed)
    found = token_metrics(weights, prompt, scores, target, level / 8)
    for resample, drawn in enumerate(weights):
        tokens = np.repeat(np.arange(len(scores)), drawn[prompt].astype(int))
        if 0 < target[tokens].sum() < len(tokens):
            for name, value in expected(scores[tokens], target[tokens], level / 8).items():
                assert found[name][resample] == pytest.approx(value, abs=1e-7), name
        else:
            assert np.isnan(
                [found[name][resample] for name in ("auroc", "auprc", "recall_at_5pct_fpr")]
            ).all()


@given(scored)
def test_the_best_threshold_has_the_highest_f1(triples):
    scores, target, _ = columns(triples)
    best = best_f1_threshold(scores, target)
    if not target.any():
        assert best == np.inf
        return
    f1 = [reference.f1_score(target, scores >= tau, zero_division=0) for tau in np.unique(scores)]
    assert reference.f1_score(target, scores >= best) == pytest.approx(max(f1))


def test_one_class_leaves_rates_undefined_and_never_zero():
    for target in (np.zeros(2, dtype=bool), np.ones(2, dtype=bool)):
        found = ranking_metrics(np.ones((1, 1)), np.zeros(2, dtype=int), np.array([0.1, 0.9]), target)
        assert all(np.isnan(values).all() for values in found.values())
    nothing = token_metrics(
        np.ones((1, 1)), np.zeros(0, dtype=int), np.zeros(0), np.zeros(0, dtype=bool), 0.5
    )
    assert all(np.isnan(values).all() for values in nothing.values())


@pytest.mark.parametrize("separation", [0.5, 2.0])
def test_grouping_many_distinct_scores_moves_the_metrics_by_less_than_a_thousandth(separation):
    rng = np.random.default_rng(3)
    target = rng.random(100_000) < 0.03
    scores = (rng.normal(size=100_000) + separation * target).astype(np.float32)
    prompt = rng.integers(0, 20, 100_000)
    assert len(np.unique(scores)) > 10_000
    weights = resample_weights(20, 3, 0)
    exact = Curve.resampled(weights, prompt, scores, target, max_levels=None)
    grouped = Curve.resampled(weights, prompt, scores, target)
    assert len(grouped.threshold) <= 2049
    for metric in (auroc, auprc, recall_at_max_fpr):
        assert np.abs(metric(exact) - metric(grouped)).max() < 1e-3, metric


def test_the_curve_of_the_sample_flags_nothing_first_and_everything_last():
    curve = Curve.of(np.array([0.1, 0.9, 0.9]), np.array([False, True, False]))
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.1]
    assert curve.recall.tolist() == [0, 1, 1]
    assert curve.fpr.tolist() == [0, 0.5, 1]
    assert curve.precision.tolist() == [1, 0.5, 1 / 3]
    assert auroc(curve) == 0.75


@pytest.fixture
def tested():
    """Three prompts: one trace caught 3 tokens ahead, one missed, one healthy, one flagged too late."""
    traces = pd.DataFrame(
        {
            "trace_id": np.array([5, 6, 7, 8], dtype=np.int32),
            "prompt_id": ["b", "a", "b", "c"],
            "onset": pd.array([4, 4, None, 1], dtype="Int32"),
        }
    )
    t = np.tile(np.arange(6, dtype=np.int32), 4)
    trace_id = np.repeat(traces["trace_id"].to_numpy(), 6)
    onset = onset_of(traces, trace_id)
    rows = Rows(np.zeros((24, 1), np.float32), onset, trace_id, t, horizon=2)
    hazard = np.zeros((4, 6), dtype=np.float32)
    hazard[0, 1] = hazard[0, 3] = 0.8  # t = 1 and 3, onset 4: first flagged 3 tokens ahead
    hazard[2, 5] = 0.8  # a false alarm
    hazard[3, 1] = 0.8  # at its onset: too late
    return Measured.of(traces, rows), hazard.ravel()


def test_lead_time_is_onset_minus_the_first_flagged_token_before_it(tested):
    sample, hazard = tested
    np.testing.assert_array_equal(lead_times(sample, hazard, 0.5), [3, np.nan, np.nan, np.nan])
    found = pre_onset_metrics(np.ones((1, 3)), sample, hazard, 0.5)
    assert found["trace_detection_rate"].tolist() == [1 / 3]
    assert found["lead_time_median"].tolist() == [3]
    nothing = pre_onset_metrics(np.ones((1, 3)), sample, hazard, 0.9)
    assert nothing["trace_detection_rate"].tolist() == [0]
    assert np.isnan(nothing["lead_time_median"]).all()


def test_resamples_without_a_catastrophe_have_no_detection_rate(tested):
    sample, hazard = tested
    weights = np.array([[1.0, 1, 1], [0, 3, 0], [3, 0, 0]])  # prompts a, b, c
    found = pre_onset_metrics(weights, sample, hazard, 0.5)["trace_detection_rate"]
    assert found.tolist() == [1 / 3, 1, 0]
    healthy = pd.DataFrame({"trace_id": [7], "prompt_id": ["b"], "onset": pd.array([None], "Int32")})
    alone = Measured.of(healthy, sample.rows.where(sample.rows.trace_id == 7))
    rate = pre_onset_metrics(np.ones((1, 1)), alone, hazard[12:18], 0.5)["trace_detection_rate"]
    assert np.isnan(rate).all()


def test_pre_onset_metrics_leave_out_what_has_begun(tested):
    sample, hazard = tested
    early = pre_onset_metrics(np.ones((1, 3)), sample, hazard, 0.5)
    # Before onsets: 15 tokens, positives t = 2, 3 twice and t = 0 once; flagged 3, of them 1 positive.
    assert early["f1"].tolist() == [2 * 1 / (3 + 5)]
    # All: 24 tokens, 2 + 2 and 2 + 2 and 1 + 5 positives; flagged 4, of them 2 positive.
    everything = all_token_metrics(np.ones((1, 3)), sample, hazard, 0.5)
    assert everything["f1"].tolist() == [2 * 2 / (4 + 14)]


def test_reliability_sets_what_was_forecast_beside_what_came_true(tested):
    sample, hazard = tested
    bins = reliability(np.ones((1, 3)), sample, hazard)
    assert [n for _, n in bins] == [12, 0, 0, 0, 0, 0, 0, 0, 3, 0]
    assert bins[0][0]["observed"].tolist() == [4 / 12]
    assert bins[8][0]["mean_hazard"] == pytest.approx([0.8])
    assert bins[8][0]["observed"] == pytest.approx([1 / 3])
    assert np.isnan(bins[1][0]["observed"]).all()
