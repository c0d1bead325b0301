"""The report's tables: what stands in them, as Markdown and as LaTeX, and what is said of what is missing."""

import re
from dataclasses import replace

import made_up
import numpy as np
import pandas as pd
import pytest

from kvguard.judging.onsets import RULES
from kvguard.report.markup import as_latex, as_markdown, escape_latex
from kvguard.report.numbers import Cell, Group, Kind, Table
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.chapter.catalogue import tables
from kvguard.studies.catastrophes.chapter.findings import sentences, tiles
from kvguard.studies.catastrophes.chapter.pipeline import Pipeline, numbers_of
from kvguard.studies.catastrophes.protocols import PROTOCOLS


def number(pipeline, *key):
    return pipeline.numbers.get(*key).value


def test_every_number_of_a_full_run_is_in_its_table():
    found = tables(made_up.pipeline())
    assert len(found) == 33
    for name, table in found.items():
        measured = [group for group in table.groups if group.rows]
        assert len(measured) == 2, name
        for group in measured:
            for row in group.rows:
                assert len(row) == len(table.heads), name


def test_a_cell_holds_the_number_and_its_interval():
    pipeline = made_up.pipeline()
    value = number(pipeline, "measure", "reference", "", "outcomes", "snapkv@0.5", "cbr")
    table = tables(pipeline)["experiment-001"]
    row = next(row for row in table.groups[0].rows if row[0] == "snapkv@0.5")
    cell = row[table.heads.index("CBR, %")]
    assert cell.value == f"{value * 100:.1f}"
    assert cell.interval == f"[{value * 100 - 5:.1f}, {value * 100 + 5:.1f}]"


def test_the_protocols_of_the_settings_stand_side_by_side():
    pipeline = made_up.pipeline()
    protocols = pipeline.params.protocols
    table = tables(pipeline)["protocols"]
    row = next(row for row in table.groups[0].rows if row[0] == "AUROC, pre-onset tokens")
    claims = [
        number(pipeline, "train", "reference", protocol, "predictor", "pre_onset", "auroc")
        for protocol in protocols
    ]
    assert table.heads == ("number", *(f"protocol {protocol}" for protocol in protocols))
    assert [cell.value for cell in row[1:]] == [f"{claim:.3f}" for claim in claims]
    for protocol in protocols:
        assert PROTOCOLS[protocol].about in table.note


def test_a_fourth_protocol_is_one_entry(monkeypatch):
    """Its name, its words and its numbers are in every table, sentence and figure's heading that has them."""
    fourth = replace(PROTOCOLS["v3"], name="v4", failure="XFR", about="v4 is another one.")
    monkeypatch.setitem(PROTOCOLS, "v4", fourth)
    params = made_up.PARAMS.with_value("protocols", ["v1", "v2", "v3", "v4"])
    frames = [made_up.results(stage, "reference", "v4", seed=4) for stage in ("train", "evaluate")]
    found = Pipeline(
        params, numbers_of(pd.concat([*made_up.stages("reference"), *frames], ignore_index=True))
    )
    made = tables(found)
    assert made["protocols"].heads[-1] == "protocol v4"
    assert "v4 is another one." in made["protocols"].note
    assert "CFR in v1, CBR in v2 and v3, XFR in v4" in made["protocols"].note
    assert "XFR in v4" in made["controller"].note
    for name in ("predictor", "matched", "alarms", "controller", "operating-points", "horizons"):
        assert "v4" in {row[0] for row in made[name].groups[0].rows}, name
    assert "and v4 finds an AUROC of" in " ".join(sentences(found, "reference"))


def test_what_a_protocol_lacks_is_a_dash():
    frame = pd.concat(made_up.stages("reference"), ignore_index=True)
    of_v1 = (frame["protocol"] == "v1") & frame["metric"].isin(["matched_auroc", "delay_median"])
    rows = {row[0]: row for row in tables(made_up.pipeline(frame[~of_v1]))["protocols"].groups[0].rows}
    for label in ("matched AUROC (a clock: 0.5)", "alarm after the onset, median"):
        assert rows[label][1].value == "–"
        assert rows[label][2].value != "–"


