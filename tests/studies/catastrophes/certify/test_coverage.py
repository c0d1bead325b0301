"""Coverage is counted on prompts that certify nothing, and a leak between the two is seen."""

import numpy as np
import pytest
from made_traces import traces

from kvguard.errors import KvguardError
from kvguard.stats.binomial import rate
from kvguard.studies.catastrophes.certify.coverage import Splits, coverage
from kvguard.studies.catastrophes.certify.losses import losses_of, outcomes_of
from kvguard.studies.catastrophes.certify.recommend import Limits, certified_by

LIMITS = Limits(0.05, None, 0.95)


def losses(n, *rates, policies=False, seed=1):
    """Paired losses of settings with these rates: the ratios of one policy, or each a policy by itself."""
    names = [(f"a{i}", 0.5) if policies else ("a", round(0.1 * (i + 1), 1)) for i in range(len(rates))]
    made = traces(n, dict(zip(names, [(one, 0.0) for one in rates], strict=True)), seed=seed)
    return losses_of(outcomes_of(made))


def test_the_two_parts_share_no_prompt_and_are_all_of_them():
    splits = Splits.draw(101, 0.4, 50, seed=3)
    assert (splits.calibration + splits.held_out == 1).all()
    assert (splits.calibration.sum(axis=1) == 40).all()
    assert len(np.unique(splits.calibration, axis=0)) == 50
    assert (splits.drawn(3).sum(axis=1) == 40).all()


def test_a_prompt_that_certifies_and_checks_is_caught():
    splits = Splits.draw(50, 0.5, 10, seed=0)
    leaky = splits.held_out.copy()
    leaky[4, np.flatnonzero(splits.calibration[4])[0]] = 1
    with pytest.raises(KvguardError, match="split 4"):
        Splits(splits.calibration, leaky)


def test_a_part_without_prompts_is_rejected():
    with pytest.raises(KvguardError, match="empty"):
        Splits(np.ones((1, 3)), np.zeros((1, 3)))


@pytest.mark.parametrize("rates", [(0.04, 0.06), (0.055,), (0.06, 0.0), (0.051, 0.051, 0.051), (0.2,)])
def test_known_rates_above_the_limit_are_certified_at_most_as_often_as_asked(rates):
    paired = losses(600, *rates)
    splits = Splits.draw(600, 0.4, 1000, seed=5)
    found = coverage(paired, LIMITS, splits, splits.drawn(5))
    assert found["violations_known"].low <= LIMITS.delta


def test_a_policy_chosen_on_the_prompts_that_check_it_shows_as_violations():
    paired = losses(600, *[0.06] * 20, policies=True, seed=7)
    bad = paired.only(lambda one: paired.added[:, paired.settings.index(one)].mean() > LIMITS.max_added_cbr)
    assert len(bad.settings) > 12
    splits = Splits.draw(600, 0.4, 600, seed=5)
    drawn = splits.drawn(5)
    honest = coverage(bad, LIMITS, splits, drawn)
    assert honest["violations_known"].low <= LIMITS.delta
    chosen = (drawn @ bad.added).argmin(axis=1)  # of all policies the luckiest, then certified as if alone
    alone = np.stack(
        [certified_by(drawn, bad.only(one.__eq__), LIMITS)[:, 0] for one in bad.settings], axis=1
    )
    picked = rate(int(alone[np.arange(len(drawn)), chosen].sum()), len(drawn))
    assert picked.low > 2 * LIMITS.delta
