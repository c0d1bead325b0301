"""Paired effects and trends against values computed by hand, by scipy, and under the null."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvguard.stats.bootstrap import interval, resample_weights
from kvguard.stats.effects import (
    cohen_d,
    highest,
    interaction,
    mean_ranks,
    quantile_groups,
    random_effects,
    ratio,
    wilcoxon,
    win_rate,
)
from kvguard.stats.trends import trend

ONCE = np.ones((1, 4))


def test_the_sizes_of_an_effect_are_those_of_the_textbook():
    differences = np.array([1.0, 2.0, 3.0, -2.0])  # mean 1, sum of squares about it 14
    assert cohen_d(ONCE, differences)[0] == pytest.approx(1 / np.sqrt(14 / 3))
    assert win_rate(ONCE, np.array([1.0, 0.0, -1.0, 2.0]))[0] == 0.625  # two wins and a tie
    assert ratio(ONCE, differences, 2 * differences)[0] == 0.5
    assert wilcoxon(differences) == stats.wilcoxon(differences).pvalue


def test_a_resample_has_the_effect_of_the_examples_that_it_drew():
    differences = np.array([1.0, 2.0, 3.0, -2.0])
    drawn = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1], [0, 3, 1, 0]])
    for weights, d in zip(drawn, cohen_d(drawn, differences), strict=True):
        again = np.repeat(differences, weights.astype(int))
        assert d == pytest.approx(again.mean() / again.std(ddof=1))


def test_an_effect_without_a_spread_is_none_or_undefined_and_never_a_large_number():
    assert cohen_d(ONCE, np.zeros(4))[0] == 0
    assert np.isnan(cohen_d(ONCE, np.full(4, 0.1))[0])  # 0.1 is no binary fraction: rounding is no spread
    assert np.isnan(cohen_d(np.ones((1, 1)), np.ones(1))[0])
    assert wilcoxon(np.zeros(4)) == 1
    assert np.isnan(wilcoxon(np.zeros(0)))
    assert np.isnan(ratio(ONCE, np.ones(4), np.zeros(4))[0])


def test_the_interval_of_d_is_that_of_its_theory():
    rng = np.random.default_rng(0)
    differences = 0.3 + rng.normal(size=500)
    found = interval(cohen_d(resample_weights(500, 4000, 0), differences))
    half = 1.96 * np.sqrt(1 / 500 + found.value**2 / 1000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.12)


def test_pooling_equal_effects_gives_that_effect_with_the_variance_of_all():
    pooled = random_effects([0.2, 0.2, 0.2], [0.01, 0.01, 0.02])
    assert pooled.effect.value == pytest.approx(0.2)
    assert pooled.effect.high - pooled.effect.value == pytest.approx(1.96 / np.sqrt(250), rel=1e-4)
    assert pooled.tau == pooled.heterogeneity == 0


def test_pooling_effects_that_differ_is_wider_than_their_sampling_error():
    # By hand: y = 0, 1, v = 0.1 each: Q = 5, C = 10, tau2 = 0.4, each weight 2, half-width 1.96 / sqrt(4).
    pooled = random_effects([0.0, 1.0], [0.1, 0.1])
    assert pooled.effect.value == pytest.approx(0.5)
    assert pooled.tau == pytest.approx(np.sqrt(0.4))
    assert pooled.heterogeneity == pytest.approx(0.8)
    assert pooled.effect.high - 0.5 == pytest.approx(1.96 / 2, rel=1e-4)
    assert random_effects([0.3, np.nan], [0.01, 0.01]).effect.value == 0.3
    assert np.isnan(random_effects([], []).effect.value)


def test_an_interaction_is_a_difference_of_differences():
    assert interaction(np.array([1.0]), np.array([2.0]), np.array([10.0]), np.array([14.0])) == [3.0]


@given(st.lists(st.floats(-100, 100), min_size=5, max_size=60), st.integers(1, 5))
def test_groups_by_quantile_are_equally_large_and_in_order(values, n):
    values = np.array(values)
    groups = quantile_groups(values, n)
    sizes = np.bincount(groups, minlength=n)
    assert sizes.max() - sizes.min() <= 1
    for low in range(n - 1):
        assert values[groups == low].max() <= values[groups == low + 1].min()
    assert highest(values, 0.4).sum() == round(0.4 * len(values))
    chosen = highest(values, 0.4)
    if chosen.any() and not chosen.all():
        assert values[chosen].min() >= values[~chosen].max()


def test_a_planted_trend_is_found_and_its_correlation_is_spearmans():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(60, 6)) + 0.4 * np.arange(6)
    found = trend(values, resample_weights(60, 500, 0), 999, seed=0)
    assert found.rho == pytest.approx(stats.spearmanr(np.arange(6), values.mean(axis=0)).statistic)
    one_by_one = [stats.spearmanr(np.arange(6), row).statistic for row in values]
    assert found.within.value == pytest.approx(np.mean(one_by_one))
    assert found.within.low < found.within.value < found.within.high
    assert found.p_within == pytest.approx(1 / 1000)
    assert found.p <= 4 / 720


def test_without_a_trend_p_values_are_uniform():
    rng = np.random.default_rng(2)
    ps = [trend(rng.normal(size=(20, 5)), np.ones((1, 20)), 99, seed) for seed in range(200)]
    assert np.mean([one.p_within <= 0.05 for one in ps]) < 0.1
    assert np.mean([one.p <= 0.05 for one in ps]) < 0.1


def test_ranks_are_within_an_example():
    assert mean_ranks(np.array([[3.0, 1.0, 1.0]])).tolist() == [[3.0, 1.5, 1.5]]
