"""The offline simulation on cases computed by hand."""

import numpy as np
import pandas as pd
import pytest

import synthetic
from kvguard.config import ControllerParams
from kvguard.errors import KvguardError
from kvguard.guard.simulate import NEVER, evaluate, first_safe, simulate, summarise
from kvguard.hazard.rows import Rows
from kvguard.hazard.train import train
from kvguard.schemas import check_table


def traces_table(rows):
    """Rows of (prompt, compressor, ratio, n_tokens, onset, correct); 5 of 10 prompt tokens are kept."""
    columns = ["prompt_id", "compressor", "ratio", "n_tokens", "onset", "correct"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(
        trace_id=np.arange(len(frame), dtype=np.int32),
        token_ids=[np.zeros(n, dtype=np.int32) for n in frame["n_tokens"]],
        catastrophes=[[] if pd.isna(onset) else ["looping"] for onset in frame["onset"]],
        onset=frame["onset"].astype("Int32"),
        correct=frame["correct"].astype("boolean"),
        n_prompt_tokens=10,
        n_kept_tokens=np.where(frame["compressor"] == "none", 10.0, 5.0),
    )


@pytest.fixture
def traces():
    return traces_table(
        [
            ("a", "none", 0.0, 4, None, True),
            ("a", "x", 0.5, 8, 3, False),  # SAFE in time: saved, right as the baseline
            ("a", "y", 0.5, 8, 3, False),  # SAFE at the onset: too late
            ("b", "none", 0.0, 4, None, False),
            ("b", "x", 0.5, 5, None, True),  # false alarm: wrong as the baseline
            ("b", "y", 0.5, 5, None, None),  # quiet, not scored
        ]
    )


SAFE_AT = np.array([NEVER, 1, 3, NEVER, 2, NEVER])


def test_only_a_switch_before_the_onset_takes_the_baselines_outcome(traces):
    found = simulate(traces, SAFE_AT)
    assert found["catastrophe"].tolist() == [False, True, True, False, False, False]
    assert found["catastrophe_controlled"].tolist() == [False, False, True, False, False, False]
    assert found["correct_controlled"].tolist()[:5] == [1, 1, 0, 0, 0]
    assert np.isnan(found["correct_controlled"][5])
    assert found["lead_time"].dropna().tolist() == [2.0]


def test_memory_saved_is_the_mean_over_steps_of_what_is_not_held(traces):
    found = simulate(traces, SAFE_AT)
    share = [5 / (10 + t) for t in range(8)]  # 1 - held / full while compressed
    assert found["kv_saved"].tolist() == pytest.approx(
        [0, np.mean(share), np.mean(share), 0, *[np.mean(share[:5])] * 2]
    )
    expected = [0, sum(share[:2]) / 4, sum(share[:4]) / 8, 0, sum(share[:3]) / 4, np.mean(share[:5])]
    assert found["kv_saved_controlled"].tolist() == pytest.approx(expected)


def test_the_summary_is_computed_by_hand_and_pools_compressed_conditions_only(traces):
    summary = summarise(simulate(traces, SAFE_AT)).set_index("compressor")
    check_table("summary", summary.reset_index(), "here")
    assert summary.loc["x", "cbr_uncontrolled"] == 0.5
    assert summary.loc["x", "cbr_controlled"] == 0.0
    assert summary.loc["x", "cbr_reduction_relative"] == 1.0
    assert summary.loc["x", "false_positive_rate"] == 1.0
    pooled = summary.loc["all"]
    assert pooled["n_traces"] == 4
    assert (pooled["cbr_uncontrolled"], pooled["cbr_controlled"]) == (0.5, 0.25)
    assert pooled["cbr_reduction"] == 0.25
    assert pooled["false_positive_rate"] == 0.5
    assert pooled["safe_rate"] == 0.75
    assert pooled["accuracy_uncontrolled"] == pytest.approx(1 / 3)  # one trace is not scored
    assert pooled["lead_time_median"] == 2.0
    assert np.isnan(summary.loc["none", "cbr_reduction_relative"])


def test_a_prompt_without_its_uncompressed_trace_is_an_error(traces):
    with pytest.raises(KvguardError, match="prompt b has no `none` trace"):
        simulate(traces.drop(index=3).reset_index(drop=True), SAFE_AT[[0, 1, 2, 4, 5]])


def rows_of(lengths, ids):
    n = sum(lengths)
    blank = np.zeros(n, dtype=bool)
    t = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return Rows(np.zeros((n, 1), dtype=np.float32), blank, blank, np.repeat(ids, lengths).astype(np.int32), t)


def test_safe_is_first_reached_when_the_high_run_is_long_enough():
    params = ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=2, j_deescalate=1)
    hazard = np.array([0.9, 0.9, 0.1, 0.9, 0.9, 0.7, 0.1, 0.7, 0.7, 0.1], dtype=np.float32)
    found = first_safe(np.array([5, 2, 9]), rows_of([5, 1, 4], [2, 9, 5]), hazard, params)
    assert found.tolist() == [2, 1, NEVER]
    with pytest.raises(KvguardError, match="trace 7 has no rows"):
        first_safe(np.array([7]), rows_of([1], [2]), hazard[:1], params)


def test_a_planted_hazard_is_foreseen_by_nearly_the_whole_horizon(tmp_path):
    traces = synthetic.build(tmp_path, n_prompts=24)
    features = tmp_path / "features.parquet"
    training = train(features, traces, synthetic.TRAIN, seed=17)
    found = evaluate(features, traces, training.split, training.model, synthetic.CONTROLLER)
    overall = found.metrics["overall"]
    assert set(found.per_trace["trace_id"]) == set(training.test.trace_id)
    assert overall["cbr_uncontrolled"] > 0.2
    assert overall["cbr_controlled"] == 0  # no baseline fails, and every onset is announced 32 tokens ahead
    assert overall["cbr_reduction_relative"] == 1
    assert overall["lead_time_median"] == synthetic.FEATURIZE.horizon - (synthetic.CONTROLLER.k_escalate - 1)
    assert overall["accuracy_controlled"] == 1
    assert 0 < overall["kv_saved_controlled"] < overall["kv_saved_uncontrolled"]
