"""The shell commands, from examples to the report, on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from kvguard.cli import main


@pytest.fixture
def run(tiny_models, settings, tmp_path):
    def invoke(*arguments, ok=True):
        done = CliRunner().invoke(main, ["directed", *arguments], catch_exceptions=False)
        assert (done.exit_code == 0) == ok, done.output
        return done.output

    invoke.asked = [
        *("--model", f"path:{tiny_models['tiny']}", "--dataset", "small"),
        *("--settings", str(settings), "--out", str(tmp_path / "runs")),
    ]
    return invoke


def test_an_experiment_ends_with_results_and_the_report_shows_them(run, tmp_path):
    said = run("experiment", "decoder-01", *run.asked, "-n", "5")
    assert "oracle" in said
    assert "d hard" in said
    [results] = (tmp_path / "runs").glob("*/decoder-01/results.parquet")
    assert results.parent.joinpath("tables", "small.parquet").is_file()
    said = run("experiment", "decoder-01", *run.asked, "-n", "5")
    assert "small: 0 rows scored, 40 found" in said
    settings = run.asked[run.asked.index("--settings") + 1]
    assert "1 experiments" in run("report", "--out", str(tmp_path / "runs"), "--settings", settings)
    page = (tmp_path / "runs" / "report.html").read_text()
    for there in ("decoder-01", "hurt most", "Who has", "data:image/png", "kvguard directed report"):
        assert there in page
    assert "dvc repro report" not in page


def test_a_tracked_run_logs_its_numbers_and_its_folder(run, folder):
    import mlflow

    run("experiment", "decoder-01", *run.asked, "-n", "3", "--track")
    [logged] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert logged.data.tags["stage"] == "directed"
    assert logged.data.tags["protocol"] == "decoder-01"
    assert logged.data.params["n"] == "3"
    assert "effects small all none nll.oracle.d.value" in logged.data.metrics


def test_scores_are_printed_without_an_experiment(run):
    said = run("score", *run.asked, "-n", "2", "--condition", "oracle", "--press", "knorm@0.5")
    assert "small, knorm@0.5, catastrophe" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["experiment", "decoder-1"], "did you mean 'decoder-0"),
        (["score", "--condition", "oracel"], "did you mean 'oracle'"),
        (["score", "--press", "snapk@0.5"], "did you mean 'snapkv'"),
        (["score", "--press", "snapkv"], "has no ratio"),
        (["score", "-n", "50"], "6 examples that the model can read, 50 asked"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, said):
    output = run(*arguments, *run.asked, ok=False)
    [line] = [line for line in output.splitlines() if line.startswith("Error")]
    assert said in line


def test_a_report_of_nothing_says_what_to_run(run, tmp_path):
    assert "run `kvguard directed experiment" in run("report", "--out", str(tmp_path / "none"), ok=False)


@pytest.mark.slow
def test_a_killed_run_loses_nothing_that_it_scored(run, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from kvguard.cli import main; main()",
        "directed",
        "experiment",
        "decoder-03",
    ]
    first = subprocess.Popen([*command, *run.asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    journals = lambda: list((tmp_path / "runs").glob("*/scored/*.jsonl"))  # noqa: E731
    while first.poll() is None and time.monotonic() < deadline:
        if any(path.stat().st_size for path in journals()):
            break
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    [journal] = journals()
    kept = [
        json.loads(line) for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
    ]
    assert kept
    said = run("experiment", "decoder-03", *run.asked)
    assert f"{len(kept)} found" in said
    after = [json.loads(line) for line in journal.read_text().splitlines()]
    assert after[: len(kept)] == kept
    assert len(after) == 6 * 11
