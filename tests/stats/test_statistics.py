"""Bootstrap and paired tests against known values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.stats.bootstrap import Interval, interval, mean_by, quantile, resample_weights, share
from kvguard.stats.paired import discordant_odds, holm, mcnemar


def test_the_first_row_of_weights_is_the_sample_and_each_resample_draws_as_many_prompts():
    weights = resample_weights(7, 50, seed=3)
    assert weights.shape == (51, 7)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == resample_weights(7, 50, seed=3)).all()
    assert (weights != resample_weights(7, 50, seed=4)).any()


def test_the_interval_of_a_mean_is_that_of_the_normal_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    found = interval(mean_by(resample_weights(400, 4000, 1), np.arange(400), values))
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_prompts_are_drawn_whole():
    # Ten prompts, each with 100 equal values: as wide as ten values, not as a thousand.
    prompt, values = np.repeat(np.arange(10), 100), np.repeat(np.arange(10) % 2, 100)
    whole = interval(mean_by(resample_weights(10, 2000, 0), prompt, values))
    ten = interval(mean_by(resample_weights(10, 2000, 0), np.arange(10), np.arange(10) % 2))
    assert whole == ten
    assert whole.high - whole.low > 0.5


def test_what_is_undefined_is_nan_and_does_not_reach_the_interval():
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    rates = share(weights, np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    np.testing.assert_array_equal(rates, [0.5, 0.5, np.nan])
    assert interval(rates).high == 0.5
    assert np.isnan(interval(np.array([np.nan, 1.0])).value)
    assert np.isnan(quantile(weights, np.zeros((2, 3)), 0.5)).all()


def test_a_quantile_is_a_level_that_occurs():
    counts = np.array([[1.0, 0.0, 2.0, 1.0]])
    assert [quantile(np.ones((1, 1)), counts, q)[0] for q in (0.25, 0.5, 0.75, 1)] == [0, 2, 2, 3]


@pytest.mark.parametrize(
    ("more", "less", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (121, 59, 4.4344e-6),  # the example in the documentation of statsmodels' mcnemar
    ],
)
def test_mcnemar_is_the_binomial_of_the_discordant_pairs(more, less, p):
    assert mcnemar(more, less) == pytest.approx(p, rel=1e-4)
    assert mcnemar(more, less) == mcnemar(less, more)


def test_holm_on_a_worked_example():
    # 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not fall below 0.06.
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, np.nan, 0.6])), [1.0, np.nan, 1.0])
    assert len(holm(np.array([]))) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_stands_between_no_correction_and_bonferroni_and_keeps_the_order(p):
    p = np.array(p)
    found = holm(p)
    assert (found >= p).all()
    assert (found <= np.minimum(p * len(p), 1) + 1e-12).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()


def test_the_odds_of_discordant_pairs_with_their_exact_interval():
    # Shares of Clopper and Pearson for 8 of 10: 0.4439 to 0.9748; for 5 of 5: at least 0.025 ** (1 / 5).
    found = discordant_odds(8, 2)
    assert found.value == 8.5 / 2.5
    assert (found.low, found.high) == pytest.approx((0.4439 / 0.5561, 0.9748 / 0.0252), rel=2e-3)
    share_of_all = 0.025 ** (1 / 5)
    assert discordant_odds(5, 0).value == 11
    assert discordant_odds(5, 0).low == pytest.approx(share_of_all / (1 - share_of_all))
    assert discordant_odds(5, 0).high == np.inf
    assert discordant_odds(0, 5).low == 0
    assert discordant_odds(0, 0) == Interval(1.0, 0.0, np.inf)


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_odds_turn_over_with_the_pair(more, less):
    found, turned = discordant_odds(more, less), discordant_odds(less, more)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(1 / turned.value)
    assert found.high == pytest.approx(1 / turned.low if turned.low else np.inf, rel=1e-6)