def test_results_of_before_the_onsets_say_that_these_are_not_measured():
    frame = pd.concat(made_up.stages("reference"), ignore_index=True)
    new = frame["table"].str.contains("alarm") | frame["table"].eq("onsets")
    new |= frame["metric"].str.contains("matched|clock|accuracy_last|position_only$") & frame["stage"].ne(
        "ablate"
    )
    new |= frame["subject"].isin(["pre_onset_looping", "pre_onset_non_termination"])
    pipeline = made_up.pipeline(frame[~new])
    made = tables(pipeline)
    assert [made[name].groups[0].command for name in ("onsets", "alarms", "live-alarms")] == [
        "dvc repro measure", "dvc repro score", "dvc repro intervals",
    ]  # fmt: skip
    assert {row[2].value for row in made["answers"].groups[0].rows} == {"–"}
    told = " ".join(sentences(pipeline, "reference"))
    for word in ("one index", "first complete answers", "begin so", "median alarm"):
        assert word not in told


def test_accuracy_by_the_first_answer_stands_beside_that_by_the_last():
    pipeline = made_up.pipeline()
    first, last = (
        number(pipeline, "measure", "reference", "", "outcomes", "snapkv@0.5", name)
        for name in ("accuracy", "accuracy_last")
    )
    row = next(row for row in tables(pipeline)["answers"].groups[0].rows if row[0] == "snapkv@0.5")
    written = [f"{value * 100:.1f}" for value in (first, last, first - last)]
    assert [cell.value for cell in row[1:]] == written
    assert "accuracy differs in 4 of 4 conditions, most in " in " ".join(sentences(pipeline, "reference"))


def test_every_rule_of_the_judging_has_a_column():
    table = tables(made_up.pipeline())["onsets"]
    assert len(table.heads) == 2 + len(RULES)
    assert "–" not in {cell.value for group in table.groups for row in group.rows for cell in row[1:]}


def test_live_alarms_stand_by_policy():
    rows = tables(made_up.pipeline())["live-alarms"].groups[0].rows
    assert [row[:2] for row in rows[:3]] == [("loop detector", kind) for kind in ("all", "loops", "run-ons")]
    assert {row[0] for row in rows} == {"guard: rollback", "stop at the answer", "loop detector"}


def test_an_accuracy_that_does_not_change_is_not_told_to():
    frame = pd.concat(made_up.stages("reference"), ignore_index=True)
    frame.loc[frame["metric"].isin(["accuracy", "accuracy_last"]), "value"] = 0.5
    told = " ".join(sentences(made_up.pipeline(frame), "reference"))
    assert "accuracy differs in 0 of 4 conditions." in told


@pytest.mark.parametrize(
    ("delay", "said"),
    [
        (Interval(12.0, 9.0, 15.0), "12 tokens after the onset [9, 15]"),
        (Interval(-20.0, -24.0, -12.0), "20 tokens before the onset [-24, -12]"),
        (Interval(0.0, -1.0, 1.0), "at the onset [-1, 1]"),
    ],
)
def test_the_alarm_is_placed_before_or_after_the_onset(delay, said):
    frame = pd.concat(made_up.stages("reference"), ignore_index=True)
    chosen = frame["table"].eq("alarms-balanced") & frame["metric"].eq("delay_median")
    frame.loc[chosen, ["value", "low", "high"]] = [delay.value, delay.low, delay.high]
    told = " ".join(sentences(made_up.pipeline(frame), "reference"))
    assert f"Simulated on test prompts, the median alarm comes {said}" in told
    far = "is not met" if delay.value < -16 else "is met"
    assert f"the aim of at most 16 tokens {far}." in told


def test_the_forecast_stands_beside_each_live_policy_that_it_is_about():
    pipeline = made_up.pipeline()
    table = tables(pipeline)["live-policies"]
    place = table.heads.index("CBR, simulated, %")
    rows = {row[:2]: row[place].value for row in table.groups[0].rows}
    forecast = number(pipeline, "live-validate", "reference", "", "gap", "rollback", "cbr_simulated")
    assert rows["prefill", "guard: rollback"] == f"{forecast * 100:.1f}"
    assert rows["decoding", "guard: rollback"] == rows["prefill", "entropy trigger"] == "–"


def test_live_rows_are_labelled_by_policy_and_condition():
    found = tables(made_up.pipeline())
    gap = [row[0] for row in found["live-gap"].groups[0].rows]
    assert gap[1:4] == ["guard: rollback", "guard: restart", "guard: restore, streaming_llm@0.75"]
    conditions = {row[1] for row in found["live-by-condition"].groups[0].rows}
    assert conditions == {"streaming_llm@0.75", "snapkv@0.875"}
    assert [row[0] for row in found["live-switch"].groups[0].rows] == made_up.OFFSETS


