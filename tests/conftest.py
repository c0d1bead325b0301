"""A workspace with settings and two tiny random models: every stage and command runs on it in seconds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import yaml

from tiny import build

# A shared machine is slow at times, and no test is about time.
hypothesis.settings.register_profile(
    "kvguard", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("kvguard")

REPOSITORY = Path(__file__).parents[1]
REAL = {"smollm2": "smollm2-135m", "gemma": "gemma-270m"}  # real models, and the tools that make them


@pytest.fixture(scope="session")
def real_model(tmp_path_factory):
    """Find a real model's folder: that of KVGUARD_SMOLLM2 or KVGUARD_GEMMA, or made by a tool, if there."""
    made = {}

    def find(name):
        if folder := os.environ.get(f"KVGUARD_{name.upper()}"):
            return Path(folder)
        tool = REPOSITORY.parent / "shared" / "tools" / REAL[name]
        if not tool.exists():
            pytest.skip(f"set KVGUARD_{name.upper()} to the folder of {REAL[name]}")
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            subprocess.run([tool, made[name], sys.executable], check=True)
        return made[name]

    return find


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Two saved random models with a byte tokenizer, as a user's local models would lie on disk."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    symbols = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    shape = {
        "vocab_size": len(symbols),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    folders = {}
    kinds = {"tiny": (Qwen2Config, Qwen2ForCausalLM), "tiny_llama": (LlamaConfig, LlamaForCausalLM)}
    for name, (config, kind) in kinds.items():
        torch.manual_seed(1)
        folders[name] = tmp_path_factory.mktemp(name)
        kind(config(**shape)).eval().save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def tiny_params(tiny_models):
    """The shipped settings, made small: 12 prompts, 48 tokens, 5 conditions."""
    data = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    spec = {"dtype": "float32", "task": "arithmetic"}
    data["models"] = {name: {"source": f"path:{folder}", **spec} for name, folder in tiny_models.items()}
    for task in data["tasks"].values():
        task |= {"n_shots": 0, "max_new_tokens": 48}
    data |= {"model": "tiny", "transfer_to": "tiny_llama", "device": "cpu", "n_resamples": 100}
    data["report"]["models"] = []
    data["sample"]["n"] = 12
    data["evaluate"]["n_trials"] = 8
    data["presets"]["small"] = {"compressors": ["none", "streaming_llm", "snapkv"], "ratios": [0.25, 0.5]}
    data["generate"] |= {"preset": "small", "prompts_per_part": 6, "batch_size": 16, "workers": 1}
    data["catastrophes"] |= {"loop_window": 8}
    data["live_validate"] |= {
        "n": 6, "conditions": ["streaming_llm@0.5", "worst"], "decoding_n": 3, "switch_traces": 4,
        "switch_offsets": [8, 0], "prompts_per_part": 6,
    }  # fmt: skip
    return data


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """MLflow's database with its tables made: making them takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path, empty_store, monkeypatch):
    """An empty repository folder with a store, as the current folder."""
    (tmp_path / "dvc.yaml").touch()
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workspace(folder, tiny_params):
    """A repository folder with the tiny settings."""
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params))
    return folder


@pytest.fixture(scope="session", params=["qwen2", "llama"])
def model(request):
    return build(request.param)


@pytest.fixture(scope="session")
def model_folder(tiny_models):
    return tiny_models["tiny"]
