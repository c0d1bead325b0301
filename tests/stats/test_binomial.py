"""Exact bounds of a rate, against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from kvguard.stats.binomial import losses_allowed, p_below, prompts_needed, rate, upper_bound

limits = st.floats(0.001, 0.5)
deltas = st.floats(0.001, 0.5)


@given(st.integers(0, 60), st.integers(0, 60), limits)
def test_p_is_the_binomial_tail(k, more, limit):
    n = k + more
    expected = binom.cdf(k, n, limit) if more else 1.0
    assert float(p_below(k, n, limit)) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(st.integers(0, 80), st.integers(1, 80), limits, deltas)
def test_the_upper_bound_keeps_a_limit_exactly_where_the_test_certifies_it(k, more, limit, delta):
    p, bound = float(p_below(k, k + more, limit)), float(upper_bound(k, k + more, 1 - delta))
    if abs(p - delta) > 1e-9:
        assert (p <= delta) == (bound <= limit)


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_interval_is_clopper_and_pearsons(k, more):
    found, known = rate(k, k + more), binomtest(k, k + more).proportion_ci(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)


@given(limits, deltas)
def test_without_a_loss_so_many_prompts_are_needed_and_no_fewer(limit, delta):
    n = prompts_needed(limit, delta)
    assert (1 - limit) ** n <= delta * (1 + 1e-9)
    assert n == 1 or (1 - limit) ** (n - 1) > delta * (1 - 1e-9)
    assert abs(n - math.log(delta) / math.log(1 - limit)) < 1 + 1e-6 or n == 1


@given(st.integers(0, 12), st.floats(0.01, 0.3), st.floats(0.005, 0.2))
def test_needed_and_allowed_are_each_others_inverse(losses, limit, delta):
    n = prompts_needed(limit, delta, losses)
    assert losses_allowed(n, limit, delta) >= losses
    assert losses_allowed(n - 1, limit, delta) < losses


def test_known_numbers():
    assert prompts_needed(0.02, 0.05) == 149
    assert prompts_needed(0.05, 0.05) == 59
    assert losses_allowed(300, 0.02, 0.05) == 1
    assert losses_allowed(100, 0.02, 0.05) == -1


def test_no_prompts_and_nothing_but_losses_certify_nothing():
    assert p_below([0, 5], [0, 5], 0.1).tolist() == [1, 1]
    assert upper_bound([0, 5], [0, 5], 0.9).tolist() == [1, 1]
    assert np.isnan(rate(0, 0).value)
