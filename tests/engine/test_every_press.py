"""Every press of kvpress on both reference models, against kvpress's own run of one prompt."""

import inspect
from typing import Any

import kvpress
import pytest
import torch
from kvpress import BasePress
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.attention import attention
from kvguard.engine.loop import decode
from kvguard.engine.oracle import Reference, kvpress_generate
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, attention_for, build_press
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.models.load import LoadedModel, load_model
from kvguard.models.reference import REFERENCE_PATHS
from kvguard.models.spec import ModelSpec
from kvguard.sweep.settings import CompressorSpec
from kvguard.tasks import sample_prompts

RATIO, NEW = 0.5, 16
KNORM = {"press": "KnormPress"}
SNAPKV = {"press": "SnapKVPress", "window_size": 16}

RUNS: dict[str, dict[str, Any]] = {
    "AdaKVPress": {"press": SNAPKV},
    "BlockPress": {"press": KNORM, "block_size": 32},
    "CURPress": {},
    "CapPress": {},
    "ChunkKVPress": {"press": SNAPKV},
    "ChunkPress": {"press": KNORM, "chunk_length": 32},
    "CompactorPress": {},
    "ComposedPress": {"presses": [SNAPKV, {"press": "ThinKPress", "key_channel_compression_ratio": 0.25}]},
    "CriticalAdaKVPress": {"press": SNAPKV},
    "CriticalKVPress": {"press": SNAPKV},
    "DMSPress": {"press": KNORM, "threshold": -4.0, "sliding_window_size": 16},
    "EntropyGatedChunkKVPress": {"press": SNAPKV},
    "ExpectedAttentionPress": {},
    "KVComposePress": {},
    "KVgradPress": {},
    "KVzipPress": {},
    "KeyDiffPress": {},
    "KeyRerotationPress": {"press": KNORM},
    "KnormPress": {},
    "LagKVPress": {"lag_size": 32},
    "LeverageScorePress": {},
    "MergingPress": {"press": KNORM},
    "NonCausalAttnPress": {},
    "ObservedAttentionPress": {},
    "PerLayerCompressionPress": {"press": KNORM, "compression_ratios": [0.25, 0.5, 0.75, 0.25, 0.5, 0.75]},
    "PyramidKVPress": {"window_size": 16},
    "RandomPress": {"seed": 0},
    "SimLayerKVPress": {"lazy_threshold": 0.0, "n_recent": 32},
    "SnapKVPress": {"window_size": 16},
    "StreamingLLMPress": {},
    "TOVAPress": {},
    "ThinKPress": {"key_channel_compression_ratio": 0.5},
}
KEEPS_EVERY_ENTRY = {"ThinKPress"}  # it zeroes channels of the keys

DECODING = "compresses what is being generated"
UNTRAINED = "cannot serve this model"  # it loads what was trained for a few well-known models
CANNOT_RUN: dict[str, tuple[dict[str, Any], str]] = {
    "BasePress": ({}, "must be implemented in subclass"),
    "CAMPress": ({"base_press": KNORM}, DECODING),
    "CompressionRatioDecodingPress": ({"base_press": KNORM}, DECODING),
    "DecodingPress": ({"base_press": KNORM}, DECODING),
    "DuoAttentionPress": ({"head_compression_ratio": 0.5}, UNTRAINED),
    "ExpectedAttentionStatsPress": ({}, UNTRAINED),
    "FastKVzipPress": ({}, UNTRAINED),
    "FinchPress": ({}, "delimiter token"),  # context and question apart, and a tokenizer made for it
    "KVzapPress": ({}, UNTRAINED),
    "LUKVPress": ({"press": KNORM}, UNTRAINED),
    "PrefillDecodingPress": ({"prefilling_press": KNORM}, DECODING),
    "QFilterPress": ({}, UNTRAINED),
    "RestoreKVPress": ({}, UNTRAINED),
    "ScorerPress": ({}, "refuses"),
}


@pytest.fixture(scope="module", params=sorted(REFERENCE_PATHS))
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    source = f"embedded:{REFERENCE_PATHS[request.param].name}"
    return load_model(request.param, ModelSpec(source=source, task="arithmetic"), "cpu")


