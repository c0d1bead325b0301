"""What is said of the live guard follows the numbers: aims met and missed, baselines beaten and not."""

import made_up
import pandas as pd
import pytest

from kvguard.stats.bootstrap import UNDEFINED, Interval
from kvguard.studies.catastrophes.chapter.findings import sentences
from kvguard.studies.catastrophes.chapter.live_findings import live_headline, live_sentences, verdict
from kvguard.studies.catastrophes.chapter.pipeline import numbers_of
from kvguard.studies.catastrophes.protocols import HEADLINE

MODEL = "reference"
ESTIMATE = "is met by the estimate, not by its whole interval"
BEATEN = "rollback has the lower CBR, and the other saves no more memory"
PREFILL = "prefill: compressed once, after the prefill"


def numbers(**changed):
    """Made-up live numbers; ``rollback__cbr=Interval(...)`` changes one of the prefill regime."""
    frame = pd.concat([made_up.results("live-validate", MODEL, HEADLINE), made_up.latency(MODEL)])
    frame = frame.reset_index(drop=True)
    for name, found in {
        "uncompressed__cbr": Interval(0.1, 0.0, 0.2),
        "static__cbr": Interval(0.6, 0.5, 0.7),
        **changed,
    }.items():
        subject, _, metric = name.partition("__")
        chosen = (
            frame["table"].isin(["policies-prefill", "gap"])
            & frame["subject"].eq(subject)
            & frame["metric"].eq(metric)
        )
        assert chosen.any(), name
        frame.loc[chosen, ["value", "low", "high"]] = [found.value, found.low, found.high]
    return numbers_of(frame)


def told(found):
    return " ".join(live_sentences(found, MODEL)[PREFILL])


@pytest.mark.parametrize(
    ("found", "bar", "is_ceiling", "said"),
    [
        (Interval(0.05, 0.01, 0.09), 0.1, True, "the aim of at most 10 % is met"),
        (Interval(0.05, 0.01, 0.2), 0.1, True, f"the aim of at most 10 % {ESTIMATE}"),
        (Interval(0.15, 0.05, 0.2), 0.1, True, "the aim of at most 10 % is not met"),
        (Interval(0.97, 0.96, 0.98), 0.95, False, "the aim of at least 95 % is met"),
        (Interval(0.97, 0.9, 0.98), 0.95, False, f"the aim of at least 95 % {ESTIMATE}"),
        (Interval(0.9, 0.8, 0.98), 0.95, False, "the aim of at least 95 % is not met"),
    ],
)  # fmt: skip
def test_an_aim_is_met_surely_by_the_estimate_or_not(found, bar, is_ceiling, said):
    assert verdict(found, bar, is_ceiling) == said


def test_the_rescue_is_judged_by_the_share_that_is_left():
    missed = told(numbers(rollback__residual_cbr=Interval(0.3, 0.2, 0.4)))
    assert "30.0 % [20.0, 40.0] are left with rollback: the aim of at most 10 % is not met." in missed
    reached = told(numbers(rollback__residual_cbr=Interval(0.03, -0.01, 0.07)))
    assert "3.0 % [-1.0, 7.0] are left with rollback: the aim of at most 10 % is met." in reached


def test_what_restarting_leaves_of_the_lost_accuracy_is_told_beside_it():
    said = told(
        numbers(
            uncompressed__accuracy=Interval(0.9, 0.9, 0.9),
            static__accuracy=Interval(0.5, 0.5, 0.5),
            rollback__residual_accuracy=Interval(0.8, 0.7, 0.9),
            restart__residual_accuracy=Interval(0.02, 0.01, 0.03),
        )
    )
    assert "Judged by the first complete answer, 90.0 % [90.0, 90.0] are right uncompressed" in said
    assert "of this loss stay 80.0 % [70.0, 90.0] with guard: rollback, " in said
    assert "2.0 % [1.0, 3.0] with guard: restart and " in said


