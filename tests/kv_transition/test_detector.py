"""The detector on simulated curves: how often it sees zones where none are, and finds those that are."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.analysis import transition
from kv_transition.analysis.aggregate import Budget
from kv_transition.analysis.bootstrap import Sums
from kv_transition.analysis.power import power_curve, simulated_curve
from kv_transition.analysis.transition import (
    collapse_at,
    contrasts,
    detect,
    z_over_bins,
)
from kv_transition.settings import Analysis

SETTINGS = Analysis(n_permutations=199)


def curves(rng, n, right, failed, continuous=False):
    """Budgets of simulated answers: rates of right answers and of failures by bin, one row a budget."""
    budgets = []
    for number, (rights, failures) in enumerate(zip(right, failed, strict=True)):
        sums = []
        for share, failure in zip(rights, failures, strict=True):
            score = rng.beta(8 * share, 8 * (1 - share), n) if continuous else (rng.random(n) < share) * 1.0
            sums.append(Sums(np.ones(n), score, score**2, (rng.random(n) < failure) * 1.0))
        budgets.append(Budget(1.0 / (number + 1), list(range(len(sums))), sums))
    return budgets


NOTHING = {
    "flat and good": ([0.95] * 5, [0.05] * 5),
    "flat and middling": ([0.6] * 5, [0.3] * 5),
    "a cliff": ([0.95, 0.95, 0.95, 0.02, 0.02], [0.05, 0.05, 0.05, 0.9, 0.9]),
    "collapsed all over": ([0.1] * 5, [0.5] * 5),
    "getting better": ([0.6, 0.7, 0.8, 0.9, 0.95], [0.3, 0.2, 0.1, 0.05, 0.05]),
}


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", NOTHING)
def test_at_most_one_in_twenty_sees_a_zone_where_there_is_none(name, continuous):
    rng, n_simulated = np.random.default_rng(7), 40 if continuous else 100
    right, failed = NOTHING[name]
    first = NOTHING["flat and good"]
    seen = [
        any(
            zone.found
            for zone in detect(curves(rng, 20, [first[0], right], [first[1], failed], continuous), SETTINGS)
        )
        for _ in range(n_simulated)
    ]
    # With a true rate of 5 % more than this many come by chance in 1 of 200 such tests.
    assert sum(seen) <= 0.05 * n_simulated + 2.6 * np.sqrt(0.05 * 0.95 * n_simulated)


@pytest.mark.parametrize(("n", "rise"), [(20, 0.3), (40, 0.2)])
def test_nine_in_ten_zones_are_found_where_n_can_show_them_and_where_they_begin(n, rise):
    rng = np.random.default_rng(3)
    right, failed = [0.95, 0.95, 0.95 - rise, 0.95 - rise, 0.02], [0.05, 0.05, 0.05 + rise, 0.05 + rise, 0.9]
    zones = [detect(curves(rng, n, [right], [failed]), SETTINGS)[0] for _ in range(100)]
    assert sum(zone.found for zone in zones) >= 90
    assert sum(zone.start == 2 and zone.end == 3 for zone in zones) >= 75


def test_the_power_curve_of_the_package_is_what_a_simulation_gives():
    shipped = {(one.n_per_bin, one.rise): one for one in power_curve()}
    for one in simulated_curve(Analysis(), sizes=[10], n_simulations=100):
        assert abs(one.found - shipped[10, one.rise].found) < 0.2
    assert all(one.false <= 0.08 for one in shipped.values())
    assert shipped[20, 0.3].found >= 0.9
    assert shipped[5, 0.2].found < 0.6  # five examples are no proof


@given(st.lists(st.integers(0, 10), min_size=1, max_size=7))
def test_a_collapse_lasts_to_the_end(tenths):
    scores = np.array(tenths) / 10
    at = collapse_at(scores, 1.0, 0.5)
    assert all(scores[at:] < 0.5)
    assert at == 0 or scores[at - 1] >= 0.5


@pytest.mark.parametrize("rise", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_dealing_kinds_and_shuffling_examples_permute_alike(seed, rise):
    """Their p-values may differ: with few equal scores they jump with ties, whichever way it is done."""
    rng, n = np.random.default_rng(seed), 20_000
    bins = [
        np.stack([np.ones(12), s, s, (rng.random(12) < 0.1 + 0.5 * rise * (index > 1)) * 1.0])
        for index in range(4)
        for s in [(rng.random(12) < 0.8) * 1.0]
    ]
    examples, sizes, found = np.concatenate(bins, axis=1), np.full(4, 12), []
    for kinds in (16, 0):
        with patch.object(transition, "_FEW_KINDS", kinds):
            made = transition._permutations(examples, sizes, n, np.random.default_rng(seed))
            sums = np.concatenate(list(made), axis=1)
        np.testing.assert_array_equal(sums.sum(axis=2), examples.sum(axis=1)[:, None].repeat(n, axis=1))
        found.append(contrasts(sums))
    for moment in (found, [one**2 for one in found]):
        error = np.sqrt(sum(one.var(axis=2) for one in moment) / n)
        assert (np.abs(moment[0].mean(axis=2) - moment[1].mean(axis=2)) <= 5 * error + 1e-12).all()


def test_a_contrast_is_what_its_definition_says():
    n, total = np.full((1, 3), 4.0), np.array([[4.0, 2.0, 2.0]])
    found = contrasts(np.stack([n, total, total, np.array([[0.0, 1.0, 4.0]])]))[:, :, 0]
    np.testing.assert_allclose(found[1], [5 / 8, 4 / 4 - 1 / 8])
    np.testing.assert_allclose(found[0], [0.5, 0.5 - np.sqrt(1 / 8)])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_z_scores_over_bins_have_mean_0_and_spread_1_or_are_0(values):
    z = z_over_bins(np.array(values))
    assert abs(z.mean()) < 1e-6
    assert np.isclose(z.std(), 1, atol=1e-6) or not z.any()


def test_the_rationale_has_every_number_used():
    rng = np.random.default_rng(0)
    [zone] = detect(curves(rng, 20, [[0.95, 0.95, 0.6, 0.6, 0.05]], [[0.0, 0.0, 0.4, 0.4, 0.9]]), SETTINGS)
    for name in ("n", "score", "std", "failure_rate", "drop", "z_std", "z_failure_rate", "z_drop"):
        assert len(zone.rationale[name]) == 5
    for name in (
        "reference",
        "collapse_below",
        "collapse_bin",
        "candidates",
        "contrast_z",
        "statistic",
        "p_value",
    ):
        assert name in zone.rationale
