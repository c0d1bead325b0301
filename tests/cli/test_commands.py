"""The kvguard command, as typed."""

import json
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest

from kvguard import cli as commands


def kvguard(*arguments):
    return click.testing.CliRunner().invoke(commands.main, arguments)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_params):
    """A small finished sweep with its settings."""
    import yaml

    folder = tmp_path_factory.mktemp("swept")
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(tiny_params))
    out = folder / "data"
    result = kvguard("sweep", "--model", "tiny", "-n", "3", "--out", str(out), "--params", str(params))
    assert result.exit_code == 0, result.output
    assert "streaming_llm@0.25" in result.stdout
    return ["--model", "tiny", "--data", str(out), "--params", str(params)]


def test_run_answers_in_one_screen(workspace):
    result = kvguard("run", "--model", "tiny", "--compressor", "snapkv", "--ratio", "0.5", "-n", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 110
    for word in ("none", "snapkv@0.5", "accuracy", "CFR", "CBR", "looping", "non-term.", "wrong", "tokens"):
        assert word in result.stdout
    for word in ("mean entropy", "max entropy", "min top-1"):
        assert word in result.stdout


def test_experiment_001_has_its_four_conditions_and_shows_a_trace_of_each(workspace):
    result = kvguard("run", "--model", "tiny", "--preset", "experiment-001", "-n", "1", "--show")
    assert result.exit_code == 0, result.output
    for condition in ("none", "streaming_llm@0.5", "streaming_llm@0.875", "snapkv@0.875"):
        assert f", {condition}, prompt" in result.stdout


def test_trace_prints_tokens_entropy_and_onset(swept):
    result = kvguard("trace", *swept, "--compressor", "snapkv", "--ratio", "0.5")
    assert result.exit_code == 0, result.output
    for word in ("snapkv@0.5", "onset", "entropy over", "█"):
        assert word in result.stdout


def test_verify_reads_a_whole_dataset_and_agrees_with_kvpress(swept):
    result = kvguard("verify", *swept, "--against-kvpress", "5")
    assert result.exit_code == 0, result.output
    assert "15 traces" in result.stdout
    assert "5 of 5 traces agree with kvpress" in result.stdout


def test_verify_of_an_interrupted_sweep_says_to_run_the_sweep_again(workspace, swept):
    out = Path(swept[3])
    begun = workspace / "begun"
    begun.mkdir()
    for path in out.glob("part-*.parquet"):
        (begun / path.name).write_bytes(path.read_bytes())
    result = kvguard("verify", *swept[:3], str(begun), *swept[4:])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert f"{begun}: holds no finished sweep: run the sweep again" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--compressor", "snapk", "--ratio", "0.5"], ["'snapk'", "did you mean 'snapkv'"]),
        (["run", "--preset", "experiment-01"], ["'experiment-01'", "did you mean 'experiment-001'"]),
        (["sweep", "--preset", "smal", "--out", "x"], ["'smal'", "did you mean 'small'"]),
        (["trace"], ["traces.parquet", "dvc repro"]),
        (["verify"], ["data/generate/tiny", "dvc repro generate"]),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_1(workspace, arguments, words):
    result = kvguard(*arguments, "--model", "tiny")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "tiny"],
        ["run", "--model", "tiny", "--compressor", "snapkv"],
        ["run", "--model", "tiny", "--compressor", "snapkv", "--ratio", "1"],
        ["run", "--model", "tiny", "--preset", "small", "--compressor", "snapkv", "--ratio", "0.5"],
        ["run", "--model", "tiny", "--preset", "small", "-n", "0"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(workspace, arguments):
    assert kvguard(*arguments).exit_code == 2


@pytest.mark.parametrize("command", [["run"], ["sweep", "--out", "x"]])
def test_the_device_can_be_named(workspace, monkeypatch, command):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = kvguard(*command, "--model", "tiny", "--preset", "small", "-n", "1", "--device", "cuda")
    assert result.exit_code == 1
    assert "'cuda' is not available here" in result.stderr


def test_an_unknown_model_lists_the_known(workspace):
    result = kvguard("run", "--model", "tinny", "--preset", "small")
    assert result.exit_code == 1
    assert "did you mean 'tiny'" in result.stderr


def test_summary_lists_models_and_where_to_look_next(folder):
    (folder / "metrics/train").mkdir(parents=True)
    (folder / "metrics/evaluate").mkdir()
    (folder / "metrics/train/m-v2.json").write_text(
        json.dumps({"predictor": {"pre_onset": {"auroc": {"value": 0.75}}}})
    )
    overall = {"cbr_uncontrolled": 0.5, "cbr_controlled": 0.25, "accuracy_uncontrolled": None}
    found = {"controller-balanced": {"overall": {name: {"value": value} for name, value in overall.items()}}}
    (folder / "metrics/evaluate/m-v2.json").write_text(json.dumps(found))
    result = kvguard("summary")
    assert result.exit_code == 0
    for word in ("0.750", "0.500", "0.250", "mlflow ui", "dvc metrics show", "dvc plots show"):
        assert word in result.stdout
    assert "Live" not in result.stdout
    live = {
        "policies-prefill": {"static": {"cbr": {"value": 0.625}}, "rollback": {"cbr": {"value": 0.0625}}},
        "gap": {"rollback": {"cbr_simulated": {"value": 0.03125}}},
    }
    (folder / "metrics/live-validate").mkdir()
    (folder / "metrics/live-validate/m.json").write_text(json.dumps(live))
    row = kvguard("summary").stdout.partition("Live")[2].splitlines()[4].split()
    assert row == ["m", "-", "0.625", "0.031", "0.062", *["-"] * 5]


def test_help_imports_nothing_heavy():
    code = (
        "import sys, click.testing as t, kvguard.cli as c; t.CliRunner().invoke(c.main, ['--help']);"
        "print(sorted({'torch', 'pandas', 'mlflow', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
