"""Every press of kvpress on three architectures, against kvpress's own run of one prompt.

The two reference models, and a random Gemma 3, text only, whose prompt is beyond its sliding windows.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import kvpress
import pytest
import torch
from kvpress import BasePress
from transformers import PreTrainedModel

from kvguard.engine.layers import sliding_windows
from kvguard.engine.loop import decode
from kvguard.engine.oracle import Reference, kvpress_generate
from kvguard.engine.prefill import Prefilling, divisible, prefill
from kvguard.engine.presses import Condition, attention_for, build_press
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.models.load import load_model
from kvguard.models.reference import REFERENCE_PATHS
from kvguard.models.spec import ModelSpec
from kvguard.sweep.settings import CompressorSpec
from kvguard.tasks import sample_prompts
from tiny import WINDOW, build

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
DMS_OF_NORMED_KEYS = {**RUNS["DMSPress"], "threshold": 0.0}  # Gemma 3's keys are all of one norm
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
    "ScorerPress": ({}, "rejects"),
}

WHOLE = "sliding-window layers"  # it compresses all layers at once, those with a window too
ROTARY = "inv_freq"  # it wants one rotary frequency for all layers, and Gemma 3 has one per kind of layer
CANNOT_RUN_WITH_WINDOWS = {
    "CapPress": ROTARY,
    "ExpectedAttentionPress": ROTARY,
    "FastKVzipPress": WHOLE,
    "FinchPress": WHOLE,
    "KVComposePress": WHOLE,
    "KVgradPress": WHOLE,
    "KVzipPress": WHOLE,
    "KeyRerotationPress": ROTARY,
    "RestoreKVPress": WHOLE,
}


@dataclass(frozen=True)
class Subject:
    """A model, a prompt, and what ends its texts."""

    model: PreTrainedModel
    prompt: torch.Tensor
    eos_ids: list[int]

    @property
    def with_windows(self) -> bool:
        """Whether some layers slide."""
        return any(sliding_windows(self.model))

    def reference(self, press: BasePress) -> Reference:
        """Generate under kvpress alone."""
        torch.manual_seed(0)  # some presses sketch with random matrices
        return kvpress_generate(self.model, self.prompt, press, NEW, self.eos_ids)

    def prefilled(self, name: str, press: BasePress) -> Row:
        """Prefill under a press."""
        condition = Condition(name, RATIO)
        torch.manual_seed(0)
        done = prefill(self.model, self.prompt, {condition: press}, attention_for(press))
        return Row(self.prompt, done.logits, done.kept[condition])


@pytest.fixture(scope="module", params=[*sorted(REFERENCE_PATHS), "gemma3"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "gemma3":
        ids = torch.randint(3, 258, (4 * WINDOW,), generator=torch.Generator().manual_seed(1))
        return Subject(build("gemma3"), ids, [1])
    source = f"embedded:{REFERENCE_PATHS[request.param].name}"
    loaded = load_model(request.param, ModelSpec(source=source, task="arithmetic"), "cpu")
    ids = torch.tensor(loaded.encode(sample_prompts("arithmetic", 1, seed=9, n_shots=1)["prompt"][0]))
    return Subject(loaded.model, ids, loaded.eos_ids)


def make(name: str, params: dict[str, Any]) -> BasePress:
    return build_press(CompressorSpec(press=name, params=params), RATIO)


def test_every_press_is_either_run_or_listed_with_its_reason() -> None:
    presses = {
        name
        for name in kvpress.__all__
        if inspect.isclass(getattr(kvpress, name)) and issubclass(getattr(kvpress, name), BasePress)
    }
    assert presses == RUNS.keys() | CANNOT_RUN.keys()
    assert not RUNS.keys() & CANNOT_RUN.keys()


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_press_generates_what_kvpress_generates(name: str, subject: Subject) -> None:
    if subject.with_windows and name in CANNOT_RUN_WITH_WINDOWS:
        pytest.skip("rejected, see below")
    params = RUNS[name] if name != "DMSPress" or not subject.with_windows else DMS_OF_NORMED_KEYS
    row = subject.prefilled(name, make(name, params))
    for live, window in zip(row.cache.live, sliding_windows(subject.model), strict=True):
        assert window is None or live == window - 1
    full = [n for n, window in zip(row.cache.live, sliding_windows(subject.model), strict=True) if not window]
    assert (sum(full) < len(full) * row.n_prompt) == (name not in KEEPS_EVERY_ENTRY)
    got = decode(subject.model, [row], Decoding(NEW, subject.eos_ids), batch_size=1)
    tokens = got.token_ids[0, : got.lengths[0]].tolist()
    reference = subject.reference(make(name, params))
    assert reference.agrees(tokens), f"{tokens} is not kvpress's {reference.token_ids}"


@pytest.mark.parametrize("name", ["none", *sorted(RUNS)])
def test_a_prompt_prefilled_in_pieces_keeps_what_one_pass_keeps(name: str, subject: Subject) -> None:
    piece = 41
    press = None if name == "none" else make(name, RUNS[name])
    if subject.with_windows and name in CANNOT_RUN_WITH_WINDOWS:
        pytest.skip("rejected, see below")
    if not divisible([press]):
        pytest.skip("it needs the whole prompt at once")
    if subject.with_windows and name == "KnormPress":
        pytest.skip("Gemma 3's keys are all of one norm: which are kept is rounding")
    condition = Condition(name, RATIO)
    torch.manual_seed(0)  # some presses sketch with random matrices
    whole = prefill(subject.model, subject.prompt, {condition: press}, "sdpa")
    torch.manual_seed(0)
    steps = Prefilling(subject.model, subject.prompt, {condition: press}, "sdpa", piece)
    found = [steps.step() for _ in range(-(-len(subject.prompt) // piece))]
    done = found.pop()
    assert done is not None
    assert not any(found)
    torch.testing.assert_close(done.logits, whole.logits, rtol=1e-4, atol=1e-3)
    ours, theirs = done.kept[condition], whole.kept[condition]
    assert ours.lengths == theirs.lengths
    for layer in range(len(ours.lengths)):
        for mine, other in zip(ours.layer(layer), theirs.layer(layer), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", sorted(CANNOT_RUN.keys() | CANNOT_RUN_WITH_WINDOWS.keys()))
def test_a_press_that_cannot_run_says_why_in_one_line_every_time(
    name: str, subject: Subject, offline: None
) -> None:
    params, reason = CANNOT_RUN.get(name) or (RUNS[name], "")
    if subject.with_windows:
        reason = CANNOT_RUN_WITH_WINDOWS.get(name, reason)
    elif name not in CANNOT_RUN:
        pytest.skip("runs where no layer slides")
    if reason == DECODING:
        with pytest.raises(KvguardError, match=rf"^[^\n]*{reason}[^\n]*$"):
            make(name, params)
        return
    press = make(name, params)
    said = set()
    for _ in range(2):
        with pytest.raises(KvguardError, match=rf"^[^\n]*{reason}[^\n]*$") as raised:
            subject.prefilled(name, press)
        said.add(str(raised.value))
    assert len(said) == 1


@pytest.mark.parametrize("name", ["CapPress", "KeyRerotationPress"])
def test_where_kvpress_itself_fails_that_is_said(name: str, subject: Subject) -> None:
    if subject.with_windows:
        with pytest.raises(KvguardError, match=f"^{name}: kvpress itself[^\n]*inv_freq[^\n]*$"):
            subject.reference(make(name, RUNS[name]))
    else:
        assert subject.reference(make(name, RUNS[name])).token_ids


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No press downloads anything here, whatever the machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", ["KnormPress", "KVgradPress", "KVzipPress", "KVComposePress"])
def test_the_comparison_notices_another_ratio(name: str, subject: Subject) -> None:
    """Those too that compress on leaving their context, after the prompt."""
    if subject.with_windows and name in CANNOT_RUN_WITH_WINDOWS:
        pytest.skip("rejected, see above")
    harder = build_press(CompressorSpec(press=name), 0.9)
    tokens = subject.reference(harder).token_ids
    assert not subject.reference(make(name, {})).agrees(tokens)