@pytest.mark.parametrize("name", ["experiment-001", "predictor", "controller", "protocols", "live-policies"])
def test_models_that_were_not_run_say_so_with_the_command(name):
    table = tables(made_up.pipeline())[name]
    for model in ("qwen3b", "qwen7b", "llama8b", "gemma12b"):
        group = next(group for group in table.groups if group.label == model)
        assert group.command == f"dvc exp run -S model={model}"
        assert f"| {model} | not measured: `{group.command}` |" in as_markdown(table)
        assert rf"\textit{{{model}}}: not measured, \texttt{{{group.command}}}" in as_latex(table)


def test_a_stage_that_was_not_run_says_so_with_the_command():
    pipeline = made_up.pipeline(made_up.results("measure", "reference"))
    commands = {name: table.groups[0].command for name, table in tables(pipeline).items()}
    assert commands["experiment-001"] == ""
    assert commands["predictor"] == "dvc repro score"
    assert commands["ablation-features"] == "dvc repro intervals"
    assert commands["transfer"] == "dvc repro intervals"
    assert commands["matched"] == commands["alarms"] == commands["protocols"] == "dvc repro score"
    assert {commands[name] for name in commands if name.startswith("live-")} == {"dvc repro intervals"}


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        (Kind.PERCENT, 0.1234, "12.3"),
        (Kind.PERCENT, -0.0001, "0.0"),
        (Kind.FRACTION, 0.98765, "0.988"),
        (Kind.COUNT, 12500.0, "12,500"),
        (Kind.P, 0.00001, "< 0.0001"),
        (Kind.SMALL, np.inf, "∞"),
        (Kind.FRACTION, np.nan, "–"),
    ],
)
def test_numbers_are_written_in_their_kind(kind, value, written):
    assert kind.write(value) == written


def test_a_number_without_interval_has_none():
    assert Cell(Interval(0.5, np.nan, np.nan), Kind.PERCENT).interval == ""


def test_latex_prints_what_markdown_shows():
    assert escape_latex(r"a_b & 5 % \ {x} $ # ^ ~ < →") == (
        r"a\_b \& 5 \% \textbackslash{} \{x\} \$ \# \textasciicircum{} \textasciitilde{} \textless{} $\to$"
    )


@pytest.mark.parametrize("name", list(tables(made_up.pipeline())))
def test_latex_tables_have_no_bare_special_character(name):
    body = as_latex(tables(made_up.pipeline())[name]).split("\n", 1)[1]
    assert not re.search(r"(?<!\\)[_%#~^]", body)
    assert body.isascii()


def test_a_pipe_in_a_label_does_not_break_a_markdown_row():
    table = Table("t", "T", "", ("a",), 1, (Group("m", (("x|y",),)),))
    assert as_markdown(table).splitlines()[-1] == r"| m | x\|y |"


def test_sentences_hold_numbers_of_the_results_only():
    pipeline = made_up.pipeline()
    cbr = number(pipeline, "measure", "reference", "", "outcomes", "overall", "cbr")
    told = " ".join(sentences(pipeline, "reference"))
    assert f"{cbr * 100:.1f} %" in told
    assert {tile.label for tile in tiles(pipeline, "reference")} >= {
        "CBR uncompressed",
        "KV memory still saved",
    }


def test_stages_that_were_not_run_are_not_spoken_of():
    pipeline = made_up.pipeline(made_up.results("measure", "reference"))
    told = " ".join(sentences(pipeline, "reference"))
    assert "compressed conditions" in told
    assert "AUROC" not in told
    assert not sentences(pipeline, "reference_llama")
    assert not tiles(pipeline, "reference_llama")


def test_more_and_fewer_catastrophes_are_told_apart():
    frame = made_up.results("measure", "reference")
    tested = frame["table"].eq("against_none")
    frame.loc[tested & frame["metric"].eq("cbr_p_holm"), "value"] = [0.01, 0.01, 0.01, 0.9]
    frame.loc[tested & frame["metric"].eq("cbr_difference"), "value"] = [0.2, -0.1, 0.3, 0.4]
    told = " ".join(sentences(made_up.pipeline(frame), "reference"))
    assert (
        "3 of 4 conditions differ in CBR at 5 % after Holm's correction: 2 have more catastrophes, 1 fewer"
        in told
    )
