"""Layers that attend to the last tokens only, as Gemma 3 has: not compressed, never beyond their window."""

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from kvguard.engine.budget import Budget
from kvguard.engine.loop import Generated, assemble, decode, decode_steps
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.prefill import full_cache, prefill
from kvguard.engine.presses import Condition, build_press, only_scores
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.sweep.settings import CompressorSpec

WINDOW, NEW, EOS = 24, 40, [1]
SPECS = {
    "none": None,
    "knorm": CompressorSpec(press="KnormPress"),
    "ada": CompressorSpec(press="AdaKVPress", params={"press": {"press": "KnormPress"}}),
}


@pytest.fixture(scope="module")
def gemma() -> Gemma3ForConditionalGeneration:
    torch.manual_seed(0)
    text = {
        "vocab_size": 258,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "initializer_range": 0.25,
        "tie_word_embeddings": False,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, tie_word_embeddings=False
    )
    return Gemma3ForConditionalGeneration(config).eval()


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 258, (n,), generator=generator) for n in (15, 60, 91)]


def rows(gemma: Gemma3ForConditionalGeneration, name: str) -> list[Row]:
    spec = SPECS[name]
    condition = Condition(name, 0.5 if spec else 0.0)
    made = []
    for ids in prompts():
        done = prefill(gemma, ids, {condition: spec and build_press(spec, 0.5)}, "sdpa")
        made.append(Row(ids, done.logits, done.kept[condition]))
    return made


@pytest.mark.parametrize("name", SPECS)
def test_batched_decoding_agrees_with_kvpress(gemma: Gemma3ForConditionalGeneration, name: str) -> None:
    got = decode(gemma, rows(gemma, name), Decoding(NEW, EOS), batch_size=3)
    for r, ids in enumerate(prompts()):
        spec = SPECS[name]
        reference = kvpress_generate(gemma, ids, spec and build_press(spec, 0.5), NEW, EOS)
        tokens = got.token_ids[r, : got.lengths[r]].tolist()
        assert len(set(tokens)) > 5
        assert reference.agrees(tokens), f"{tokens} is not kvpress's {reference.token_ids}"


def test_only_layers_with_full_attention_are_compressed(gemma: Gemma3ForConditionalGeneration) -> None:
    assert only_scores(build_press(SPECS["knorm"], 0.5))
    short, *long = rows(gemma, "knorm")
    assert short.cache.lengths == [15, 7, 15, 7]
    for row in long:
        assert row.cache.lengths == [WINDOW - 1, row.n_prompt // 2] * 2


def test_a_restored_and_compressed_row_goes_on_as_if_nothing_had_happened(
    gemma: Gemma3ForConditionalGeneration,
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
    gemma: Gemma3ForConditionalGeneration,
) -> None:
    assert full_cache(gemma, prompts()[2]).lengths == [WINDOW - 1, 91] * 2


def test_a_budget_while_decoding_is_refused(gemma: Gemma3ForConditionalGeneration) -> None:
    with pytest.raises(KvguardError, match="sliding-window layers"):
        Budget(gemma, [build_press(SPECS["knorm"], 0.5)], 16)
