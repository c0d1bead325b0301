"""The rules that pick operating points, and the file that the live guard reads."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.guard.bundle import load_operating_point
from kvguard.guard.controller import ControllerParams
from kvguard.studies.catastrophes.evaluate.operating_points import choose, mark, save_operating_points
from kvguard.studies.catastrophes.params import EvaluateParams

BOUNDS = EvaluateParams(conservative_fpr=0.01, balanced_fpr=0.05)


def trials(*rows):
    """Trials from (reduction, false_positive_rate, kv_saved); k_escalate tells them apart."""
    frame = pd.DataFrame(rows, columns=["reduction", "false_positive_rate", "kv_saved"])
    number = np.arange(len(frame))
    return frame.assign(trial=number, tau_low=0.25, tau_high=0.5, k_escalate=number + 1, j_deescalate=8)


def picked(frame):
    return [point.trial for point in choose(frame, BOUNDS).values()]


def test_each_point_is_the_largest_reduction_within_its_bound():
    frame = trials((0.1, 0.0, 0.5), (0.2, 0.01, 0.5), (0.3, 0.05, 0.4), (0.25, 0.02, 0.5), (0.9, 0.6, 0.1))
    assert picked(frame) == [1, 2, 4]


@pytest.mark.parametrize(
    ("rows", "winner"),
    [
        ([(0.2, 0.01, 0.9), (0.2, 0.0, 0.1)], 1),  # fewer false alarms
        ([(0.2, 0.0, 0.1), (0.2, 0.0, 0.9)], 1),  # more memory
        ([(0.2, 0.0, 0.1), (0.2, 0.0, 0.1)], 0),  # the earlier trial
    ],
)
def test_ties_are_broken_in_order(rows, winner):
    assert picked(trials(*rows)) == [winner] * 3


def test_without_a_trial_in_its_bound_a_point_takes_the_lowest_rate_and_says_so(caplog):
    frame = trials((0.9, 0.5, 0.5), (0.2, 0.03, 0.5), (0.1, 0.03, 0.9))
    assert picked(frame) == [1, 1, 0]
    assert [record.message for record in caplog.records] == [
        "conservative: no trial has a false-positive rate of at most 0.01: taking the lowest, 0.030"
    ]


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0])] * 3), min_size=1, max_size=12))
def test_no_trial_dominates_an_operating_point(rows):
    frame = trials(*rows)
    gains = frame[["reduction", "false_positive_rate", "kv_saved"]].to_numpy() * [1, -1, 1]
    for chosen in picked(frame):
        assert not ((gains >= gains[chosen]).all(axis=1) & (gains > gains[chosen]).any(axis=1)).any()


def test_a_trial_may_become_several_points():
    frame = trials((0.2, 0.0, 0.5), (0.1, 0.0, 0.5))
    names = mark(frame, choose(frame, BOUNDS))["operating_point"]
    assert names.tolist() == ["conservative, balanced, aggressive", None]


def test_points_come_back_from_their_file_as_they_were(tmp_path):
    points = choose(trials((0.2, 0.0, 0.5), (0.4, 0.03, 0.4)), BOUNDS)
    path = save_operating_points(points, tmp_path)
    for name, point in points.items():
        assert load_operating_point(tmp_path, name) == point.params
    assert load_operating_point(tmp_path, "balanced") == ControllerParams(
        tau_low=0.25, tau_high=0.5, k_escalate=2, j_deescalate=8
    )
    assert json.loads(path.read_text())["balanced"]["tune"] == {
        "reduction": 0.4, "false_positive_rate": 0.03, "kv_saved": 0.4
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["", "[1]", '{"balanced": 3}', '{"balanced": {"tau_low": 0.1}}'])
def test_a_damaged_file_is_one_line(tmp_path, damage):
    (tmp_path / "operating_points.json").write_text(damage)
    with pytest.raises(KvguardError, match=r"operating_points.json.*dvc repro evaluate") as caught:
        load_operating_point(tmp_path, "balanced")
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_point_is_one_line(tmp_path):
    with pytest.raises(KvguardError, match="does not exist; make it again with `dvc repro evaluate`"):
        load_operating_point(tmp_path, "balanced")
    save_operating_points(choose(trials((0.2, 0.0, 0.5)), BOUNDS), tmp_path)
    with pytest.raises(KvguardError, match="no operating point 'bold'; it has conservative, balanced"):
        load_operating_point(tmp_path, "bold")
