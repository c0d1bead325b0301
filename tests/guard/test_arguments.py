"""The arguments of a call: whatever is given, a call that runs or one line before anything ran."""

import pytest
from kvpress import (
    AdaKVPress,
    DecodingPress,
    KnormPress,
    ObservedAttentionPress,
    ThinKPress,
)

import bundles
from kvguard import Guard
from kvguard.errors import KvguardError
from kvguard.guard.actions import GuardParams


def _of_ratio(ratio):
    press = KnormPress()
    press.compression_ratio = ratio  # where kvpress no longer looks
    return press


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"action": "undo"}, "'undo' .*rollback"),
        ({"action": "hold", "press": KnormPress(0.5)}, "compression_interval.*restore, rollback, restart"),
        ({"compression_interval": 16}, "pass a press"),
        ({"press": "snapkv"}, "'snapkv' is no kvpress press"),
        ({"press": DecodingPress(KnormPress())}, "DecodingPress.*compression_interval"),
        (
            {"press": ObservedAttentionPress(0.5), "compression_interval": 32},
            "ObservedAttentionPress.*KnormPress",
        ),
        ({"press": AdaKVPress(KnormPress(0.5)), "compression_interval": 32}, "AdaKVPress.*KnormPress"),
        ({"press": ThinKPress(0.5), "compression_interval": 32}, "ThinKPress.*KnormPress"),
        ({"press": _of_ratio(-0.5)}, "compression_ratio of -0.5"),
        ({"press": _of_ratio(1.0)}, "compression_ratio of 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "seed": 1.5}, "seed"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "seed": -1}, "seed"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: 2.5"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
@pytest.mark.parametrize("how", ["generate", "stream"])
def test_a_wrong_argument_is_one_line_before_anything_runs(
    guards, reference, prompts, monkeypatch, how, options, words
):
    def ran(*_, **__):
        raise AssertionError("the model ran")

    monkeypatch.setattr(reference[0].model, "forward", ran)
    with pytest.raises(KvguardError, match=words) as found:
        getattr(guards["calm"], how)(*reference, prompts, **options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_rewinds": -1}, "guard.max_rewinds: -1 does not fit: "),
        ({"max_rewind": 1}, "unknown key 'guard.max_rewind'; did you mean 'max_rewinds'?"),
    ],
)
def test_settings_without_sense_are_one_line(settings, words):
    with pytest.raises(KvguardError) as caught:
        GuardParams(**settings)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_settings_of_another_kind_are_refused_before_anything_runs(tmp_path, reference):
    folder = bundles.write_bundle(tmp_path / "guard", reference[0])
    with pytest.raises(KvguardError, match=r"^params: .* will not do: pass GuardParams"):
        Guard.load(folder, params={"max_rewinds": 1})


def test_a_name_is_no_model(guards, reference, prompts):
    with pytest.raises(KvguardError, match=r"a str and a .* are none: pass what AutoModelForCausalLM"):
        guards["calm"].generate("models/reference", reference[1], prompts)


def test_a_model_that_kvpress_does_not_know_is_refused(guards, reference):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=50))
    with pytest.raises(KvguardError, match=r"GPT2LMHeadModel .*Qwen2"):
        guards["calm"].generate(model, reference[1], ["abc"])
