"""Real models in a folder that is no repository, as people run them; `pytest -m real_model`."""

import json
from pathlib import Path

import click.testing
import pytest

from kvguard import cli as commands
from kvguard.store.tables import read_table

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
# Each is longer than SnapKV's window, also where no chat template adds to it.
PROMPTS = [
    {
        "prompt": "Many people visit Paris, Lyon and Nice every year. What is the capital of France?",
        "answer": "Paris",
    },
    {"prompt": "A friend of mine goes to the market and wants to buy fruit there. Name three fruits."},
    {
        "messages": [
            {"role": "system", "content": "Be brief, and answer with one number and nothing else at all."},
            {"role": "user", "content": "I had 2 pens and got 2 more. How many is 2 + 2?"},
        ],
        "answer": 4,
    },
    {
        "prompt": "There are eight planets that go around the sun. Which of them is called the red planet?",
        "answers": ["Mars", "the planet Mars"],
    },
    {
        "prompt": "It was a warm and windy day in summer at the beach. Write a sentence about the sea.",
        "answer": None,
    },
]
pytestmark = pytest.mark.real_model


def kvguard(*arguments):
    result = click.testing.CliRunner().invoke(commands.main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(params=["smollm2", "gemma"])
def model(request, real_model, tmp_path, monkeypatch):
    folder = real_model(request.param)
    monkeypatch.chdir(tmp_path)
    return ["--model", f"path:{folder}"]


def test_own_prompts_are_asked_and_kvpress_agrees(model, tmp_path):
    (tmp_path / "five.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    how = ["--prompts", "five.jsonl", "--max-new-tokens", "24"]
    kvguard("sweep", *model, *how, "--preset", "experiment-001", "--out", "out")
    scores = read_table("scores", tmp_path / "out/scores.parquet")
    unscored = scores[scores["metric"] == "accuracy"]["value"].isna()
    assert unscored.sum() == 2 * 4
    assert "8 of 8 traces agree" in kvguard("verify", *model, "--data", "out", "--against-kvpress", "8")


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K's file is not on this machine")
def test_gsm8k_of_a_file_is_answered_and_kvpress_agrees(model, tmp_path):
    how = ["--task", "gsm8k", "--task-source", str(GSM8K), "-n", "8", "--max-new-tokens", "160"]
    kvguard("sweep", *model, *how, "--preset", "experiment-001", "--out", "out")
    traces = read_table("traces", tmp_path / "out/traces.parquet")
    none = traces[traces["compressor"] == "none"]
    if "gemma" in model[1]:  # SmolLM2 invents further problems, under transformers' generate too
        assert (none["stop_reason"] != "length").any()
    assert "8 of 8 traces agree" in kvguard("verify", *model, "--data", "out", "--against-kvpress", "8")
