"""Layers that attend to the last tokens only, as Gemma 3 has: not compressed, never beyond their window."""

import numpy as np
import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from kvguard.engine.budget import Budget
from kvguard.engine.layers import full_entries, sliding_windows
from kvguard.engine.loop import Generated, assemble, decode, decode_steps
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.prefill import full_cache, prefill
from kvguard.engine.presses import Condition, build_press
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.guard.actions import Action, GuardedRun, GuardParams
from kvguard.guard.controller import ControllerParams
from kvguard.guard.watch import LoopTrigger, Watch
from kvguard.sweep.settings import CompressorSpec
from tiny import SHAPE, SLIDING, WINDOW, build

NEW, EOS = 40, [1]
SPECS = {
    "none": None,
    "knorm": CompressorSpec(press="KnormPress"),
    "ada": CompressorSpec(press="AdaKVPress", params={"press": {"press": "KnormPress"}}),
    "pyramid": CompressorSpec(press="PyramidKVPress", params={"window_size": 8}),
    "composed": CompressorSpec(press="ComposedPress", params={"presses": [{"press": "KeyDiffPress"}]}),
}


def conditional() -> PreTrainedModel:
    """The class with a vision tower, the only one whose sliding layers kvpress itself spares."""
    torch.manual_seed(0)
    text = {key: value for key, value in {**SHAPE, **SLIDING}.items() if not key.endswith("token_id")}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, tie_word_embeddings=False
    )
    return Gemma3ForConditionalGeneration(config).eval()


@pytest.fixture(scope="module", params=["text only", "conditional"])
def gemma(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build("gemma3") if request.param == "text only" else conditional()


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 258, (n,), generator=generator) for n in (15, 60, 91)]


def rows(gemma: PreTrainedModel, name: str) -> list[Row]:
    spec = SPECS[name]
    condition = Condition(name, 0.5 if spec else 0.0)
    made = []
    for ids in prompts():
        done = prefill(gemma, ids, {condition: spec and build_press(spec, 0.5)}, "sdpa")
        made.append(Row(ids, done.logits, done.kept[condition]))
    return made


@pytest.mark.parametrize("name", SPECS)
def test_batched_decoding_agrees_with_kvpress(gemma: PreTrainedModel, name: str) -> None:
    got = decode(gemma, rows(gemma, name), Decoding(NEW, EOS), batch_size=3)
    for r, ids in enumerate(prompts()):
        spec = SPECS[name]
        reference = kvpress_generate(gemma, ids, spec and build_press(spec, 0.5), NEW, EOS)
        tokens = got.token_ids[r, : got.lengths[r]].tolist()
        assert len(set(tokens)) > 5
        assert reference.agrees(tokens), f"{tokens} is not kvpress's {reference.token_ids}"


@pytest.mark.parametrize("name", sorted(SPECS.keys() - {"none"}))
def test_only_layers_with_full_attention_are_compressed(gemma: PreTrainedModel, name: str) -> None:
    """Whether kvguard scores for the press or it runs in kvpress's own context, whatever the class."""
    for row in rows(gemma, name):
        live = row.cache.live
        assert live[::2] == [min(row.n_prompt, WINDOW - 1)] * 2
        assert max(live[1::2]) < row.n_prompt
        if name != "pyramid":  # whose layers have different budgets
            assert live[1::2] == pytest.approx([row.n_prompt / 2] * 2, abs=1)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_both_classes_of_a_model_are_compressed_alike(name: str) -> None:
    """Same weights: kvpress's own rule for the one class is kvguard's for the other."""
    whole, text = conditional(), build("gemma3")
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    spec = SPECS[name]
    for ids in prompts():
        one, other = (
            kvpress_generate(gemma, ids, spec and build_press(spec, 0.5), 12, EOS) for gemma in (whole, text)
        )
        assert one == other


def test_a_model_of_nothing_but_windows_has_nothing_to_compress() -> None:
    model = build("gemma3", layer_types=["sliding_attention"] * 4)
    condition = Condition("knorm", 0.5)
    for spec in (SPECS["knorm"], SPECS["ada"]):
        with pytest.raises(KvguardError, match="there is nothing to compress"):
            prefill(model, prompts()[1], {condition: build_press(spec, 0.5)}, "sdpa")
    none = Condition("none", 0.0)
    assert prefill(model, prompts()[1], {none: None}, "sdpa").kept[none].lengths == [WINDOW - 1] * 4


def test_a_restored_and_compressed_row_goes_on_as_if_nothing_had_happened(
    gemma: PreTrainedModel,
) -> None:
    plain = decode(gemma, rows(gemma, "none"), Decoding(NEW, EOS), batch_size=3)
    batch = assemble(gemma, rows(gemma, "none"), 3, Decoding(NEW, EOS, keep_cache=True))
    for step in decode_steps(batch):
        if int(step.t[0]) == 30:
            batch.restore(range(batch.n))
            batch.recompress(range(batch.n))
            held = [min(n, WINDOW - 1) for n in batch.cache.lengths[0, : batch.n].tolist()]
            full = batch.cache.lengths[1, : batch.n].tolist()
            assert batch.kv_tokens().tolist() == [(a + b) / 2 for a, b in zip(held, full, strict=True)]
    assert (Generated.of(batch.collect()).token_ids == plain.token_ids).all()


def test_the_full_cache_of_a_long_text_holds_one_window_less_the_token_to_come(
    gemma: PreTrainedModel,
) -> None:
    assert full_cache(gemma, prompts()[2]).lengths == [WINDOW - 1, 91] * 2


def test_what_an_uncompressed_text_holds_is_known_from_its_length(gemma: PreTrainedModel) -> None:
    windows = sliding_windows(gemma)
    batch = assemble(gemma, rows(gemma, "none"), 3, Decoding(NEW, EOS))
    for step in decode_steps(batch):
        fed = batch.n_prompt + step.t
        assert batch.kv_tokens().tolist() == full_entries(windows, fed).tolist()


def test_only_what_the_uncompressed_model_would_hold_can_be_saved(gemma: PreTrainedModel) -> None:
    trigger, never = LoopTrigger(), ControllerParams(tau_low=1, tau_high=1, k_escalate=1, j_deescalate=1)
    for name, layers in (("none", 0), ("knorm", 2)):
        batch = assemble(gemma, rows(gemma, name), 3, Decoding(NEW, EOS))
        run = GuardedRun(batch, Watch(trigger, never), Action.NONE, GuardParams(), [0.5] * 3)
        for _ in run.steps():
            pass
        found = run.collect()
        for number, n_prompt in enumerate((15, 60, 91)):
            done = found[number]
            fed = n_prompt + np.arange(done.n_steps)
            spared = layers * n_prompt / 2 / 4
            share = (spared / full_entries(sliding_windows(gemma), fed)).mean()
            assert done.kv_saved == pytest.approx(share, abs=0.01 * layers)


def test_a_budget_while_decoding_is_rejected(gemma: PreTrainedModel) -> None:
    with pytest.raises(KvguardError, match="sliding-window layers"):
        Budget(gemma, [build_press(SPECS["knorm"], 0.5)], 16)
