"""Outcome tables against a table small enough to count by hand."""

import numpy as np
import pandas as pd
import pytest

from by_hand import LONG, LOOP, judged, measured
from kvguard.store.results import Results
from kvguard.studies.catastrophes.measure.outcomes import add_onsets, add_outcomes, outcomes, overall

TRACES = judged(
    [
        ("a", "none", 0.0, True, [], False, 10),
        ("b", "none", 0.0, False, [], None, 20),
        ("c", "none", 0.0, None, [], False, 30),
        ("a", "snapkv", 0.5, True, LOOP, False, 40),
        ("b", "snapkv", 0.5, False, [*LOOP, *LONG], True, 60),
        ("c", "snapkv", 0.5, None, [], None, 20),
        ("a", "knorm", 0.5, False, LONG, True, 60),
        ("b", "knorm", 0.5, None, [], None, 6),
    ]
).assign(
    accuracy_last=[1.0, 0, np.nan, 0, 0, np.nan, 1, np.nan],
    onset_by=[None, None, None, "looping", "answer", None, "proxy", None],
)


def test_outcomes_are_those_counted_by_hand():
    found = outcomes(TRACES)
    assert found.index.tolist() == [("none", 0.0), ("snapkv", 0.5), ("knorm", 0.5)]
    expected = {
        "n": [3, 3, 2],
        "accuracy": [1 / 2, 1 / 2, 0],
        "accuracy_last": [1 / 2, 0, 1],
        "wrong": [1 / 2, 1 / 2, 1],
        "cbr": [0, 2 / 3, 1 / 2],
        "cfr": [1 / 3, 2 / 3, 1 / 2],
        "looping": [0, 2 / 3, 0],
        "non_termination": [0, 1 / 3, 1 / 2],
        "amnesia": [0, 1 / 2, 1],
        "tokens": [20, 40, 33],
    }
    for name, values in expected.items():
        assert found[name].tolist() == pytest.approx(values), name
    assert set(found.columns) == set(expected)
    assert overall(TRACES)["cbr"] == 3 / 8


def test_overall_pools_the_compressed_conditions_and_every_rate_has_an_interval():
    found = measured(TRACES, add_outcomes).loc["outcomes"]
    pooled = found.loc["overall"]["value"]
    assert pooled["n"] == 5
    assert pooled["cbr"] == 3 / 5
    assert pooled["accuracy"] == 1 / 3
    assert pooled["tokens"] == pytest.approx(186 / 5)
    assert found.loc[("snapkv@0.5", "cbr")].tolist() == pytest.approx([2 / 3, 0, 1])
    assert found.drop("n", level="metric").notna().all(axis=None)


def test_what_was_never_scored_is_null_and_no_zero():
    found = measured(TRACES.assign(correct=pd.array([None] * 8, dtype="boolean")), add_outcomes).loc[
        "outcomes"
    ]
    assert np.isnan(found.loc[("overall", "accuracy"), "value"])
    assert found.loc[("overall", "cfr"), "value"] == found.loc[("overall", "cbr"), "value"]


def test_rules_that_found_onsets_are_shares_of_the_failing_traces_of_a_condition():
    results = Results("measure", "m")
    add_onsets(results, TRACES)
    found = results.metrics("onsets")["onsets"]
    shares = {
        subject: {name: cell["value"] for name, cell in cells.items()} for subject, cells in found.items()
    }
    rules = ("by_looping", "by_answer", "by_uncompressed", "by_proxy")
    assert shares == {
        "snapkv@0.5": {"n_failing": 2, **dict(zip(rules, (0.5, 0.5, 0, 0), strict=True))},
        "knorm@0.5": {"n_failing": 1, **dict(zip(rules, (0, 0, 0, 1), strict=True))},
        "overall": {"n_failing": 3, **dict(zip(rules, (1 / 3, 1 / 3, 0, 1 / 3), strict=True))},
    }


def test_the_baseline_alone_has_no_overall():
    assert set(measured(TRACES.iloc[:3], add_outcomes).loc["outcomes"].index.get_level_values(0)) == {"none"}
