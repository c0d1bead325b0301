"""The offline simulation on cases computed by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.guard.controller import ControllerParams, State, run_controller
from kvguard.judging.catastrophes import NO_ONSET
from kvguard.studies.catastrophes.evaluate.simulate import (
    NEVER,
    Replay,
    controller_metrics,
    metrics_by_condition,
    recorded,
    safe_from,
    simulate,
)
from kvguard.studies.catastrophes.protocols import PROTOCOLS
from kvguard.studies.catastrophes.train.rows import Rows
from recordings import judged, planted

V1, V2, V3 = PROTOCOLS["v1"], PROTOCOLS["v2"], PROTOCOLS["v3"]
SHARE = [5 / (10 + t) for t in range(8)]  # 1 - held / full while compressed
TRACES = judged(
    [
        ("a", "none", 0.0, 4, None, True),
        ("a", "x", 0.5, 8, 3, False),  # SAFE in time: as the baseline, right
        ("a", "y", 0.5, 8, 3, False),  # SAFE at the onset: too late
        ("b", "none", 0.0, 4, None, False),
        ("b", "x", 0.5, 5, None, True),  # false alarm: as the baseline, wrong
        ("b", "y", 0.5, 5, None, None),  # quiet, not scored
        ("c", "none", 0.0, 4, None, True),
        ("c", "x", 0.5, 6, None, False),  # wrong, and SAFE at its last token
    ]
)
SAFE = np.zeros((8, 8), dtype=bool)
SAFE[1, 1:3] = SAFE[2, 3:5] = SAFE[4, 2] = SAFE[7, 5] = True
SAFE[5, 5:] = True  # past the end of the trace


def outcomes(protocol):
    return simulate(recorded(TRACES, protocol), SAFE)


def overall(per_trace):
    """The metrics over the compressed conditions of the traces themselves."""
    found = metrics_by_condition(np.ones((1, per_trace["prompt_id"].nunique())), per_trace)["overall"]
    return {name: value[0] for name, value in found.items()}


def test_only_a_switch_before_the_onset_takes_the_baselines_outcome():
    found = outcomes(V2)
    assert found["safe_at"].tolist() == [NEVER, 1, 3, NEVER, 2, NEVER, NEVER, 5]
    assert found["failed"].tolist() == [False, True, True, *[False] * 5]
    assert found["failed_controlled"].tolist() == [False, False, True, *[False] * 5]
    assert found["looping_controlled"].tolist() == found["failed_controlled"].tolist()
    assert found["correct_controlled"].fillna(-1).tolist() == [1, 1, 0, 0, 0, -1, 1, 1]
    assert found["lead_time"].dropna().tolist() == [2.0]


def test_memory_that_sliding_windows_free_by_themselves_is_not_saved():
    narrow = TRACES.assign(n_kept_tokens=TRACES["n_kept_tokens"] - 4)
    found = simulate(recorded(narrow, V2), SAFE)
    assert found["kv_saved"][0] == 0
    assert found["kv_saved"][1] == pytest.approx(np.mean([5 / (6 + t) for t in range(8)]))


def test_where_the_guard_rewinds_an_alarm_is_in_time_for_a_while_after_the_onset():
    traces = judged([("a", "none", 0.0, 4, None, True), *[("a", "x", 0.5, 40, 3, False)] * 3])
    safe = np.zeros((4, 40), dtype=bool)
    for row, at in enumerate((1, 3 + V3.grace - 1, 3 + V3.grace), start=1):
        safe[row, at] = True
    found = simulate(recorded(traces, V3), safe)
    assert found["failed_controlled"].tolist() == [False, False, False, True]
    assert found["lead_time"].fillna(-1).tolist() == [-1, 2, -1, -1]  # none where it comes after the onset
    for protocol in (V1, V2):
        late = simulate(recorded(traces, protocol), safe)
        assert late["failed_controlled"].tolist() == [False, False, True, True]


def test_a_wrong_answer_has_no_onset_so_under_v1_any_switch_is_in_time():
    found = outcomes(V1)
    assert found["failed"].tolist() == [False, True, True, True, False, False, False, True]
    # The last is saved at its last token; the false alarm is lost to its wrong baseline.
    assert found["failed_controlled"].tolist() == [False, False, True, True, True, False, False, False]


def test_memory_is_saved_in_compressed_steps_only():
    found = outcomes(V2)
    without = [0, np.mean(SHARE), np.mean(SHARE), 0, *[np.mean(SHARE[:5])] * 2, 0, np.mean(SHARE[:6])]
    assert found["kv_saved"].tolist() == pytest.approx(without)
    met = sum(SHARE[:2]) / 8  # uncompressed to its end, though the recorded hazard calms down
    late = (sum(SHARE) - SHARE[4] - SHARE[5]) / 8
    false_alarm = (sum(SHARE[:5]) - SHARE[3]) / 5  # compressed again after one step
    assert found["kv_saved_controlled"].tolist() == pytest.approx(
        [0, met, late, 0, false_alarm, np.mean(SHARE[:5]), 0, np.mean(SHARE[:6])]
    )


def test_the_metrics_are_those_counted_by_hand():
    found = overall(outcomes(V2))
    assert found["n_traces"] == 5
    assert (found["cbr_uncontrolled"], found["cbr_controlled"]) == (0.4, 0.2)
    assert found["reduction"] == pytest.approx(0.2)
    assert found["reduction_relative"] == found["ceiling_share"] == 0.5
    assert found["false_positive_rate"] == pytest.approx(2 / 3)
    assert found["safe_rate"] == 0.8
    assert (found["accuracy_uncontrolled"], found["accuracy_controlled"]) == (0.25, 0.5)
    assert [found[f"lead_time_{q}"] for q in ("q25", "median", "q75")] == [2, 2, 2]
    assert (found["looping_uncontrolled"], found["looping_controlled"]) == (0.4, 0.2)
    assert found["non_termination_uncontrolled"] == 0
    claimed = overall(outcomes(V1))
    assert (claimed["cbr_uncontrolled"], claimed["cbr_controlled"]) == (0.6, 0.4)
    assert claimed["reduction_relative"] == pytest.approx(1 / 3)
    assert claimed["ceiling_share"] == pytest.approx(1)  # always-safe saves a.y and loses b.y
    assert claimed["false_positive_rate"] == 0.5


def test_conditions_stand_apart_and_the_uncompressed_one_outside_the_whole():
    found = metrics_by_condition(np.ones((1, 3)), outcomes(V2))
    assert list(found) == ["none", "x@0.5", "y@0.5", "overall"]
    assert found["x@0.5"]["cbr_uncontrolled"][0] == pytest.approx(1 / 3)
    assert found["x@0.5"]["cbr_controlled"][0] == 0
    assert found["y@0.5"]["ceiling_share"][0] == 0
    assert found["overall"]["n_traces"][0] == sum(found[name]["n_traces"][0] for name in ("x@0.5", "y@0.5"))
    assert np.isnan(found["none"]["reduction_relative"][0])
    assert np.isnan(found["none"]["lead_time_median"][0])


@pytest.mark.parametrize("protocol", [V1, V2])
def test_always_safe_reaches_the_ceiling(protocol):
    traces = recorded(TRACES, protocol)
    found = simulate(traces, safe_from(np.zeros(len(traces), dtype=np.int64), 8))
    assert found["failed_controlled"].equals(found["failed_uncompressed"].rename("failed_controlled"))
    assert overall(found)["ceiling_share"] == 1
    assert overall(found)["false_positive_rate"] == 1


def test_a_controller_that_never_fires_changes_nothing():
    traces = recorded(TRACES, V2)
    found = simulate(traces, safe_from(np.full(len(traces), NEVER), 8))
    for name in ("failed", "looping", "correct", "kv_saved"):
        assert found[name].equals(found[f"{name}_controlled"].rename(name))
    assert overall(found)["reduction"] == overall(found)["false_positive_rate"] == 0


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any))
def test_a_prompt_drawn_twice_counts_as_two(weights):
    per_trace = outcomes(V2)
    cluster, _ = pd.factorize(per_trace["prompt_id"])
    drawn = np.repeat(np.arange(len(per_trace)), np.array(weights)[cluster])
    resampled = controller_metrics(np.array([weights], dtype=float), cluster, per_trace)
    repeated = controller_metrics(np.ones((1, 3)), cluster[drawn], per_trace.iloc[drawn])
    for name, value in resampled.items():
        np.testing.assert_allclose(value, repeated[name], err_msg=name)


def test_planted_hazards_give_the_reduction_and_lead_time_computed_by_hand():
    replay, _ = planted(n_prompts=20, foreseen=0.75, alarmed=0.2, horizon=16)
    found = overall(replay.run(ControllerParams(tau_low=0.5, tau_high=0.7, k_escalate=3, j_deescalate=4)))
    assert found["cbr_uncontrolled"] == 0.5
    assert found["reduction"] == pytest.approx(0.5 * 0.75)
    assert found["ceiling_share"] == 0.75
    assert found["false_positive_rate"] == 0.2
    assert found["lead_time_median"] == 16 - (3 - 1)
    assert found["accuracy_controlled"] == pytest.approx(0.5 + 0.5 * 0.75)
    # A false alarm is SAFE after tokens 16 to 32: 14 high ones and 3 calm ones.
    share = 5 / (10 + np.arange(40))
    calm, alarm, met = share.sum(), share.sum() - share[17:34].sum(), share[:17].sum()
    by_hand = (0.2 * alarm + 0.8 * calm + 0.75 * met + 0.25 * calm) / 2 / 40
    assert found["kv_saved_controlled"] == pytest.approx(by_hand)


eagerness = st.tuples(
    st.tuples(st.sampled_from([0.1, 0.3, 0.5]), st.sampled_from([0.1, 0.3, 0.5])).map(sorted),
    st.sampled_from([0.5, 0.7, 0.9]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted),
    st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted),
)


@settings(deadline=None)
@given(eagerness, st.integers(0, 2**32 - 1))
def test_the_more_eager_controller_is_safe_whenever_the_lazier_one_is_and_saves_no_more(settings, seed):
    (low, high), tau_high, (short, long), (soon, late) = settings
    rng = np.random.default_rng(seed)
    traces = recorded(TRACES, V2)
    hazard = rng.choice([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], size=(len(traces), 8)).astype(np.float32)
    hazard[np.arange(8) >= traces["n_tokens"].to_numpy()[:, None]] = np.nan
    eager = ControllerParams(tau_low=low, tau_high=tau_high, k_escalate=short, j_deescalate=late)
    lazy = ControllerParams(
        tau_low=high, tau_high=min(tau_high + 0.2, 1.0), k_escalate=long, j_deescalate=soon
    )
    safe = [run_controller(hazard, params) == State.SAFE for params in (eager, lazy)]
    assert not (safe[1] & ~safe[0]).any()
    more, less = (simulate(traces, states) for states in safe)
    assert (more["kv_saved_controlled"] <= less["kv_saved_controlled"] + 1e-12).all()
    assert (less["kv_saved_controlled"] <= less["kv_saved"] + 1e-12).all()
    assert overall(more)["false_positive_rate"] >= overall(less)["false_positive_rate"]


def test_a_prompt_without_its_uncompressed_trace_is_an_error():
    with pytest.raises(KvguardError, match="prompt b has no `none` trace"):
        recorded(TRACES.drop(index=3).reset_index(drop=True), V2)


def rows_of(lengths, ids):
    n = sum(lengths)
    t = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    nothing, onset = np.zeros((n, 1), dtype=np.float32), np.full(n, NO_ONSET, dtype=np.int32)
    return Rows(nothing, onset, np.repeat(ids, lengths).astype(np.int32), t)


def test_hazards_are_laid_out_by_trace_and_a_trace_that_lacks_tokens_is_an_error():
    traces = pd.DataFrame({"trace_id": [5, 2], "n_tokens": [3, 1]})
    hazard = np.arange(6, dtype=np.float32)
    rows = rows_of([1, 2, 3], [2, 9, 5])
    found = Replay.of(traces, rows, hazard)
    np.testing.assert_array_equal(found.hazard, [[3, 4, 5], [0, np.nan, np.nan]])
    with pytest.raises(KvguardError, match="trace 5 has 3 rows for 4 tokens; run `dvc repro featurize`"):
        Replay.of(traces.assign(n_tokens=[4, 1]), rows, hazard)
