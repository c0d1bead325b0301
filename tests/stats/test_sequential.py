"""A confidence sequence: it holds however often it is looked at, and narrows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.stats.sequential import RunningMean


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.9])
def test_it_misses_the_mean_at_any_time_no_more_often_than_it_says(mean):
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(60):
        running, wrong = RunningMean(alpha=0.2), False
        for number in rng.random(80) < mean:
            running.add(float(number))
            found = running.interval
            wrong |= not found.low <= mean <= found.high
        missed += wrong
    assert missed / 60 <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / 60)


@settings(max_examples=30)
@given(numbers=st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_its_intervals_lie_in_the_range_and_only_shrink(numbers):
    running = RunningMean(-1, 1)
    before = (-1.0, 1.0)
    for number in numbers:
        running.add(number)
        found = running.interval
        assert before[0] <= found.low <= found.high <= before[1]
        before = found.low, found.high
    assert found.value == pytest.approx(np.mean(numbers))


def test_it_narrows_with_the_numbers_and_more_where_they_vary_less():
    def width(numbers):
        running = RunningMean()
        for number in numbers:
            running.add(number)
        return running.interval.high - running.interval.low

    rng = np.random.default_rng(1)
    coins = (rng.random(800) < 0.5).astype(float)
    assert width(coins[:100]) > width(coins) > width(0.5 + (coins - 0.5) / 10)
    assert width(coins) < 0.15
