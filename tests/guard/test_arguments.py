"""The arguments of a call: whatever is given, a call that runs or one line before anything ran."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvpress import (
    AdaKVPress,
    DecodingPress,
    KnormPress,
    ObservedAttentionPress,
    ThinKPress,
)

import bundles
from guarded import ids_of
from kvguard import Guard
from kvguard.errors import KvguardError
from kvguard.guard.actions import GuardParams
from kvguard.guard.arguments import Arguments


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
        ({"max_new_tokens": True}, "max_new_tokens: True"),
        ({"max_new_tokens": -1}, "max_new_tokens: -1"),
        ({"max_new_tokens": 1.0}, "max_new_tokens: 1.0"),
        ({"max_new_tokens": 10**30}, "exceed the window of 2048"),
        ({"max_new_tokens": 2048}, "max_new_tokens: 2048 tokens and a prompt exceed the window"),
        ({"compression_interval": 10**30, "press": KnormPress(0.5)}, "exceed the window of 2048"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": False}, "batch_size: False"),
        ({"temperature": True}, "temperature: True"),
        ({"temperature": "0.7"}, "temperature: '0.7'"),
        ({"temperature": float("inf")}, "temperature: inf"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": None}, "temperature: None"),
        ({"top_p": 1.5}, "top_p: 1.5"),
        ({"top_p": True}, "top_p: True"),
        ({"seed": 2**64}, "seed: .* to 2.*64 - 1"),
        ({"seed": True}, "seed: True"),
        ({"action": ["rollback"]}, "action: unknown name"),
        ({"action": None}, "action: unknown name None"),
        ({"stop": "Q:"}, "stop: 'Q:' is no list"),
        ({"stop": [""]}, "stop: '' ends no text"),
        ({"stop": [b"Q"]}, "stop: b'Q' ends no text"),
        (
            {"action": "stop"},
            "action: stop ends a text at its last complete answer: pass answered.*kvguard run",
        ),
        ({"action": "stop", "answered": None}, "action: stop .*pass answered"),
        ({"answered": 5}, "answered: 5 cannot be called: pass a function"),
        ({"answered": "72", "action": "stop"}, "answered: '72' cannot be called"),
        ({"top_k": 5}, "unknown name 'top_k'; did you mean 'top_p'"),
        ({"press": _of_ratio("0.5")}, "compression_ratio of '0.5'"),
        ({"press": _of_ratio(float("nan"))}, "compression_ratio of nan"),
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


def test_settings_of_another_kind_are_rejected_before_anything_runs(tmp_path, reference):
    folder = bundles.write_bundle(tmp_path / "guard", reference[0])
    with pytest.raises(KvguardError, match=r"^params: .* will not do: pass GuardParams"):
        Guard.load(folder, params={"max_rewinds": 1})


def test_a_name_is_no_model(guards, reference, prompts):
    with pytest.raises(KvguardError, match=r"a str and a .* are none: pass what AutoModelForCausalLM"):
        guards["calm"].generate("models/reference", reference[1], prompts)


def test_a_model_that_kvpress_does_not_know_is_rejected(guards, reference):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=50))
    with pytest.raises(KvguardError, match=r"GPT2LMHeadModel .*Qwen2"):
        guards["calm"].generate(model, reference[1], ["abc"])


SHORT = [[5, 6, 7] * 8]
ODD = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([1e-45, 1e-40, 1e-320, 5e-324, 1e300, 2**63, 10**400]),
    st.sampled_from([True, None, "0.7", [1], 1j, object(), np.bool_(True), np.array(0.5)]),
    st.sampled_from([np.float32(0.7), np.float64(1e-45), np.int64(3), Fraction(1, 3)]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.dictionaries(st.sampled_from(sorted(Arguments.__annotations__)), ODD, max_size=3))
def test_any_arguments_give_a_text_or_one_line(guards, reference, given):
    error = None
    try:
        guards["calm"].generate(*reference, SHORT, **{"max_new_tokens": 3, **given})
    except KvguardError as raised:
        error = str(raised)
    assert error is None or ("\n" not in error and error.partition(":")[0] in given)


@pytest.mark.parametrize(
    "temperature", [1e-45, 1e-40, 1e-320, 5e-324, 1e-7, np.float32(1e-44), Fraction(1, 10**50)]
)
def test_a_temperature_near_zero_is_greedy(guards, reference, prompts, temperature):
    cold = guards["calm"].generate(*reference, prompts[:2], max_new_tokens=12, temperature=temperature)
    greedy = guards["calm"].generate(*reference, prompts[:2], max_new_tokens=12)
    assert ids_of(cold) == ids_of(greedy)


def test_numbers_of_any_type_mean_their_value(guards, reference, prompts):
    def drawn(**how):
        return ids_of(guards["calm"].generate(*reference, prompts[:2], **how))

    plain = drawn(max_new_tokens=12, temperature=0.5, top_p=0.75, seed=3)
    typed = {"max_new_tokens": np.int64(12), "temperature": np.float32(0.5), "seed": np.uint8(3)}
    assert drawn(**typed, top_p=Fraction(3, 4)) == plain


def test_what_is_told_of_each_prompt_can_be_called(guards, reference, prompts):
    with pytest.raises(KvguardError, match="on_finish: 5 cannot be called"):
        guards["calm"].generate(*reference, prompts, on_finish=5)
