"""A drift is told of traffic that changed, and hardly ever of one that did not, however long it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.guard.drift import ALPHA, Drift, InOrder, score
from kvguard.stats.binomial import rate


def ends(calibration, live, n, seed):
    """When each of ``n`` streams is told to have drifted: live texts seen, None for never."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        drift = Drift(calibration(rng), seed=number)
        for value in live(rng):
            drift.observe(float(value))
        found.append(drift.since)
    return found


def hazards(rng, n, alarms=0.1):
    """Scores as guards have them: mostly near 0, some alarms at exactly 1."""
    return np.where(rng.random(n) < alarms, 1.0, rng.beta(0.5, 8, n))


@pytest.mark.parametrize(("n_calibration", "alarms"), [(0, 0.0), (60, 0.1), (300, 0.0), (60, 1.0)])
def test_exchangeable_traffic_is_told_to_drift_at_most_as_often_as_asked(n_calibration, alarms):
    found = ends(
        lambda rng: hazards(rng, n_calibration, alarms), lambda rng: hazards(rng, 400, alarms), 100, 1
    )
    told = sum(one is not None for one in found)
    assert rate(told, len(found), level=0.99).low <= ALPHA


def test_more_alarms_and_higher_hazards_are_told_soon():
    for shifted in (lambda rng: hazards(rng, 300, 0.5), lambda rng: rng.beta(2, 8, 300)):
        found = ends(lambda rng: hazards(rng, 300), shifted, 20, 2)
        assert all(one is not None for one in found)
        assert np.median(found) < 100


def test_fewer_alarms_are_a_drift_too():
    found = ends(lambda rng: hazards(rng, 300, 0.5), lambda rng: hazards(rng, 300, 0.0), 20, 3)
    assert all(one is not None for one in found)


def test_a_drift_after_a_long_calm_is_told():
    found = ends(
        lambda rng: hazards(rng, 300), lambda rng: np.r_[hazards(rng, 1000), hazards(rng, 600, 0.8)], 10, 4
    )
    assert sum(one is not None and one > 1000 for one in found) >= 9


@given(st.lists(st.floats(0, 1), max_size=30), st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_capital_stays_a_positive_number(calibration, live):
    drift = Drift(calibration)
    for value in live:
        drift.observe(value)
    assert np.isfinite(drift.log_wealth)
    assert drift.wealth > 0


def test_neither_a_long_win_nor_a_long_loss_leaves_the_range_of_floats():
    drift = Drift([0.0] * 2000)
    for _ in range(2000):
        drift.observe(1.0)
    assert np.isfinite(drift.log_wealth)
    assert drift.log_wealth > 100
    assert drift.drifted


@given(st.permutations(range(12)))
def test_texts_are_taken_in_the_order_in_which_they_began(order):
    seen = []

    class Recorder(Drift):
        def observe(self, value):
            seen.append(value)
            return False

    of = InOrder(Recorder([]))
    numbers = [of.begin() for _ in range(12)]
    for number in order:
        of.end(numbers[number], None if number == 5 else float(number))
    assert seen == [float(number) for number in range(12) if number != 5]


def test_a_text_that_alarmed_scores_highest_whatever_is_left_of_its_hazards():
    assert score(np.array([0.1, 0.2], dtype=np.float32), safe_at=7) == 1.0
    assert score(np.array([0.1, np.nan, 0.4], dtype=np.float32), safe_at=-1) == pytest.approx(0.4)
    assert score(np.array([], dtype=np.float32), safe_at=-1) == 0.0
