"""Presses on real models, one of them with sliding windows, against kvpress one prompt at a time."""

from pathlib import Path
from typing import Any

import click.testing
import pytest
import torch
import yaml
from test_every_press import CANNOT_RUN_WITH_WINDOWS, RUNS
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from kvguard import cli as commands
from kvguard.engine.layers import sliding_windows
from kvguard.engine.loop import decode
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, attention_for, build_press
from kvguard.engine.requests import Decoding, Row
from kvguard.sweep.settings import CompressorSpec
from kvguard.tasks import sample_prompts

FOLDERS = {name: Path("/tmp/real") / name for name in ("smollm2", "gemma")}  # made by ../shared/tools
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not all(folder.exists() for folder in FOLDERS.values()), reason="no real models here"),
]
LENGTHS, NEW = (150, 560), 8  # within and beyond Gemma 3's window of 512
SLOW = {"KVComposePress", "KVgradPress"}  # minutes on models of this size
OWN: dict[str, dict[str, Any]] = {
    "PerLayerCompressionPress": {"press": {"press": "KnormPress"}, "compression_ratios": [0.25, 0.75] * 15}
}


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def real(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, list[torch.Tensor]]:
    folder = FOLDERS[request.param]
    text = "\n\n".join(
        forms["text"] for forms in sample_prompts("arithmetic", 8, seed=9, n_shots=8)["prompt"]
    )
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, [ids[:n] for n in LENGTHS]


@pytest.mark.parametrize("name", sorted(RUNS.keys() - SLOW))
def test_a_press_generates_what_kvpress_generates(
    name: str, real: tuple[PreTrainedModel, list[torch.Tensor]]
) -> None:
    model, prompts = real
    if any(sliding_windows(model)) and name in CANNOT_RUN_WITH_WINDOWS:
        pytest.skip("rejected: see test_every_press.py")
    condition, spec = Condition(name, 0.5), CompressorSpec(press=name, params=OWN.get(name, RUNS[name]))
    rows = []
    for ids in prompts:
        torch.manual_seed(0)  # some presses sketch with random matrices
        press = build_press(spec, 0.5)
        done = prefill(model, ids, {condition: press}, attention_for(press))
        rows.append(Row(ids, done.logits, done.kept[condition]))
    got = decode(model, rows, Decoding(NEW, [1]), batch_size=len(rows))
    for r, ids in enumerate(prompts):
        torch.manual_seed(0)
        reference = kvpress_generate(model, ids, build_press(spec, 0.5), NEW, [1])
        tokens = got.token_ids[r, : got.lengths[r]].tolist()
        assert reference.agrees(tokens), f"{tokens} is not kvpress's {reference.token_ids}"


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_sweep_is_whole_and_agrees_with_kvpress(
    name: str, folder: Path, tiny_params: dict[str, Any]
) -> None:
    """By both checks of the command, under scorers and under presses that run in kvpress's own context."""
    shown = ["none", "knorm@0.5", "snapkv@0.5", "pyramidkv@0.5", "ada@0.5"]
    spec = {"source": f"path:{FOLDERS[name]}", "dtype": "float32", "task": "arithmetic"}
    ada = {"press": "AdaKVPress", "params": {"press": {"press": "SnapKVPress", "window_size": 16}}}
    tasks = tiny_params["tasks"] | {
        "arithmetic": tiny_params["tasks"]["arithmetic"] | {"n_shots": 4, "max_new_tokens": NEW}
    }
    changed = {
        "models": {name: spec},
        "model": name,
        "transfer_to": "reference",
        "tasks": tasks,
        "compressors": tiny_params["compressors"] | {"ada": ada},
        "presets": tiny_params["presets"] | {"small": {"compressors": shown, "ratios": []}},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params | changed))
    run = click.testing.CliRunner()
    swept = run.invoke(commands.main, ["sweep", "--model", name, "-n", "2", "--out", "data"])
    assert swept.exit_code == 0, swept.output
    verified = run.invoke(
        commands.main, ["verify", "--model", name, "--data", "data", "--against-kvpress", "10"]
    )
    assert verified.exit_code == 0, verified.output
    assert "whole: 10 traces" in verified.stdout
    assert "10 of 10 traces agree with kvpress" in verified.stdout
