"""Every stage, as the command that DVC calls, on two tiny models."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest
import yaml

from kvguard.config import Settings
from kvguard.guard.bundle import load
from kvguard.guard.hazard_model import HazardModel
from kvguard.judging.judge import read_judged
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.protocols import BEFORE, HEADLINE

PIPELINE = Path(__file__).parents[2] / "pipeline"
# Those of one model, in order; transfer and report are about several.
STAGES = (
    "sample", "generate", "featurize", "validate", "measure", "train", "evaluate", "score", "export",
    "live_validate", "certify", "ablate",
)  # fmt: skip
OF_A_PROTOCOL = ("train", "evaluate", "score")
ALL_STAGES = (*STAGES, "transfer", "intervals", "report")
# What takes a second or more to import.
HEAVY = {"torch", "transformers", "kvpress", "mlflow", "optuna", "xgboost", "sklearn", "matplotlib", "pandas"}


def call(stage, *arguments):
    """Run a stage script in this process and return click's result."""
    spec = importlib.util.spec_from_file_location(f"stage_{stage}", PIPELINE / f"{stage}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return click.testing.CliRunner().invoke(module.main, arguments)


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def change(workspace):
    """Change one key of the workspace's settings."""

    def change(key, value):
        path = workspace / "params.yaml"
        data = yaml.safe_load(path.read_text())
        *sections, last = key.split(".")
        section = data
        for name in sections:
            section = section[name]
        section[last] = value
        path.write_text(yaml.safe_dump(data))

    return change


def made(workspace):
    """What stages have written, MLflow's store aside."""
    return {path for path in files(workspace) if path.parts[0] in ("data", "metrics", "plots", "models")}


@pytest.mark.parametrize("stage", ["sample", "generate"])
def test_a_model_that_is_not_there_is_rejected_before_anything_is_written(workspace, change, stage):
    change("models.tiny.source", "path:nowhere")
    before = files(workspace), (workspace / "mlflow.db").read_bytes()
    result = call(stage, "--model", "tiny")
    assert result.exit_code == 1
    assert "no model lies at nowhere" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (files(workspace), (workspace / "mlflow.db").read_bytes()) == before


def test_an_unknown_model_lists_the_known_names(workspace):
    result = call("sample", "--model", "foo")
    assert result.exit_code == 1
    assert "unknown name 'foo' (known: tiny, tiny_llama)" in result.stderr


def listed_params(stage, model, preset):
    """The params of a stage in dvc.yaml, for one model."""
    found = yaml.safe_load((PIPELINE.parent / "dvc.yaml").read_text())["stages"][stage.replace("_", "-")]
    names = {"${item.model}": model, "${generate.preset}": preset}
    for name, value in names.items():
        found["params"] = [key.replace(name, value) for key in found["params"]]
    return found["params"]


def only(data, keys):
    """The settings ``keys`` and no other."""
    kept = {}
    for key in keys:
        *sections, last = key.split(".")
        source, target = data, kept
        for name in sections:
            source, target = source[name], target.setdefault(name, {})
        target[last] = source[last]
    return kept


@pytest.fixture
def call_as_listed(workspace, monkeypatch):
    """Run a stage on the params that dvc.yaml lists for it, all of which it must read."""
    data = yaml.safe_load((workspace / "params.yaml").read_text())
    read, asked = Settings.read, set()

    def recorded(self, name, kind):
        asked.add(name)
        return read(self, name, kind)

    def run(stage, *arguments):
        keys = listed_params(stage, arguments[1] if arguments else "", data["generate"]["preset"])
        (workspace / "listed.yaml").write_text(yaml.safe_dump(only(data, keys)))
        asked.clear()
        result = call(stage, *arguments, "--params", "listed.yaml")
        assert result.exit_code == 0, result.output
        idle = [key for key in keys if not any(f"{name}.".startswith(f"{key}.") for name in asked)]
        assert not idle, f"{stage} lists params that it never reads"

    monkeypatch.setattr(Settings, "read", recorded)
    return run


def test_the_stages_run_in_order_on_what_they_list_and_leave_what_dvc_expects(workspace, call_as_listed):
    for model in ("tiny", "tiny_llama"):
        for stage in STAGES:
            for protocol in (BEFORE, HEADLINE) if stage in OF_A_PROTOCOL else (None,):
                call_as_listed(stage, "--model", model, *(("--protocol", protocol) if protocol else ()))
    for model, other in (("tiny", "tiny_llama"), ("tiny_llama", "tiny")):
        call_as_listed("transfer", "--model", model, "--to", other)
    for model, other in (("tiny", "tiny_llama"), ("tiny_llama", "tiny")):
        call_as_listed("intervals", "--model", model, "--to", other)
    call_as_listed("report")
    prompts, traces = (
        read_table("prompts", layout.prompts("tiny")),
        read_judged(layout.traces("tiny")),
    )
    assert len(traces) == 5 * len(prompts)
    assert len(read_table("features", layout.features("tiny"))) == traces["token_ids"].map(len).sum()
    assert json.loads(layout.metrics("validate", "tiny").read_text())["ok"]
    predictor = json.loads(layout.metrics("train", "tiny", HEADLINE).read_text())["predictor"]
    assert 0 <= predictor["all"]["auroc"]["value"] <= 1
    evaluated = layout.evaluated("tiny", HEADLINE)
    assert {path.name for path in evaluated.iterdir()} == {
        "facts.parquet", "operating_points.json", "pareto.parquet", "study.journal"
    }  # fmt: skip
    scored = layout.scored("tiny", HEADLINE)
    assert {path.stem for path in scored.iterdir()} == {"controlled", "curve", "evaluate", "train"}
    assert len(read_table("pareto", evaluated / "pareto.parquet")) == 8
    exported = layout.exported("tiny")
    hazard, _, card = load(exported, "balanced")
    assert (card.model, card.max_new_tokens, card.conditions[:2]) == (
        "tiny",
        48,
        ("none", "streaming_llm@0.25"),
    )
    assert hazard.features == HazardModel.load(layout.trained("tiny", HEADLINE)).features
    assert sum(path.stat().st_size for path in exported.iterdir()) < 1.5e6
    live = read_judged(layout.live("tiny") / "live.parquet", kind="live")
    assert not set(live["prompt_id"]) & set(prompts["prompt_id"])
    assert set(live["regime"]) == {"prefill", "decoding", "switch"}
    assert read_table("results", layout.live("tiny") / "latency.parquet")["value"].notna().all()
    plotted = (
        ("train", HEADLINE),
        ("evaluate", HEADLINE),
        ("ablate", None),
        ("transfer", None),
        ("live-validate", None),
        ("certify", None),
    )
    for stage, protocol in plotted:
        assert list(layout.plots(stage, "tiny", protocol).glob("*.png"))
        assert len(read_table("results", layout.results(stage, "tiny", protocol)))
    assert Path("reports/report.html").stat().st_size < 10 * 2**20


def test_a_second_sweep_keeps_every_part(workspace):
    call("sample", "--model", "tiny")
    call("generate", "--model", "tiny")
    before = layout.traces("tiny").read_bytes()
    result = call("generate", "--model", "tiny")
    assert "0 parts made" in result.output
    assert layout.traces("tiny").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", "tiny_lama", ["model", "'tiny_lama'", "did you mean 'tiny_llama'"]),
        ("transfer_to", "tiny", ["transfer_to", "'tiny'"]),
        ("sample.m", 3, ["'sample.m'", "known: n"]),
        ("models.tiny.task", "algebra", ["models.tiny.task", "'algebra'", "gsm8k"]),
        ("tasks.arithmetic.source", "none.jsonl", ["'tasks.arithmetic.source'"]),
    ],
)
def test_bad_settings_stop_a_stage_in_one_line(workspace, change, key, value, words):
    change(key, value)
    result = call("sample", "--model", "tiny")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr
    assert not made(workspace)


