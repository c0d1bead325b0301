"""Signal tables on tokens whose entropies are known."""

import numpy as np
import pandas as pd
import pytest

from by_hand import LONG, LOOP, judged, measured
from kvguard.studies.catastrophes.measure.signals import BEFORE, add_onset_entropy, add_signals, signal_ranges


def with_tokens(rows):
    """Traces and tokens from (prompt, compressor, ratio, catastrophes, onset, entropies)."""
    traces = judged([(*row[:3], True, row[3], None, len(row[5])) for row in rows])
    traces["trace_id"] = np.arange(len(rows), dtype=np.int32)
    traces["onset"] = pd.array([row[4] for row in rows], dtype="Int32")
    entropies = [np.asarray(row[5], dtype=np.float32) for row in rows]
    lengths = [len(values) for values in entropies]
    tokens = pd.DataFrame(
        {
            "trace_id": np.repeat(traces["trace_id"].to_numpy(), lengths),
            "t": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            "entropy": np.concatenate(entropies),
        }
    )
    return traces, tokens.assign(top1_prob=np.exp(-tokens["entropy"]))


def step(n, at, before, after=5.0):
    """n entropies: ``before`` in the BEFORE tokens that end at ``at``, ``after`` elsewhere."""
    values = np.full(n, after)
    values[max(at - BEFORE, 0) : at] = before
    return values


def test_ranges_pool_the_tokens_of_a_condition():
    traces, tokens = with_tokens(
        [
            ("a", "none", 0.0, [], None, [1.0]),
            ("a", "snapkv", 0.5, LOOP, 2, [0.5, 3.0, 1.0]),
            ("b", "none", 0.0, [], None, [2.0, 3.0]),
            ("b", "snapkv", 0.5, [], None, [0.25]),
        ]
    )
    ranges = signal_ranges(traces, tokens)
    assert ranges["mean_entropy"].tolist() == [2.0, 4.75 / 4]
    assert ranges["max_entropy"].tolist() == [3.0, 3.0]
    assert ranges["min_top1_prob"].tolist() == pytest.approx([np.exp(-3), np.exp(-3)])
    found = measured(traces, add_signals, tokens).loc["signals"]
    for name in ranges:
        assert found.xs(name, level="metric")["value"].to_dict() == pytest.approx(
            {"none": ranges[name].iloc[0], "snapkv@0.5": ranges[name].iloc[1]}
        )
    assert found.loc[("snapkv@0.5", "mean_entropy"), ["low", "high"]].tolist() == pytest.approx([0.25, 1.5])


def test_max_entropy_is_judged_by_its_auroc():
    peaks = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    traces, tokens = with_tokens(
        [
            (prompt, "knorm", 0.5, LOOP if prompt in "bd" else [], None, [peak])
            for prompt, peak in peaks.items()
        ]
        + [(prompt, "snapkv", 0.5, [], None, [9.0]) for prompt in peaks]
    )
    found = measured(traces, add_signals, tokens).loc["max_entropy"]["value"]
    assert found["knorm@0.5", "auroc"] == 3 / 4  # of the pairs (b, d) x (a, c) only b < c is out of order
    assert np.isnan(found["snapkv@0.5", "auroc"])
    assert found["overall", "auroc"] == 3 / 12


@pytest.mark.parametrize("before", [1.0, 3.0])
def test_entropy_before_an_onset_differs_from_healthy_traces_by_its_sign(before):
    traces, tokens = with_tokens(
        [
            row
            for prompt in "abcdef"
            for row in (
                (prompt, "none", 0.0, [], None, np.full(40, 9.0)),
                (prompt, "snapkv", 0.5, LOOP, 30, step(60, 30, before)),
                (prompt + "2", "snapkv", 0.5, [], None, np.full(40, 2.0)),
            )
        ]
    )
    found = measured(traces, add_onset_entropy, tokens).loc["onset_entropy"]
    for subject in ("overall", "looping"):
        assert found.loc[(subject, "before_onset"), "value"] == pytest.approx(before)
        assert found.loc[(subject, "matched"), "value"] == pytest.approx(2)
        assert found.loc[(subject, "difference")].tolist() == pytest.approx([before - 2] * 3)
        assert found.loc[(subject, "n_tokens"), "value"] == 6 * BEFORE
    assert np.isnan(found.loc[("non_termination", "difference"), "value"])
    assert found.loc[("non_termination", "n_tokens"), "value"] == 0


def test_healthy_tokens_are_matched_by_position_and_condition_and_else_taken_from_none():
    traces, tokens = with_tokens(
        [
            # Healthy ones of its condition reach token 24 only, uncompressed ones token 27: 5 + 3 of 10.
            ("a", "snapkv", 0.5, LOOP, 30, step(60, 30, 1.0)),
            ("b", "snapkv", 0.5, [], None, np.arange(25.0)),
            ("b", "none", 0.0, [], None, 100 + np.arange(28.0)),
            ("c", "knorm", 0.5, [], None, np.full(60, 50.0)),  # another condition: no match
            ("c", "none", 0.0, LONG, 29, np.full(60, 70.0)),  # not healthy
        ]
    )
    found = measured(traces, add_onset_entropy, tokens).loc["onset_entropy"]["value"]
    assert found["looping", "n_tokens"] == 8
    assert found["looping", "before_onset"] == 1
    expected = [20, 21, 22, 23, 24, 125, 126, 127]
    assert found["looping", "matched"] == pytest.approx(np.mean(expected))
    # Tokens 19..28 of the endless one: uncompressed healthy tokens reach 27.
    assert found["non_termination", "matched"] == pytest.approx(100 + np.mean(np.arange(19, 28)))


def test_an_onset_at_the_very_beginning_has_fewer_tokens_before_it():
    traces, tokens = with_tokens(
        [
            ("a", "snapkv", 0.5, LOOP, 4, step(20, 4, 1.0)),
            ("b", "snapkv", 0.5, LOOP, 0, np.full(20, 7.0)),
            ("c", "none", 0.0, [], None, np.full(20, 3.0)),
        ]
    )
    found = measured(traces, add_onset_entropy, tokens).loc["onset_entropy"]["value"]
    assert found["overall", "n_tokens"] == 4
    assert found["overall", "difference"] == -2


def test_without_a_catastrophe_nothing_is_compared():
    traces, tokens = with_tokens([("a", "none", 0.0, [], None, [1.0]), ("b", "snapkv", 0.5, [], None, [2.0])])
    found = measured(traces, add_onset_entropy, tokens).loc["onset_entropy"]["value"]
    assert found.xs("difference", level="metric").isna().all()