@pytest.fixture(scope="module")
def prompt(loaded: LoadedModel) -> torch.Tensor:
    return torch.tensor(loaded.encode(sample_prompts("arithmetic", 1, seed=9, n_shots=1)["prompt"][0]))


def make(name: str, params: dict[str, Any]) -> BasePress:
    return build_press(CompressorSpec(press=name, params=params), RATIO)


def compresses_afterwards(press: BasePress) -> bool:
    """Whether a press does its work when its context ends, so that nothing may be generated inside."""
    names = [cls.__name__ for cls in type(press).__mro__]
    return "KVzipPress" in names or "KVComposePress" in names


@torch.inference_mode()
def prefill_then_generate(
    model: PreTrainedModel, ids: torch.Tensor, press: BasePress, eos_ids: list[int]
) -> Reference:
    """Generate as kvpress's pipeline does: the prompt inside the press's context, the answer outside."""
    cache = DynamicCache(config=model.config)
    tokens: list[int] = []
    gaps: list[float] = []
    with attention(model, attention_for(press)):
        with press(model):
            logits = model(input_ids=ids[None], past_key_values=cache, logits_to_keep=1).logits[0, -1]
        while True:
            top = logits.topk(2).values
            gaps.append(float(top[0] - top[1]))
            tokens.append(int(logits.argmax()))
            if len(tokens) == NEW or tokens[-1] in eos_ids:
                break
            logits = model(
                input_ids=torch.tensor([tokens[-1:]]),
                past_key_values=cache,
                position_ids=torch.tensor([[len(ids) + len(tokens) - 1]]),
            ).logits[0, -1]
    clear_head_masks(model)
    return Reference(tokens, gaps)


def oracle(loaded: LoadedModel, prompt: torch.Tensor, press: BasePress) -> Reference:
    if compresses_afterwards(press):
        return prefill_then_generate(loaded.model, prompt, press, loaded.eos_ids)
    return kvpress_generate(loaded.model, prompt, press, NEW, loaded.eos_ids)


def test_every_press_is_either_run_or_listed_with_its_reason() -> None:
    presses = {
        name
        for name in kvpress.__all__
        if inspect.isclass(getattr(kvpress, name)) and issubclass(getattr(kvpress, name), BasePress)
    }
    assert presses == RUNS.keys() | CANNOT_RUN.keys()
    assert not RUNS.keys() & CANNOT_RUN.keys()


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_press_generates_what_kvpress_generates(
    name: str, loaded: LoadedModel, prompt: torch.Tensor
) -> None:
    condition, press = Condition(name, RATIO), make(name, RUNS[name])
    torch.manual_seed(0)  # some presses sketch with random matrices
    done = prefill(loaded.model, prompt, {condition: press}, attention_for(press))
    kept = done.kept[condition]
    assert (kept.n_kept < len(prompt)) == (name not in KEEPS_EVERY_ENTRY)
    row = Row(prompt, done.logits, kept)
    got = decode(loaded.model, [row], Decoding(NEW, loaded.eos_ids), batch_size=1)
    tokens = got.token_ids[0, : got.lengths[0]].tolist()
    torch.manual_seed(0)
    reference = oracle(loaded, prompt, make(name, RUNS[name]))
    assert reference.agrees(tokens), f"{tokens} is not kvpress's {reference.token_ids}"


@pytest.mark.parametrize("name", sorted(CANNOT_RUN))
def test_a_press_that_cannot_run_says_why_in_one_line(
    name: str, loaded: LoadedModel, prompt: torch.Tensor, offline: None
) -> None:
    params, reason = CANNOT_RUN[name]
    with pytest.raises(KvguardError, match=rf"^[^\n]*{reason}[^\n]*$"):
        prefill(loaded.model, prompt, {Condition(name, RATIO): make(name, params)}, "sdpa")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No press downloads anything here, whatever the machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_comparison_notices_another_ratio(loaded: LoadedModel, prompt: torch.Tensor) -> None:
    press = make("KnormPress", {})
    harder = build_press(CompressorSpec(press="KnormPress"), 0.9)
    tokens = oracle(loaded, prompt, harder).token_ids
    assert not oracle(loaded, prompt, press).agrees(tokens)
