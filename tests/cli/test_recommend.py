"""`kvguard recommend`: from a model to a certificate, and what it rejects in one line."""

import json

import click.testing
import pytest

import bundles
from kvguard import cli as commands
from kvguard.guard.certificate import Certificate
from kvguard.models.load import load_model

FEW = ["--max-added-cbr", "0.5", "--max-lost-answers", "0.5", "--confidence", "0.5"]  # of few prompts


def recommend(*arguments):
    return click.testing.CliRunner().invoke(commands.main, ["recommend", "--model", "tiny", *arguments])


def one_line(result):
    assert result.exit_code == 1, result.output
    [line] = result.stderr.strip().splitlines()[-1:]
    return line


def test_a_screen_and_a_certificate_and_again_from_what_is_there(workspace):
    how = ["-n", "6", "--compressors", "streaming_llm,snapkv", "--ratios", "0.25,0.5", *FEW]
    first = recommend(*how)
    assert first.exit_code == 0, first.output
    screen = first.stdout
    assert len(screen.splitlines()) <= 30
    for words in ("6 arithmetic prompts", "best (*): ", "with 12 prompts", "streaming_llm", "certified to"):
        assert words in screen
    path = workspace / "recommend" / "tiny" / "certificate.json"
    found = Certificate.load(path)
    assert (found.model, found.n, found.task, found.guard) == ("tiny", 6, "arithmetic", None)
    before = path.read_bytes(), {p: p.stat().st_mtime_ns for p in path.parent.rglob("part-*")}
    assert recommend(*how).stdout == screen
    assert (path.read_bytes(), {p: p.stat().st_mtime_ns for p in path.parent.rglob("part-*")}) == before


def test_with_a_guard_each_compressor_is_tried_without_and_with_it(workspace):
    from kvguard.studies.catastrophes.params import load_params

    model = load_model("tiny", load_params().spec("tiny"), "cpu").model
    bundles.write_bundle(workspace / "models/tiny", model, position=0.2)
    how = ["-n", "6", "--guard", "models/tiny", "--compressors", "streaming_llm@0.5", "--action", "restart"]
    result = recommend(*how, *FEW, "--out", "here")
    assert result.exit_code == 0, result.output
    assert "streaming_llm under restart" in result.stdout
    data = json.loads((workspace / "here/certificate.json").read_text())
    guarded = [one for one in data["certified"] if one["action"] == "restart"]
    if guarded:
        assert len(guarded[0]["scores"]) == 6
        assert data["guard"]["point"] == "balanced"


def test_another_models_folder_is_not_overwritten(workspace):
    assert recommend("-n", "6", "--compressors", "knorm@0.5", "--out", "here", *FEW).exit_code == 0
    arguments = [
        "recommend",
        "--model",
        "tiny_llama",
        "-n",
        "6",
        "--compressors",
        "knorm@0.5",
        "--out",
        "here",
    ]
    other = click.testing.CliRunner().invoke(commands.main, [*arguments, *FEW])
    assert "holds a sweep of tiny, not of tiny_llama" in one_line(other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-added-cbr", "0"], ["max_added_cbr", "0"]),
        (["--confidence", "1"], ["confidence", "1"]),
        (["--max-lost-answers", "1.5"], ["max_lost_answers", "1.5"]),
        (["-n", "20"], ["20 prompts", "ask 183"]),
        (["--compressors", "snapvk"], ["snapvk", "snapkv"]),
        (["--compressors", "none"], ["none is named but the baseline"]),
        (["--ratios", "0.5,x"], ["--ratios"]),
        (["--ratios", "0,0.5"], ["at 0"]),
        (["--ratios", "1.5"], ["--ratios"]),
        (["--guard", "nowhere"], ["nowhere", "guard.json"]),
        (["--prompts", "nowhere.jsonl"], ["nowhere.jsonl"]),
    ],
)
def test_what_cannot_be_certified_is_one_line(workspace, arguments, words):
    line = one_line(recommend(*arguments))
    for word in words:
        assert word in line


def test_prompts_without_answers_are_certified_for_catastrophes_alone(workspace):
    rows = [
        json.dumps({"prompt": f"Say something of the number {i}, please, and then stop."}) for i in range(8)
    ]
    (workspace / "mine.jsonl").write_text("\n".join(rows))
    how = ["--prompts", "mine.jsonl", "--compressors", "knorm@0.5", "--max-new-tokens", "8"]
    few = ["--max-added-cbr", "0.5", "--confidence", "0.5"]
    asked = recommend(*how, *few, "--max-lost-answers", "0.5")
    assert "no answer of this task is scored" in one_line(asked)
    result = recommend(*how, *few)
    assert result.exit_code == 0, result.output
    assert "lost answers" not in result.stdout
