"""The report's tables: what stands in them, as Markdown and as LaTeX, and what is said of what is missing."""

import re

import made_up
import numpy as np
import pytest

from kvguard.report.markup import as_latex, as_markdown, escape_latex
from kvguard.report.numbers import Cell, Group, Kind, Table
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.chapter.catalogue import tables
from kvguard.studies.catastrophes.chapter.findings import sentences, tiles


def number(pipeline, *key):
    return pipeline.numbers.get(*key).value


def test_every_number_of_a_full_run_is_in_its_table():
    found = tables(made_up.pipeline())
    assert len(found) == 26
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


def test_v1_and_v2_stand_side_by_side():
    pipeline = made_up.pipeline()
    table = tables(pipeline)["protocols"]
    row = next(row for row in table.groups[0].rows if row[0] == "AUROC, pre-onset tokens")
    claims = [
        number(pipeline, "train", "reference", protocol, "predictor", "pre_onset", "auroc")
        for protocol in ("v1", "v2")
    ]
    assert table.heads == ("number", "protocol v1", "protocol v2")
    assert [cell.value for cell in row[1:]] == [f"{claim:.3f}" for claim in claims]


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
