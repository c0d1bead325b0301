"""Paired comparisons against pairs counted by hand."""

import numpy as np
import pandas as pd
import pytest

from by_hand import LOOP, judged, measured
from kvguard.studies.catastrophes.measure.comparisons import add_comparisons

PROMPTS = [f"p{n:02d}" for n in range(20)]


def condition(compressor, ratio, failing, correct=lambda n: True):
    return [
        (prompt, compressor, ratio, correct(n), LOOP if n in failing else [], False, 10)
        for n, prompt in enumerate(PROMPTS)
    ]


# Against none: snapkv fails on 9 prompts more and on prompt 0 less; against random: on 6 and 10 alone.
TRACES = judged(
    [
        *condition("none", 0.0, {0}),
        *condition("snapkv", 0.5, set(range(1, 10)), correct=lambda n: None if n < 10 else n != 10),
        *condition("random", 0.5, {*range(1, 6), 10}),
        *condition("knorm", 0.25, {0}),
    ]
)


def test_pairs_are_those_counted_by_hand():
    found = measured(TRACES, add_comparisons)
    none, random = found.loc[("against_none", "snapkv@0.5")], found.loc[("against_random", "snapkv@0.5")]
    assert none.loc["cbr_difference", "value"] == pytest.approx(8 / 20)
    assert none.loc["cbr_p", "value"] == pytest.approx(2 * 11 / 2**10)
    assert none.loc["cbr_odds_ratio", "value"] == pytest.approx(9.5 / 1.5)
    assert random.loc["cbr_difference", "value"] == pytest.approx(3 / 20)
    assert random.loc["cbr_p", "value"] == pytest.approx(2 * 6 / 2**5)
    assert random.loc["cbr_odds_ratio", "value"] == pytest.approx(4.5 / 1.5)
    low, high = none.loc["cbr_difference", ["low", "high"]]
    assert 0 < low < 8 / 20 < high


def test_a_pair_that_one_side_did_not_score_is_left_out():
    found = measured(TRACES, add_comparisons).loc[("against_none", "snapkv@0.5")]
    assert found.loc["accuracy_difference", "value"] == pytest.approx(-1 / 10)
    assert found.loc["accuracy_p", "value"] == 1.0


def test_the_family_of_holm_is_all_conditions_of_a_table():
    found = measured(TRACES, add_comparisons)
    p = found.xs("cbr_p", level="metric")["value"]
    corrected = found.xs("cbr_p_holm", level="metric")["value"]
    assert len(p.loc["against_none"]) == 3
    assert corrected["against_none", "snapkv@0.5"] == pytest.approx(3 * p["against_none", "snapkv@0.5"])
    assert p["against_none", "knorm@0.25"] == corrected["against_none", "knorm@0.25"] == 1
    # Random eviction was not run at 0.25, and is not compared with itself: a family of one.
    assert p.loc["against_random"].index.tolist() == ["snapkv@0.5"]
    assert corrected["against_random", "snapkv@0.5"] == p["against_random", "snapkv@0.5"]


def test_without_a_control_its_table_is_missing_and_nothing_else():
    without = TRACES[TRACES["compressor"] != "random"].reset_index(drop=True)
    assert set(measured(without, add_comparisons).index.get_level_values(0)) == {"against_none"}
    alone = TRACES[TRACES["compressor"] == "none"].reset_index(drop=True)
    assert measured(alone, add_comparisons).empty


def test_answers_that_nobody_scored_are_no_tests():
    unscored = TRACES.assign(correct=pd.array([None] * len(TRACES), dtype="boolean"))
    found = measured(unscored, add_comparisons).loc["against_none"]
    accuracy = found[found.index.get_level_values("metric").str.startswith("accuracy")]
    assert len(accuracy) == 3 * 4
    assert accuracy.isna().all(axis=None)
    assert np.isfinite(found.loc[("snapkv@0.5", "cbr_p_holm"), "value"])
