"""kvguard's ragged batches against kvpress's own run, one prompt at a time."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from kvguard.engine.layers import attention_modules, sliding_windows
from kvguard.engine.loop import decode
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, attention_for, build_press, only_scores
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.models.load import load_model
from kvguard.models.reference import REFERENCE_PATHS
from kvguard.models.spec import ModelSpec
from kvguard.sweep.settings import CompressorSpec, Preset, conditions
from kvguard.tasks import sample_prompts
from tiny import ARCHITECTURES, build

PARAMS = yaml.safe_load(Path("params.yaml").read_text())
COMPRESSORS = {name: CompressorSpec.model_validate(spec) for name, spec in PARAMS["compressors"].items()}
HEADWISE = CompressorSpec(press="AdaKVPress", params={"press": {"press": "SnapKVPress", "window_size": 16}})
NEED_ONE_ROTARY = frozenset({"cap", "expected_attention"})  # and Gemma 3 has one per kind of layer
EOS = [1]
NEW = 24


def press_of(condition: Condition, specs: dict[str, CompressorSpec]):  # type: ignore[no-untyped-def]
    return (
        None if condition.compressor == "none" else build_press(specs[condition.compressor], condition.ratio)
    )


def random_prompts(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, 258, (n,), generator=generator) for n in lengths]


def compare(
    model: PreTrainedModel,
    specs: dict[str, CompressorSpec],
    preset: Preset,
    prompts: list[torch.Tensor],
    eos: list[int] = EOS,
    new: int = NEW,
) -> None:
    rows, keys = [], []
    for prompt in prompts:
        for implementation in ("sdpa", "eager"):
            presses = {c: press_of(c, specs) for c in conditions(preset)}
            presses = {c: p for c, p in presses.items() if attention_for(p) == implementation}
            if not presses:
                continue
            done = prefill(model, prompt, presses, implementation)
            rows += [Row(prompt, done.logits, done.kept[c]) for c in presses]
            keys += [(prompt, c) for c in presses]
    got = decode(model, rows, Decoding(new, eos), batch_size=7)
    for r, (prompt, condition) in enumerate(keys):
        reference = kvpress_generate(model, prompt, press_of(condition, specs), new, eos)
        tokens = got.token_ids[r, : got.lengths[r]].tolist()
        assert reference.agrees(tokens), f"{condition}: {tokens} is not kvpress's {reference.token_ids}"
        assert got.stopped[r] == (tokens[-1] in eos)


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


def test_every_compressor_and_ratio_of_the_params_agrees_with_kvpress_or_is_rejected(
    model: PreTrainedModel,
) -> None:
    rejected = NEED_ONE_ROTARY if any(sliding_windows(model)) else frozenset()
    preset = Preset(
        compressors=("none", *(COMPRESSORS.keys() - rejected)), ratios=(0.25, 0.5, 0.625, 0.75, 0.875)
    )
    prompts = random_prompts(160, 131, 143)
    compare(model, COMPRESSORS, preset, prompts)
    for name in rejected:
        condition = Condition(name, 0.5)
        with pytest.raises(KvguardError, match=f"{name}@0.5: the press rejects"):
            prefill(model, prompts[0], {condition: press_of(condition, COMPRESSORS)}, "sdpa")


@pytest.mark.parametrize("name", sorted(REFERENCE_PATHS))
def test_the_default_sweep_of_a_reference_model_agrees_with_kvpress(name: str) -> None:
    spec = ModelSpec(source=f"embedded:{REFERENCE_PATHS[name].name}", task="arithmetic")
    loaded = load_model(name, spec, "cpu")
    prompts = sample_prompts("arithmetic", 2, seed=9, n_shots=3)["prompt"]
    encoded = [torch.tensor(loaded.encode(prompt)) for prompt in prompts]
    preset = Preset.model_validate(PARAMS["presets"]["default"])
    compare(loaded.model, COMPRESSORS, preset, encoded, eos=loaded.eos_ids, new=64)


def test_a_headwise_press_agrees_and_leaves_nothing_behind(model: PreTrainedModel) -> None:
    specs = {"ada": HEADWISE}
    assert not only_scores(build_press(HEADWISE, 0.5))
    compare(model, specs, Preset(compressors=("none", "ada"), ratios=(0.5, 0.75)), random_prompts(90, 77))
    prompt = torch.arange(2, 92)
    before = kvpress_generate(model, prompt, None, NEW, EOS).token_ids
    condition = Condition("ada", 0.75)
    done = prefill(model, prompt, {condition: press_of(condition, specs)}, "sdpa")
    decode(model, [Row(prompt, done.logits, done.kept[condition])], Decoding(NEW, EOS), batch_size=1)
    assert all(getattr(m, "masked_key_indices", None) is None for m in attention_modules(model))
    assert kvpress_generate(model, prompt, None, NEW, EOS).token_ids == before


def test_tokens_do_not_depend_on_the_batch(model: PreTrainedModel) -> None:
    prompts = [
        torch.randint(2, 258, (n,), generator=torch.Generator().manual_seed(n)) for n in (40, 60, 50, 45)
    ]
    none = Condition("none", 0.0)
    done = [prefill(model, p, {none: None}, "sdpa") for p in prompts]
    rows = [Row(p, d.logits, d.kept[none]) for p, d in zip(prompts, done, strict=True)]
    alone, together = (decode(model, rows, Decoding(NEW, EOS), batch_size=size) for size in (1, 4))
    assert (alone.lengths == together.lengths).all()
    assert (alone.token_ids == together.token_ids).all()
    assert abs(alone.signals - together.signals).max() < 1e-3


def test_a_sampler_decides_the_tokens(model: PreTrainedModel) -> None:
    none = Condition("none", 0.0)
    prompt = torch.arange(2, 40)
    done = prefill(model, prompt, {none: None}, "sdpa")
    rows = [Row(prompt, done.logits, done.kept[none])]
    got = decode(model, rows, Decoding(5, EOS, sampler=lambda x, _: torch.full((len(x),), 9)), batch_size=1)
    assert got.token_ids[0].tolist() == [9] * 5
    assert got.lengths[0] == 5
    assert not got.stopped[0]


def test_every_row_that_ends_is_reported_once(model: PreTrainedModel) -> None:
    none = Condition("none", 0.0)
    rows = []
    for n in (30, 35, 33):
        done = prefill(model, torch.arange(2, 2 + n), {none: None}, "sdpa")
        rows.append(Row(torch.arange(2, 2 + n), done.logits, done.kept[none]))
    seen: list[int] = []
    got = decode(model, rows, Decoding(NEW, EOS), batch_size=2, on_finish=lambda done: seen.append(done.row))
    assert sorted(seen) == [0, 1, 2]
    assert (got.lengths > 0).all()