def test_answers_lost_by_running_on_are_judged_by_the_last_answer():
    found = {
        "uncompressed__accuracy_last": Interval(0.9, 0.9, 0.9),
        "static__accuracy_last": Interval(0.3, 0.3, 0.3),
        "rollback__residual_accuracy_last": Interval(0.7, 0.6, 0.8),
        "stop__residual_accuracy_last": Interval(0.1, 0.0, 0.2),
    }
    said = told(numbers(**found))
    assert "Half of it is to come back: with rollback the aim of at most 50 % is not met" in said
    assert "and with stop the aim of at most 50 % is met." in said


def test_an_accuracy_that_compression_does_not_cost_is_not_brought_back():
    same = {f"{policy}__accuracy": Interval(0.9, 0.9, 0.9) for policy in ("uncompressed", "static")}
    said = told(numbers(**same))
    assert "compressed without a guard: no right answers are lost on these prompts." in said


@pytest.mark.parametrize(
    ("difference", "word", "verdict"),
    [
        (Interval(0.05, 0.02, 0.08), "lower than", "rollback beats it"),
        (Interval(0.0, -0.01, 0.01), "not distinguishable from", "rollback does not beat it"),
        (Interval(0.0, 0.0, 0.0), "not distinguishable from", "rollback does not beat it"),
        (Interval(-0.05, -0.08, -0.02), "higher than", "rollback does not beat it"),
    ],
)
def test_a_guard_beats_a_stop_string_only_by_a_lower_cbr(difference, word, verdict):
    found = numbers(stop_at_answer__cbr_minus_rollback=difference)
    for said in (told(found), " ".join(live_headline(found, MODEL))):
        assert f"The CBR with rollback is {word} that of the stop string" in said
        assert f"): {verdict}." in said


def test_the_action_stop_is_held_against_the_stop_string_too():
    said = told(numbers(stop__cbr_minus_stop_at_answer=Interval(0.02, 0.01, 0.03)))
    assert "The CBR with stop is higher than that of the stop string" in said
    assert "by one fit of the hazard): stop does not beat it." in said


def test_without_the_stop_string_nothing_is_said_of_it():
    frame = made_up.results("live-validate", MODEL, HEADLINE)
    assert "stop string" not in told(numbers_of(frame[~frame["subject"].str.startswith("stop_at_answer")]))


def test_compression_that_adds_nothing_leaves_nothing_to_rescue():
    said = told(numbers(static__cbr=Interval(0.1, 0.0, 0.2)))
    assert "nothing to rescue" in said
    assert "are left with rollback" not in said


def test_false_alarms_and_the_saving_on_healthy_traces_are_judged():
    said = told(
        numbers(
            rollback__false_alarm_rate=Interval(0.02, 0.01, 0.03),
            rollback__healthy_saving_kept=Interval(0.9, 0.8, 0.94),
        )
    )
    assert "SAFE is seen in 2.0 % [1.0, 3.0]" in said
    assert "the aim of at most 5 % is met." in said
    kept = "On those traces 90.0 % [80.0, 94.0] of the memory saving is kept"
    assert f"{kept}: the aim of at least 95 % is not met." in said


@pytest.mark.parametrize(
    ("cbr", "saved", "said"),
    [
        (Interval(0.1, 0.05, 0.15), Interval(-0.02, -0.03, -0.01), BEATEN),
        (Interval(0.1, 0.05, 0.15), Interval(1e-17, 1e-17, 1e-17), BEATEN),
        (Interval(0.1, 0.05, 0.15), Interval(0.2, 0.1, 0.3), "rollback has the lower CBR, but not at"),
        (Interval(0.1, -0.01, 0.2), Interval(0.0, 0.0, 0.0), "their CBR cannot be told apart"),
        (Interval(-0.1, -0.2, 0.01), Interval(0.0, 0.0, 0.0), "their CBR cannot be told apart"),
        (Interval(-0.1, -0.2, -0.05), Interval(0.0, 0.0, 0.0), "rollback has the higher CBR"),
    ],
)  # fmt: skip
def test_a_baseline_is_beaten_only_by_a_lower_cbr_at_no_more_memory(cbr, saved, said):
    differences = {"entropy__cbr_minus_rollback": cbr, "entropy__kv_saved_minus_rollback": saved}
    found = numbers(rollback_fits__cbr=Interval(0.1, 0.0, 0.2), **differences)
    assert f"Against entropy trigger: {said}" in told(found)
    assert "Against loop detector, at equal memory: " in told(found)
    assert told(found).count("over prompts and over fits of the hazard") == 1


