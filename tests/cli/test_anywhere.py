"""The shell commands where no repository is: settings, models by id or folder, prompts of one's own."""

import json
import shutil
from pathlib import Path

import click.testing
import pytest
import yaml

from kvguard import cli as commands
from kvguard.cli.asking import Asked, open_settings
from kvguard.errors import KvguardError
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes.params import SHIPPED, load_params

ROOT = Path(__file__).parents[2]
CONDITION = ["--compressor", "snapkv", "--ratio", "0.5"]
PROMPT = "Say where the Louvre is, and the Prado, in a sentence or two, please. " * 2


def kvguard(*arguments):
    return click.testing.CliRunner().invoke(commands.main, arguments)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prompts(nowhere):
    rows = [{"prompt": PROMPT, "answer": "Paris"}, {"messages": [{"role": "user", "content": f"{PROMPT}!"}]}]
    (nowhere / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "my.jsonl"


def asked(model="reference", **values):
    return Asked(model, params_path=None, **values)


def test_the_settings_that_ship_are_those_of_the_repository(nowhere):
    assert SHIPPED.samefile(ROOT / "params.yaml")  # a link: there is no second copy
    assert open_settings(None).value("models") == load_params(ROOT / "params.yaml").value("models")


def test_a_file_goes_before_what_ships_key_by_key(nowhere):
    own = {"generate": {"workers": 3}, "compressors": {"snapkv": {"press": "SnapKVPress", "window_size": 8}}}
    (nowhere / "params.yaml").write_text(yaml.safe_dump(own))
    shutil.copy("params.yaml", "other.yaml")
    for params in (open_settings(None), open_settings(Path("other.yaml"))):
        assert (params.generate.workers, params.generate.preset) == (3, "default")
        assert params.compressors["snapkv"].params == {"window_size": 8}
        assert "knorm" in params.compressors


@pytest.mark.parametrize(
    "text", ["prepare: {split: 0.2}\ntrain: {lr: 0.1}", "model: bert-base", "- 1", "a: [", "\x00", ""]
)
def test_a_file_of_another_tool_is_passed_over_and_said_so(nowhere, capsys, text):
    (nowhere / "params.yaml").write_text(text)
    assert open_settings(None).value("seed") == load_params(SHIPPED).seed
    said = capsys.readouterr().err
    assert "params.yaml" in said
    assert "kvguard's own settings are used" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(KvguardError):
        open_settings(Path("params.yaml"))


def test_a_mistake_in_a_file_of_ones_own_is_an_error(nowhere):
    (nowhere / "params.yaml").write_text("models: {mine: {source: a/b, task: gsm8k}}\nsede: 3")
    with pytest.raises(KvguardError, match="'sede'; did you mean 'seed'"):
        open_settings(None)


def test_a_hub_id_and_a_folder_are_models(nowhere):
    name, params = asked("Qwen/Qwen2.5-0.5B-Instruct").settings()
    spec = params.spec(name)
    assert (name, spec.source, spec.task) == ("Qwen/Qwen2.5-0.5B-Instruct", name, "gsm8k")
    assert (spec.dtype_on("cpu"), spec.dtype_on("cuda")) == ("float32", "bfloat16")
    name, params = asked("path:models/x", dtype="float16", task="arithmetic").settings()
    spec = params.spec(name)
    assert (name, spec.source) == (f"path:{nowhere}/models/x",) * 2
    assert (spec.dtype_on("cpu"), spec.task) == ("float16", "arithmetic")


@pytest.mark.parametrize("name", ["qwen05b", "smollm135m", "smollm360m", "gemma270m", "gemma1b"])
def test_models_for_a_laptop_are_float32_on_a_cpu(nowhere, name):
    _, params = asked(name).settings()
    assert params.spec(name).dtype_on("cpu") == "float32"
    assert "/" in params.spec(name).source


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("refrence", "unknown name 'refrence'; did you mean 'reference'"),
        ("folder", "folder is a folder here: write path:folder"),
        ("./folder", "is a folder here: write path:./folder"),
        ("/no/such", r"'/no/such' is no name of the settings, hub id \(owner/name\) or path:DIR"),
        ("a/b/c", "'a/b/c' is no name of the settings"),
        ("path:", "'path:' is no name of the settings"),
        ("~nobody/x y", "is no name of the settings"),
        ("", "unknown name ''"),
        ("x" * 5000, "unknown name 'xxx"),
        ("a\0b", "unknown name"),
    ],
)
def test_what_is_no_model_is_one_line(nowhere, model, message):
    (nowhere / "folder").mkdir()
    with pytest.raises(KvguardError, match=message) as caught:
        asked(model).settings()
    assert "\n" not in str(caught.value)


