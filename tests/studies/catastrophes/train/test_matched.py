"""What a clock cannot pass: by hand, by brute force, and by planted clocks and signals."""

from math import erf

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.stats.bootstrap import interval, resample_weights
from kvguard.studies.catastrophes.score.hazards import rows_of
from kvguard.studies.catastrophes.train.matched import by_position_only, matched_auroc, pre_onset_of
from kvguard.studies.catastrophes.train.metrics import Measured, ranking_metrics

HORIZON = 16
tokens = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=60
)


def pairwise(weights, cluster, t, scores, target, by_positives=False):
    """The definition: in each resample every token as often as its prompt is drawn, every pair compared."""
    found = []
    for drawn in weights:
        of_indices, positives = [], []
        again = np.repeat(np.arange(len(t)), drawn[cluster].astype(int))
        for index in np.unique(t[again]):
            here = again[t[again] == index]
            high, low = scores[here[target[here]]], scores[here[~target[here]]]
            if len(high) and len(low):
                won = (high[:, None] > low) + 0.5 * (high[:, None] == low)
                of_indices.append(won.mean())
                positives.append(len(high) if by_positives else 1)
        found.append(np.average(of_indices, weights=positives) if of_indices else np.nan)
    return np.array(found)


@settings(max_examples=50)
@given(tokens, st.integers(0, 100))
def test_every_resample_is_what_comparing_all_pairs_says(rows, seed):
    cluster, t, level, target = np.array(rows, dtype=int).reshape(-1, 4).T
    given_ = cluster, t, level.astype(np.float32) / 8, target.astype(bool)
    weights = resample_weights(5, 8, seed)
    for by_positives in (False, True):
        expected = pairwise(weights, *given_, by_positives)
        np.testing.assert_allclose(matched_auroc(weights, *given_, by_positives), expected, atol=1e-12)


def test_by_hand():
    t = np.array([0, 0, 0, 3, 3, 3, 3, 7, 9])
    scores = np.array([0.2, 0.1, 0.4, 0.5, 0.5, 0.5, 0.9, 0.9, 0.1], dtype=np.float32)
    target = np.array([1, 0, 0, 1, 0, 1, 0, 1, 0], dtype=bool)
    prompt = np.array([0, 0, 1, 0, 0, 1, 1, 0, 1])
    # Index 0: above one of two. Index 3: each ties with one of two. Indices 7 and 9 have one class.
    assert matched_auroc(np.ones((1, 2)), prompt, t, scores, target).tolist() == [(1 / 2 + 1 / 4) / 2]
    # Prompt 0 alone: above its only negative at 0, tied with it at 3. Prompt 1 alone: only index 3 is left.
    assert matched_auroc(np.array([[2.0, 0], [0, 2]]), prompt, t, scores, target).tolist() == [3 / 4, 0]
    # Prompt 0 twice: at 0 three negatives, two of them below; at 3 two of three tie, the last is above.
    assert matched_auroc(np.array([[2.0, 1]]), prompt, t, scores, target) == [(2 / 3 + 1 / 3) / 2]


def test_an_index_counts_once_however_many_tokens_it_has_or_as_often_as_it_has_positives():
    t = np.repeat([0, 1], [2, 200])
    target = np.arange(202) % 2 == 0
    scores = np.where(t == 0, target, ~target).astype(np.float32)  # right at 0, wrong at 1
    tokens = np.zeros(202, dtype=int), t, scores, target
    assert matched_auroc(np.ones((1, 1)), *tokens) == [0.5]
    assert matched_auroc(np.ones((1, 1)), *tokens, by_positives=True) == [1 / 101]


@pytest.mark.parametrize("target", [[True, False], [True, True], []], ids=["apart", "one class", "nothing"])
def test_without_an_index_of_both_classes_it_is_undefined(target):
    target = np.array(target, dtype=bool)
    t = np.arange(len(target))
    found = matched_auroc(np.ones((3, 1)), np.zeros(len(t), dtype=int), t, t.astype(float), target)
    assert np.isnan(found).all()


def test_one_prompt_has_the_same_value_in_every_resample():
    rng = np.random.default_rng(0)
    t, target, scores = rng.integers(0, 5, 99), rng.random(99) < 0.3, rng.random(99)
    found = matched_auroc(resample_weights(1, 5, 0), np.zeros(99, dtype=int), t, scores, target)
    np.testing.assert_array_equal(found, found[0])


def test_neither_the_order_of_tokens_nor_a_rising_function_of_scores_matters():
    rng = np.random.default_rng(1)
    weights, cluster, t = resample_weights(7, 20, 0), rng.integers(0, 7, 500), rng.integers(0, 9, 500)
    scores, target = rng.integers(0, 20, 500) / 20, rng.random(500) < 0.3
    found = matched_auroc(weights, cluster, t, scores, target)
    mixed = rng.permutation(500)
    again = matched_auroc(weights, cluster[mixed], t[mixed], np.exp(scores)[mixed], target[mixed])
    np.testing.assert_allclose(again, found, rtol=1e-12)
    at_places = matched_auroc(weights, cluster, t, scores + 100 * t, target)  # a clock added to each score
    np.testing.assert_allclose(at_places, found, rtol=1e-12)


