"""The guard and presses that cannot do what they are asked: one line, before the first prompt if possible."""

import logging

import kvpress
import pytest
import torch

import bundles
from kvguard import Guard
from kvguard.errors import KvguardError
from kvguard.guard.controller import ControllerParams
from tiny import build

AT_ONCE = ControllerParams(tau_low=0.0, tau_high=0.0, k_escalate=1, j_deescalate=1000)
PROMPTS = [torch.arange(5, 45).tolist(), torch.arange(50, 110).tolist()]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    logging.getLogger("kvpress").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def asked(tmp_path_factory, model_folder):
    """Ask a guard that acts at once; the model is random, and the tokenizer knows bytes."""
    from transformers import AutoTokenizer

    model, tokenizer = build("qwen2"), AutoTokenizer.from_pretrained(model_folder)
    guard = Guard.load(bundles.write_bundle(tmp_path_factory.mktemp("guard"), model, params=AT_ONCE))
    return lambda press: guard.generate(
        model, tokenizer, PROMPTS, press=press, max_new_tokens=8, action="rollback"
    )


@pytest.mark.parametrize(
    ("press", "words"),
    [
        (kvpress.KVzapPress(0.5), "KVzapPress@0.5: the press cannot serve this model"),
        (kvpress.FastKVzipPress(0.5), "FastKVzipPress@0.5: the press cannot serve this model"),
        (kvpress.DMSPress(kvpress.KnormPress(), threshold=0.0, decoding=True), "decoding=False"),
        (
            kvpress.ComposedPress([kvpress.KnormPress(0.5), kvpress.DecodingPress(kvpress.KnormPress())]),
            "press DecodingPress: .*compression_interval",
        ),
        (kvpress.AdaKVPress(kvpress.KVzapPress(0.5)), "AdaKVPress@0.5: the press cannot serve this model"),
    ],
)
def test_a_press_that_can_serve_no_prompt_is_rejected_before_the_first_every_time(asked, press, words):
    said = set()
    for _ in range(2):
        with pytest.raises(KvguardError, match=words) as raised:
            asked(press)
        said.add(str(raised.value))
    [line] = said
    assert "\n" not in line


@pytest.mark.parametrize(
    ("press", "words"),
    [
        (kvpress.FinchPress(0.5), "delimiter token"),
        (kvpress.KVComposePress(structured=False, compression_ratio=0.5), "of 40 tokens|cannot"),
        (kvpress.SnapKVPress(0.5, window_size=8, kernel_size=4), "RuntimeError"),
        (kvpress.ComposedPress([kvpress.SnapKVPress(0.5, window_size=8, kernel_size=4)]), "RuntimeError"),
    ],
)
def test_a_press_that_fails_on_its_prompts_says_so_for_each(asked, press, words):
    for output in asked(press):
        assert output.stop_reason == "rejected"
        assert len(output.token_ids) == 0
        assert "\n" not in output.error
    assert any(word in asked(press)[0].error for word in words.split("|"))


def test_a_press_that_reads_attention_weights_is_seen_inside_another(asked):
    press = kvpress.ComposedPress([kvpress.ObservedAttentionPress(0.5), kvpress.KeyDiffPress(0.5)])
    for output in asked(press):
        assert output.error is None
        assert output.kv_saved > 0  # until it was rolled back
