"""Fine-tuning: what the loss is on, that a killed run ends as an unbroken one, that adapters are used."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from kvguard.cli import main
from kvguard.errors import KvguardError
from kvguard.models.load import LoadedModel, load_model
from kvguard.models.reference.finetune import FinetuneSettings, _collate, finetune, lessons
from kvguard.models.spec import ModelSpec
from kvguard.tasks import make_task


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(folder: Path, adapter: Path | None = None) -> LoadedModel:
    where = f"path:{adapter}" if adapter is not None else None
    return load_model("m", ModelSpec(source=f"path:{folder}", adapter=where, task="gsm8k"), "cpu")


def taught(model: LoadedModel, problems: Path) -> list:
    task = make_task("gsm8k_zero_shot", source=str(problems))
    return lessons(model, task, task.all(), 200)


def nll(model: LoadedModel, problems: Path) -> float:
    batch = _collate([{"input_ids": one.ids, "n_prompt": one.n_prompt} for one in taught(model, problems)])
    with torch.no_grad():
        return float(model.model(**batch).loss)


def test_a_lesson_is_the_prompt_as_asked_and_the_loss_is_on_answer_and_end(tiny_models, problems):
    model = loaded(tiny_models["tiny"])
    one = taught(model, problems)[0]
    text = model.tokenizer.decode(one.ids[: one.n_prompt])
    assert text.endswith("Q: What is 0 + 1?\nA:")
    batch = _collate([{"input_ids": one.ids, "n_prompt": one.n_prompt}])
    counted = batch["labels"][0][batch["labels"][0] >= 0].tolist()
    assert counted == one.ids[one.n_prompt :]
    assert counted[-1] in model.eos_ids


def test_a_run_cut_off_and_resumed_ends_as_one_that_was_not(tiny_models, problems, tmp_path):
    whole = FinetuneSettings(tmp_path / "whole", epochs=4, rows=4, rank=2, save_every=3)
    model = loaded(tiny_models["tiny"])
    before = nll(model, problems)
    assert finetune(model, taught(model, problems), whole, tmp_path / "a") == 16

    class Killed(Exception):
        pass

    def kill(_: dict[str, float], step: int) -> None:
        if step >= 10:
            raise Killed

    cut = FinetuneSettings(tmp_path / "cut", epochs=4, rows=4, rank=2, save_every=3)
    model = loaded(tiny_models["tiny"])
    with pytest.raises(Killed):
        finetune(model, taught(model, problems), cut, tmp_path / "b", kill)
    assert not (tmp_path / "b").exists()
    model = loaded(tiny_models["tiny"])
    assert finetune(model, taught(model, problems), cut, tmp_path / "b") == 16
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]

    learned = loaded(tiny_models["tiny"], tmp_path / "a")
    assert nll(learned, problems) < before
    assert learned.fingerprint != model.fingerprint


def test_a_task_without_solutions_is_rejected(tiny_models, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Say hello."}\n')
    task = make_task("own", source=str(path))
    with pytest.raises(KvguardError, match="no solutions to learn from"):
        lessons(loaded(tiny_models["tiny"]), task, task.all(), 200)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("nowhere", "neither embedded:NAME nor path:DIR"),
        ("embedded:nobody", "no adapter lies at"),
        ("path:/nowhere", "no adapter lies at /nowhere"),
        ("embedded:smollm135m_gsm8k", "cannot be loaded"),  # of another model
    ],
)
def test_an_adapter_that_is_none_of_the_models_is_one_line(tiny_models, adapter, message):
    asked = ["run", "--model", f"path:{tiny_models['tiny']}", "--adapter", adapter]
    result = CliRunner().invoke(
        main, [*asked, "--preset", "experiment-001", "--task", "arithmetic", "-n", "1"]
    )
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_finetune_wants_training_problems(tiny_models, tmp_path):
    asked = ["reference", "finetune", "--model", f"path:{tiny_models['tiny']}", "--run-folder", str(tmp_path)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1
    assert "--task-source: name the training problems" in result.output
