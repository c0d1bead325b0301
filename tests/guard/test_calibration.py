"""Calibrations: right on a known relation, order kept, the same after JSON."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvguard.guard.calibration import Isotonic, as_card, fit_calibration, from_card

METHODS = ("isotonic", "platt")


@pytest.fixture(scope="module")
def tokens():
    """Margins that overstate: the true log-odds are half of them, less one."""
    rng = np.random.default_rng(5)
    margin = rng.normal(0, 3, 40_000).astype(np.float32)
    probability = 1 / (1 + np.exp(1 - margin / 2))
    return margin, rng.random(40_000) < probability, probability


@pytest.mark.parametrize("method", METHODS)
def test_a_known_relation_is_found(tokens, method):
    margin, target, probability = tokens
    found = fit_calibration(method, margin, target)(margin)
    assert found.dtype == np.float32
    assert np.abs(found - probability).mean() < 0.01
    for low in np.arange(0, 1, 0.1):
        here = (found >= low) & (found < low + 0.1)
        assert target[here].mean() == pytest.approx(found[here].mean(), abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_after_json(tokens, method):
    margin, target, _ = tokens
    fitted = fit_calibration(method, margin, target)
    again = from_card(json.loads(json.dumps(as_card(fitted))))
    assert again == fitted
    assert (again(margin) == fitted(margin)).all()


@example(pairs=[(0.0, True), (2.0**-23, False), (-1.0, False)], method="isotonic")
@example(pairs=[(0.0, False)] * 6 + [(1.0, False), (7.0, True)], method="isotonic")
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-9, 9, width=16), st.booleans()), min_size=2, max_size=80),
    st.sampled_from(METHODS),
)
def test_the_hazard_is_a_probability_that_never_falls_as_the_margin_rises(pairs, method):
    margin = np.array([m for m, _ in pairs], dtype=np.float32)
    target = np.array([y for _, y in pairs])
    target[:2] = [True, False]
    fitted = fit_calibration(method, margin, target)
    rising = fitted(np.linspace(-20, 20, 401)[:: 1 if getattr(fitted, "slope", 1) >= 0 else -1])
    assert ((rising >= 0) & (rising <= 1)).all()
    assert (np.diff(rising) >= 0).all()


def test_between_the_centres_of_its_blocks_isotonic_keeps_the_booster_s_order(tokens):
    margin, target, _ = tokens
    fitted = Isotonic.fit(margin, target)
    inner = np.sort(margin[(margin > fitted.margin[0]) & (margin < fitted.margin[-1])]).astype(np.float64)
    inside = np.interp(inner, fitted.margin, fitted.probability)
    assert (np.diff(inside)[np.diff(inner) > 0] > 0).all()
    assert len(fitted.margin) < 200
