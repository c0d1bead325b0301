"""When alarms come and what is generated in vain, by hand and resample by resample."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.guard.controller import ControllerParams
from kvguard.judging.catastrophes import NO_ONSET
from kvguard.stats.bootstrap import resample_weights
from kvguard.store.results import Results
from kvguard.studies.catastrophes.evaluate.simulate import NEVER
from kvguard.studies.catastrophes.score.alarms import (
    Alarms,
    add_alarms,
    delay_bins,
    delay_metrics,
    in_vain,
    vain_metrics,
)
from recordings import planted

#          early, at the onset, late, never, run-on far too early, healthy with an alarm, healthy
PROMPT = ["b", "b", "a", "a", "c", "c", "a"]
N_TOKENS = [80, 90, 100, 60, 200, 50, 20]
ONSET = [40, 30, 20, 50, 100, None, None]
SAFE_AT = [30, 30, 40, NEVER, 3, 10, NEVER]
KIND = ["looping", "looping", "looping", "looping", "non_termination", None, None]

alarmed = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(-1, 59), st.integers(-1, 59), st.booleans()),
    min_size=1,
    max_size=30,
)


@pytest.fixture
def alarms():
    traces = pd.DataFrame({"prompt_id": PROMPT, "n_tokens": N_TOKENS, "onset": pd.array(ONSET, "Int32")})
    return Alarms.of(traces, np.array(KIND, dtype=object), np.array(SAFE_AT))


def sample(found):
    return {name: values[0] for name, values in found.items()}


def test_the_delay_is_negative_in_advance_and_undefined_without_an_alarm_or_an_onset(alarms):
    np.testing.assert_array_equal(alarms.delay, [-10, 0, 20, np.nan, -97, np.nan, np.nan])


@pytest.mark.parametrize("kind", ["answer", None])
def test_an_onset_of_no_known_kind_is_never_passed_over(alarms, kind):
    kinds = np.array([kind, *KIND[1:]], dtype=object)
    with pytest.raises(AssertionError, match="known kind"):
        replace(alarms, kind=kinds)


def test_delays_by_hand(alarms):
    once = np.ones((1, 3))
    found = sample(delay_metrics(once, alarms, alarms.failing))
    assert found == {
        "n_failing": 5,
        "delay_q25": -97,
        "delay_median": -10,
        "delay_q75": 0,
        "close": 2 / 5,
        "after_onset": 2 / 5,
        "never": 1 / 5,
    }
    loops = sample(delay_metrics(once, alarms, alarms.by_kind()["looping"]))
    assert (loops["delay_median"], loops["n_failing"], loops["never"]) == (0, 4, 1 / 4)


def test_tokens_in_vain_by_hand(alarms):
    vain = in_vain(alarms.n_tokens, alarms.onset, alarms.safe_at)
    assert vain.tolist() == [0, 1, 21, 10, 0, 0, 0]
    found = sample(vain_metrics(np.ones((1, 3)), alarms, alarms.failing))
    assert found == {
        "tokens_in_vain": 32 / 5,
        "share_in_vain": 32 / 600,
        "tokens_in_vain_unguarded": (40 + 60 + 80 + 10 + 100) / 5,
        "share_in_vain_unguarded": 290 / 600,
    }
    run_ons = sample(vain_metrics(np.ones((1, 3)), alarms, alarms.by_kind()["non_termination"]))
    assert (run_ons["tokens_in_vain"], run_ons["share_in_vain_unguarded"]) == (0, 100 / 600)


def test_what_a_live_guard_cut_short_counts_as_far_as_its_alarm():
    # Rolled back to the onset and ended soon: five tokens in vain, whatever the length in the end.
    assert in_vain(np.array([12]), np.array([10]), np.array([14])).tolist() == [5]


@settings(max_examples=40)
@given(alarmed, st.integers(0, 99))
def test_every_resample_is_that_of_the_traces_it_draws(rows, seed):
    prompt, extra, onset, safe_at, loops = (np.array(column) for column in zip(*rows, strict=True))
    n_tokens = np.maximum(onset, safe_at) + extra
    kind = np.where(onset == NO_ONSET, None, np.where(loops, "looping", "non_termination"))
    alarms = Alarms(prompt, n_tokens, onset, kind, safe_at)
    weights = resample_weights(4, 6, seed)
    for chosen in alarms.by_kind().values():
        found = delay_metrics(weights, alarms, chosen) | vain_metrics(weights, alarms, chosen)
        for resample, drawn in enumerate(weights):
            again = np.repeat(np.arange(len(rows)), drawn[prompt].astype(int))
            expected = expected_of(alarms, again, again[chosen[again]])
            for name, value in expected.items():
                assert found[name][resample] == pytest.approx(value, nan_ok=True), name


def expected_of(alarms, drawn, failing):
    delay = alarms.delay[failing]
    known = delay[~np.isnan(delay)]
    lengths = alarms.n_tokens[drawn].sum()
    end = np.where(alarms.alarmed, alarms.safe_at + 1, alarms.n_tokens)
    vain = np.maximum(end - alarms.onset, 0)[failing]

    def quantile(q):
        return np.quantile(known, q, method="inverted_cdf") if len(known) else np.nan

    def mean(values):
        return values.mean() if len(values) else np.nan

    return {
        "n_failing": len(failing),
        **{f"delay_{name}": quantile(q) for name, q in (("q25", 0.25), ("median", 0.5), ("q75", 0.75))},
        "close": mean(np.abs(delay) <= 16),
        "after_onset": mean(delay >= 0),
        "never": mean(np.isnan(delay)),
        "tokens_in_vain": mean(vain),
        "share_in_vain": vain.sum() / lengths if lengths else np.nan,
    }


def test_bins_hold_every_failing_trace_once_and_leave_no_gap(alarms):
    bins = delay_bins(alarms)
    assert sum(count for counts in bins.values() for count in counts.values()) == 5
    assert list(bins) == [str(low) for low in range(-104, 24, 8)] + ["never"]
    assert bins["-104"] == {"looping": 0, "non_termination": 1}
    assert bins["-16"]["looping"] == bins["0"]["looping"] == bins["16"]["looping"] == 1
    assert bins["never"] == {"looping": 1, "non_termination": 0}


def test_without_a_failure_or_an_alarm_there_is_nothing_to_time(alarms):
    once = np.ones((1, 3))
    none = np.zeros(7, dtype=bool)
    nobody = delay_metrics(once, alarms, none) | vain_metrics(once, alarms, none)
    assert nobody["n_failing"] == [0]
    assert nobody["share_in_vain"] == [0]
    undefined = ("delay_median", "close", "after_onset", "never", "tokens_in_vain")
    assert np.isnan([nobody[name][0] for name in undefined]).all()
    silent = Alarms(alarms.prompt, alarms.n_tokens, alarms.onset, alarms.kind, np.full(7, NEVER))
    assert delay_metrics(once, silent, silent.failing)["never"] == [1]
    assert list(delay_bins(silent)) == ["never"]


def test_of_a_simulated_controller_the_tables_say_what_was_planted():
    replay, _ = planted(n_prompts=20, foreseen=0.75, alarmed=0.2, n_tokens=40, onset=30, horizon=16)
    setting = ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=1, j_deescalate=8)
    test = replay.compressed
    per_trace = test.run(setting)
    kind = np.where(test.traces["looping"], "looping", None)
    results = Results("evaluate", "tiny", "v2")
    alarms = Alarms.of(test.traces, kind, per_trace["safe_at"].to_numpy())
    add_alarms(results, "balanced", alarms, resample_weights(20, 10, 0))
    values = results.frame.set_index(["table", "subject", "metric"])["value"].sort_index()
    overall = values["alarms-balanced", "overall"]
    lead = per_trace["lead_time"].median()
    assert overall["delay_median"] == -lead < 0
    assert (overall["n_failing"], overall["never"], overall["after_onset"]) == (20, 0.25, 0)
    assert overall["tokens_in_vain"] == 0.25 * 10
    assert overall["share_in_vain_unguarded"] == 20 * 10 / (40 * 40)
    assert values["alarms-balanced", "looping"].equals(overall)
    assert values["alarms-balanced", "non_termination"]["n_failing"] == 0
    assert values["alarm_bins-balanced", "never", "looping"] == 5