def test_without_repeated_fits_no_order_of_triggers_is_told():
    frame = made_up.results("live-validate", MODEL, HEADLINE)
    said = told(numbers_of(frame[frame["subject"] != "rollback_fits"]))
    assert "Which trigger is better here cannot be told" in said
    assert "Against" not in said
    assert "by one fit of the hazard" in said


@pytest.mark.parametrize(
    ("gap", "word"),
    [
        (Interval(0.2, 0.1, 0.3), "higher than"),
        (Interval(-0.2, -0.3, -0.1), "lower than"),
        (Interval(0.0, -0.1, 0.1), "not distinguishable from"),
    ],
)
def test_the_forecast_stands_beside_the_live_result(gap, word):
    found = numbers(rollback__gap=gap, rollback__cbr_simulated=Interval(0.123, 0.1, 0.2))
    for said in (told(found), " ".join(live_headline(found, MODEL))):
        assert "The offline simulation of the same prompts says 12.3 % [10.0, 20.0]" in said
        assert f"the live CBR with rollback is {word} that" in said


def test_the_switch_curve_is_told_at_its_ends_and_at_the_onset():
    frame = made_up.results("live-validate", MODEL, HEADLINE)
    recovered = frame["table"].eq("switch") & frame["metric"].eq("recovered")
    for offset, value in (("128", 0.91), ("0", 0.42), ("-8", 0.11)):
        frame.loc[recovered & frame["subject"].eq(offset), ["value", "low", "high"]] = value
    said = " ".join(live_sentences(numbers_of(frame), MODEL)["forecast, moment and time"])
    assert "91.0 % [91.0, 91.0] of them 128 tokens before the onset" in said
    assert "42.0 % [42.0, 42.0] of them at the onset" in said
    assert "11.0 % [11.0, 11.0] of them 8 tokens after the onset" in said


def test_overhead_is_judged():
    said = " ".join(live_sentences(numbers(), MODEL)["forecast, moment and time"])
    assert "guarding adds 5.0 % [4.0, 6.0]" in said
    assert "at most 5 % is met by the estimate, not by its whole interval. One restore takes 40.5 ms." in said


def test_prompts_that_broke_are_counted():
    frame = made_up.results("live-validate", MODEL, HEADLINE)
    for used, said in ((398, ["2 of 400 prompts are left out"]), (400, [])):
        for name, value in (("n_prompts", 400), ("n_used", used)):
            frame.loc[frame["metric"].eq(name), "value"] = value
        lines = live_sentences(numbers_of(frame), MODEL)["forecast, moment and time"]
        assert [line.partition(" of all this")[0] for line in lines if "left out" in line] == said


def test_undefined_numbers_are_not_spoken_of():
    frame = made_up.results("live-validate", MODEL, HEADLINE)
    frame[["value", "low", "high"]] = [UNDEFINED.value, UNDEFINED.low, UNDEFINED.high]
    assert live_sentences(numbers_of(frame), MODEL) == {}


def test_without_live_results_the_forecast_says_which_command_measures_them():
    with_live, without = (
        " ".join(sentences(made_up.pipeline(*frames), MODEL))
        for frames in ((), (made_up.results("evaluate", MODEL, HEADLINE),))
    )
    assert "the live effect is not measured: run `dvc repro intervals`" in without
    assert "not measured" not in with_live
    assert "Live, on fresh prompts" in with_live