def test_what_is_asked_can_be_typed(nowhere):
    name, params = asked(
        task="gsm8k", task_source="f.jsonl", max_new_tokens=7, stop=(r"\n\nQ:", "x")
    ).settings()
    task = params.task(name)
    assert (task.name, task.source, task.max_new_tokens) == ("gsm8k", "f.jsonl", 7)
    assert (task.stop_strings, task.stop_in_chat, task.n_shots) == (("\n\nQ:", "x"), True, 3)
    with pytest.raises(KvguardError, match="task arithmetic takes no file"):
        asked(task_source="f.jsonl").settings()
    with pytest.raises(KvguardError, match="--task: unknown name 'gsm'; did you mean 'gsm8k'"):
        asked(task="gsm").settings()


def test_prompts_of_ones_own_are_asked_in_any_folder(prompts, model_folder):
    model = ["--model", f"path:{model_folder}", "--prompts", prompts, "--max-new-tokens", "8"]
    result = kvguard("run", *model, *CONDITION)
    assert result.exit_code == 0, result.output
    assert "2 own prompts" in result.stdout
    assert "float32 on cpu" in result.stderr


def test_a_sweep_is_verified_and_traced_without_saying_again_what_was_asked(prompts, model_folder, nowhere):
    model = ["--model", f"path:{model_folder}"]
    how = ["--prompts", prompts, "--max-new-tokens", "8", "--dtype", "bfloat16", "--stop", "e"]
    result = kvguard("sweep", *model, *how, "--preset", "small", "--out", "out")
    assert result.exit_code == 0, result.output
    traces = read_table("traces", nowhere / "out/traces.parquet")
    assert len(traces) == 2 * 7
    assert traces["token_ids"].map(len).max() <= 8
    result = kvguard("verify", *model, "--data", "out", "--against-kvpress", "7")
    assert "7 of 7 traces agree with kvpress" in result.stdout, result.output
    assert kvguard("trace", *model, "--data", "out", *CONDITION).exit_code == 0
    result = kvguard("verify", "--model", "reference", "--data", "out")
    assert result.exit_code == 1
    assert f"holds a sweep of path:{model_folder}" in result.stderr


@pytest.mark.parametrize("command", ["verify", "trace"])
def test_a_model_in_no_settings_has_no_usual_folder(nowhere, command):
    result = kvguard(command, "--model", "a/b")
    assert result.exit_code == 2
    assert "--data" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--prompts", "f", "--task", "gsm8k"], ["--prompts", "f", "--task-source", "f"], ["--stop", ""]],
)
def test_what_does_not_go_together_is_wrong_usage(nowhere, arguments):
    assert kvguard("run", "--model", "reference", *CONDITION, *arguments).exit_code == 2


def test_help_shows_what_to_type():
    shown = kvguard("run", "--help").stdout
    assert shown.count("\n  kvguard run --model ") + shown.count("    kvguard run --model ") >= 3


@pytest.mark.parametrize("command", [["run", "--preset", "small"], ["sweep", "--out", "out"]])
def test_a_folder_without_a_model_is_named_before_the_task_is_asked_for_prompts(
    nowhere, monkeypatch, command
):
    drawn = "kvguard.studies.catastrophes.generate.draw_prompts"
    monkeypatch.setattr(drawn, lambda *_: pytest.fail("the task was asked"))
    result = kvguard(*command, "--model", "path:absent")
    assert result.exit_code == 1
    assert "no model lies at" in result.stderr
    assert "fix --model" in result.stderr
    assert len(result.stderr.splitlines()) == 1
