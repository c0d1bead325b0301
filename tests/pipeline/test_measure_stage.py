"""The measure stage on a synthetic data set, as the command that DVC calls."""

import importlib.util
import json
from pathlib import Path

import click.testing
import mlflow
import numpy as np
import pytest

import synthetic
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes import layout

SCRIPT = Path(__file__).parents[2] / "pipeline" / "measure.py"


def stage(*arguments):
    spec = importlib.util.spec_from_file_location("stage_measure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return click.testing.CliRunner().invoke(module.main, arguments)


@pytest.fixture
def traces(workspace):
    """The judged traces of a synthetic data set that stands where generate puts it."""
    traces = synthetic.build(workspace / "made", n_prompts=10)
    layout.generated("tiny").parent.mkdir(parents=True)
    (workspace / "made" / "generate").rename(layout.generated("tiny"))
    return traces


def test_it_leaves_results_metrics_and_a_run_and_says_the_same_again(workspace, traces):
    result = stage("--model", "tiny")
    assert result.exit_code == 0, result.output
    table, metrics = layout.results("measure", "tiny"), layout.metrics("measure", "tiny")
    found = read_table("results", table)
    tables = {"outcomes", "onsets", "against_none", "signals", "max_entropy", "onset_entropy"}
    assert set(found["table"]) == tables
    assert set(found["stage"] + found["model"] + found["protocol"]) == {"measuretiny"}
    worst = traces[traces["compressor"] == "knorm"]
    cbr = (worst["catastrophes"].map(len) > 0).mean()
    outcomes = json.loads(metrics.read_text())["outcomes"]
    assert outcomes["knorm@0.875"]["cbr"]["value"] == cbr
    assert outcomes["knorm@0.875"]["cbr"]["low"] <= cbr <= outcomes["knorm@0.875"]["cbr"]["high"]
    [run] = mlflow.search_runs(experiment_names=["kvguard"], output_format="list")
    assert run.data.metrics["outcomes.knorm_0.875.cbr.value"] == cbr
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"traces-tiny", "measure-tiny"}
    before = table.read_bytes(), metrics.read_bytes()
    assert stage("--model", "tiny").exit_code == 0
    assert (table.read_bytes(), metrics.read_bytes()) == before


def test_a_rise_of_the_entropy_before_onsets_is_found(workspace, traces):
    assert stage("--model", "tiny").exit_code == 0
    found = read_table("results", layout.results("measure", "tiny"))
    found = found.set_index(["table", "subject", "metric"])["value"]
    # The synthetic entropies rise by 1.5 before an onset, from the same distribution.
    assert found["onset_entropy", "overall", "difference"] == pytest.approx(1.5, abs=0.2)
    assert found["max_entropy", "overall", "auroc"] == 1.0
    assert np.isnan(found["max_entropy", "none", "auroc"])


def test_without_traces_it_says_which_command_makes_them(workspace):
    result = stage("--model", "tiny")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    for word in (str(layout.traces("tiny")), "dvc repro"):
        assert word in result.stderr
    assert not layout.results("measure", "tiny").exists()