def test_more_prompts_than_the_set_has_is_one_line(workspace, change):
    source = workspace / "gsm8k.jsonl"
    source.write_text('{"question": "How many is 1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\\n#### 2"}\n')
    change("models.tiny.task", "gsm8k")
    change("tasks.gsm8k.source", str(source))
    result = call("sample", "--model", "tiny")
    assert result.exit_code == 1
    assert "12" in result.stderr
    assert not made(workspace)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("compressors.snapkv.press", "SnapKV", ["SnapKV", "SnapKVPress"]),
        ("compressors.snapkv.window_size", 1000, ["snapkv", "window_size"]),
        ("tasks.arithmetic.max_new_tokens", 2048, ["2048"]),
        ("models.tiny.source", "path:nowhere", ["nowhere"]),
    ],
)
def test_what_generate_cannot_do_is_one_line_and_leaves_nothing(workspace, change, key, value, words):
    assert call("sample", "--model", "tiny").exit_code == 0
    before = made(workspace)
    change(key, value)
    result = call("generate", "--model", "tiny")
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr
    assert made(workspace) == before


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no parquet"])
def test_a_damaged_table_is_one_line(workspace, damage):
    call("sample", "--model", "tiny")
    path = layout.prompts("tiny")
    path.write_bytes(damage(path.read_bytes()))
    result = call("generate", "--model", "tiny")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert str(path) in result.stderr


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_without_its_input_says_which(workspace, stage):
    result = call(stage, "--model", "tiny")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "dvc repro" in result.stderr
    assert not made(workspace)


def test_an_mlflow_folder_that_takes_no_writes_stops_a_stage_before_it_works(workspace):
    (workspace / "mlruns").write_text("")
    result = call("sample", "--model", "tiny")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "mlruns" in result.stderr
    assert not made(workspace)


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_help_needs_no_heavy_import(stage):
    code = f"""
import runpy, sys
sys.argv = ["{stage}", "--help"]
try:
    runpy.run_path({str(PIPELINE / f"{stage}.py")!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_wrong_usage_exits_with_2(workspace, stage):
    assert call(stage, "--modell", "tiny").exit_code == 2
    assert stage == "report" or call(stage).exit_code == 2
