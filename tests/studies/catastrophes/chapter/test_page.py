"""The HTML report as text: safe, whole, small, and the same each time. test_browser.py opens it."""

import re

import made_up
import pytest

from kvguard.report import page
from kvguard.studies.catastrophes.chapter import sections
from kvguard.studies.catastrophes.chapter.catalogue import tables
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS


def render(pipeline, explorers=(), unexplored=()):
    return page.render([sections.chapter(pipeline, tables(pipeline), list(explorers), list(unexplored))])


def without_scripts(text):
    return re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_every_table_and_every_chapter_is_in_the_page(page_path):
    text = page_path.read_text()
    found = tables(made_up.pipeline())
    assert sorted(re.findall(r'id="table-([\w-]+)"', text)) == sorted(found)
    for anchor in re.findall(r'<a href="#([\w-]+)"', text):
        assert f'id="{anchor}"' in text


def test_the_page_asks_nothing_of_the_network(page_path):
    text = page_path.read_text()
    assert "default-src 'none'" in text
    markup = without_scripts(text)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', markup)
    assert "@import" not in markup


def test_the_page_stays_under_ten_megabytes(page_path):
    assert page_path.stat().st_size < 10_000_000


def test_planted_scripts_stay_text(page_path):
    assert "<script>window.planted" not in page_path.read_text()


def test_labels_are_escaped(tmp_path):
    frame = made_up.results("measure", "reference")
    frame["subject"] = frame["subject"].replace("snapkv@0.5", "<b>snapkv@0.5")
    text = render(made_up.pipeline(frame))
    assert "&lt;b&gt;snapkv@0.5" in text
    assert "<b>snapkv" not in text


def test_the_page_of_a_pipeline_that_never_ran_names_the_commands(tmp_path):
    text = render(made_up.pipeline(made_up.results("measure", "none of ours")), [], [("m", "dvc repro x")])
    assert "Nothing is measured yet" in text
    for command in ("dvc repro intervals", "dvc repro x", "dvc exp run -S model=qwen3b"):
        assert f"<code>{command}</code>" in text
    assert "<script" not in text


def test_live_findings_stand_in_their_chapter_for_both_models(page_path):
    text = page_path.read_text()
    chapter = text[text.index('<section id="live">') : text.index('<section id="protocols">')]
    for model in ("reference", "reference_llama"):
        assert f"<h3>{model} (reference model), prefill: compressed once, after the prefill</h3>" in chapter
        assert f"<h3>{model} (reference model), decoding:" in chapter
    assert chapter.count("SAFE is seen in") == 4
    assert 'id="table-live-policies"' in chapter


def test_reference_models_are_called_so_and_nothing_is_said_of_large_models(page_path):
    text = page_path.read_text()
    assert "reference (reference model)" in text
    assert "say nothing about language models at large" in text


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_figures_that_were_drawn_are_embedded_and_others_left_out(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.chapter import figures

    figures.state_machine(layout.plots("train", "reference", name) / "horizons.png")
    text = render(made_up.pipeline())
    assert text.count('src="data:image/png;base64,') == (1 if name == HEADLINE else 0)


def test_the_same_results_make_the_same_page(tmp_path, explorers):
    assert render(made_up.pipeline(), explorers) == render(made_up.pipeline(), explorers)


def test_a_chapter_of_another_study_stands_beside_it_under_links_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ours = sections.chapter(made_up.pipeline(), tables(made_up.pipeline()), [], [])
    found = page.Findings("a model", ["It forgets nothing."])
    other = page.Chapter("memory", "What is forgotten", "One model.", [found], ours.sections[:2])
    text = page.render([ours, other])
    ids = re.findall(r' id="([\w-]+)"', text)
    assert len(ids) == len(set(ids))
    assert {"catastrophes-outcomes", "memory-outcomes", "memory-table-experiment-001"} <= set(ids)
    assert {f"{anchor}" for anchor in re.findall(r'<a href="#([\w-]+)"', text)} <= set(ids)
    assert "It forgets nothing." in text