def planted(seed, signal, n_prompts=40, per_prompt=15, budget=96):
    """Tokens before onsets: half of the traces fail, at a proxy time give or take some tokens.

    Scores rise with time, with noise of their own for each trace and token; ``signal`` is added before an
    onset.
    """
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(n_prompts), per_prompt)
    fails = rng.random(len(prompt)) < 0.5
    length = np.where(fails, 64 + rng.integers(0, 16, len(prompt)), rng.integers(20, budget, len(prompt)))
    trace = np.repeat(np.arange(len(prompt)), length)
    t = np.concatenate([np.arange(n) for n in length])
    target = fails[trace] & (length[trace] - t <= HORIZON)
    noise = rng.normal(size=len(prompt))[trace] + rng.normal(size=len(t))
    return prompt[trace], t, (t / 6 + noise + signal * target).astype(np.float32), target


def test_a_planted_clock_ranks_well_and_like_a_coin_at_matched_positions():
    covered = []
    for seed in range(40):
        cluster, t, scores, target = planted(seed, signal=0)
        weights = resample_weights(40, 200, seed)
        assert ranking_metrics(weights, cluster, scores, target)["auroc"][0] > 0.85
        found = interval(matched_auroc(weights, cluster, t, scores, target))
        assert found.low < found.value < found.high
        assert abs(found.value - 0.5) < 0.12
        covered.append(found.low <= 0.5 <= found.high)
    assert np.mean(covered) >= 0.85  # of intervals at 95 %


def test_a_planted_signal_is_found_whatever_the_clock_says():
    cluster, t, scores, target = planted(0, signal=2.0)
    weights = resample_weights(40, 200, 0)
    found = matched_auroc(weights, cluster, t, scores, target)
    np.testing.assert_allclose(found[:9], pairwise(weights[:9], cluster, t, scores, target), atol=1e-12)
    truth = (1 + erf(2.0 / 2 / np.sqrt(2))) / 2  # noise of variance 2 on either side: P(N(2, 4) > 0)
    limits = interval(found)
    assert limits.low <= truth <= limits.high
    assert limits.low > 0.75


def test_position_only_is_a_coin_at_matched_positions_and_no_function_of_it_beats_the_best_clock():
    cluster, t, _, target = planted(3, signal=0)
    found = by_position_only(resample_weights(40, 20, 0), cluster, t, target)
    np.testing.assert_array_equal(found["matched_auroc_position_only"], 0.5)
    plain = ranking_metrics(np.ones((1, 40)), cluster, t.astype(float), target)["auroc"]
    assert found["auroc_position_only"][0] == plain > 0.8
    rng = np.random.default_rng(0)
    others = [rng.random(200), -np.arange(200), np.abs(np.arange(200) - 70), np.arange(200)]
    for clock in others:
        other = ranking_metrics(np.ones((1, 40)), cluster, clock[t].astype(float), target)["auroc"][0]
        assert found["auroc_best_clock"][0] >= other - 1e-12


@pytest.fixture
def tested():
    """A loop, a run-on, a healthy trace and one whose kind nobody knows; not in the order of their ids."""
    traces = pd.DataFrame(
        {
            "trace_id": np.array([9, 6, 7, 8], dtype=np.int32),
            "prompt_id": ["b", "a", "b", "c"],
            "onset": pd.array([4, 5, None, 3], dtype="Int32"),
        }
    )
    t, trace_id = np.tile(np.arange(6, dtype=np.int32), 4), np.repeat(np.array([6, 7, 8, 9], np.int32), 6)
    rows = rows_of(pd.DataFrame({"trace_id": trace_id, "t": t}), traces, 2)
    return Measured.of(traces, rows), np.array(["looping", "non_termination", None, "other"], dtype=object)


def test_a_kind_has_its_own_positives_and_all_negatives(tested):
    sample, kinds = tested
    loops = pre_onset_of(sample, kinds, "looping").reshape(4, 6).astype(int)  # traces 6, 7, 8, 9
    assert loops.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    run_ons = pre_onset_of(sample, kinds, "non_termination").reshape(4, 6).astype(int)
    assert run_ons.tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6, [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    none = pre_onset_of(sample, kinds, "nothing of the sort")
    assert not (none & sample.rows.label).any()


def test_the_auroc_of_all_is_the_mean_of_the_kinds_weighted_by_positives(tested):
    sample, kinds = tested
    scores = np.random.default_rng(2).random(24)

    def plain(chosen):
        label = sample.rows.label[chosen]
        found = ranking_metrics(np.ones((1, 3)), sample.token_prompt[chosen], scores[chosen], label)
        return found["auroc"][0], label.sum()

    whole, n = plain(sample.rows.pre_onset)
    parts = [plain(pre_onset_of(sample, kinds, kind)) for kind in ("looping", "non_termination", "other")]
    assert sum(value * positives for value, positives in parts) / n == pytest.approx(whole)
