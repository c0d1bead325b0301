"""The page of experiments whose values are known: every table, figure and sentence that they should have."""

import json

import pandas as pd
import pytest
from synthetic_nll import Synthetic, table

from kvguard.errors import KvguardError
from kvguard.store.files import write_json
from kvguard.store.tables import write_table
from kvguard.studies.directed.chapter.build import build
from kvguard.studies.directed.chapter.terminal import told
from kvguard.studies.directed.experiment import conclude
from kvguard.studies.directed.layout import Layout
from kvguard.studies.directed.params import load_params
from kvguard.studies.directed.run import TABLE

SETTINGS = """
analysis: {n_resamples: 100, n_permutations: 99}
experiments:
  planted:
    track: decoder
    title: What was planted?
    about: Known values.
    conditions: [bare, noise, far, near, oracle, flat]
    settings: [none, snapkv@0.5]
    reference: noise
    oracle: oracle
    gradient: [noise, far, near, oracle]
    grids:
      press:
        rows: [none, snapkv@0.5]
        columns: [bare, oracle]
        cells: [[bare, oracle], [bare|snapkv@0.5, oracle|snapkv@0.5]]
"""
PLANTED = {"noise": -0.2, "far": -0.22, "near": -0.24, "oracle": -0.3}
SHOWN = {
    "why": "hurt most", "id": "e<1>", "document": "a & b", "question": "Who?", "target": "Ana",
    "rows": [{"condition": "oracle", "setting": "none", "nll": None, "prefix": "<s>", "answer": ""}],
}  # fmt: skip


@pytest.fixture
def planted(tmp_path):
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    params = load_params(tmp_path / "settings.yaml")
    layout = Layout(tmp_path / "runs", "some/model")
    for seed, dataset in enumerate(("one", "two")):
        values = [
            table(Synthetic(added, seed=seed).nll(60), dataset, setting)
            for setting, added in (("none", PLANTED), ("snapkv@0.5", {"bare": 0.4}))
        ]
        write_table(TABLE, pd.concat(values, ignore_index=True), layout.table("planted", dataset))
        write_json(layout.shown("planted", dataset), {"examples": [SHOWN]})
    return params, layout


def test_the_page_has_every_table_figure_and_example(planted, tmp_path):
    params, layout = planted
    results = conclude("planted", params.protocol("planted"), params, layout)
    said = told(results, params.protocol("planted"))
    assert "two, snapkv@0.5, nll" in said
    assert "1 experiments" in build(tmp_path / "runs", params)
    page = (tmp_path / "runs" / "report.html").read_text()
    for there in (
        "planted, some/model: What was planted?",
        "each condition against bare",
        "what meaning adds to a prefix",
        "is there a gradient?",
        "does the effect survive?",
        "planted: interactions",
        "data sets together",
        "press: snapkv@0.5 x oracle",
        "one: oracle is better than bare: d ",
        "two: the benefit rises along the semantic order",
        "e&lt;1&gt;",
        "a &amp; b",
        "&lt;s&gt;",
    ):
        assert there in page, there
    drawn = {path.name for path in layout.figures("planted").iterdir()}
    assert drawn == {
        "forest-none-nll.png",
        "forest-snapkv-0.5-nll.png",
        "gradient-nll.png",
        "quantiles-nll.png",
    }
    assert len(list(layout.experiment("planted").joinpath("report").glob("*.md"))) == 6
    numbers = json.loads(layout.metrics.read_text())["planted"]
    d = numbers["effects one hard none nll"]["oracle"]["d"]
    assert d["low"] < d["value"] < d["high"]
    assert numbers["pooled all none nll"]["oracle"]["consistent"]["value"] == 1


def test_a_data_set_of_another_protocol_is_left_out_and_said_so(planted, caplog):
    params, layout = planted
    old = table(Synthetic(PLANTED).nll(20, ("bare", "oracle")), "old")
    write_table(TABLE, old, layout.table("planted", "old"))
    results = conclude("planted", params.protocol("planted"), params, layout)
    assert "1 data sets of another protocol left out" in caplog.text
    assert not results.frame["table"].str.contains(" old ").any()


def test_a_report_of_nothing_says_what_to_run(tmp_path):
    with pytest.raises(KvguardError, match="run `kvguard directed experiment NAME"):
        build(tmp_path / "none", load_params())
