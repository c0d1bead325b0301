"""Presses with every argument at its edges, and in one another: a result or one line, nothing left behind."""

import inspect
import logging
from typing import Any

import kvpress
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvpress import BasePress
from test_every_press import CANNOT_RUN, RUNS
from transformers import PreTrainedModel

from kvguard.engine.layers import sliding_windows
from kvguard.engine.loop import decode
from kvguard.engine.prefill import full_pass, prefill
from kvguard.engine.presses import Condition, attention_for, build_press, check_press, shortest_prompt
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.sweep.settings import CompressorSpec
from tiny import ARCHITECTURES, build

N = 30  # tokens of the prompt
PROMPT = torch.randint(3, 258, (N,), generator=torch.Generator().manual_seed(1))
NUMBERS = [-1, 0, 1, 2, N - 1, N, N + 1, 1000, -0.5, 0.5, 0.999, 1.0, float("nan"), float("inf")]
EDGES = st.sampled_from([*NUMBERS, "x", "", None, True, False])
NAMES = sorted(RUNS.keys() | CANNOT_RUN.keys())
SMALL: dict[str, dict[str, Any]] = {  # for prompts as short as this one
    **{name: params for name, (params, _) in CANNOT_RUN.items()},
    **RUNS,
    "SnapKVPress": {"window_size": 8},
    "PyramidKVPress": {"window_size": 8},
    "LagKVPress": {"lag_size": 8},
    "SimLayerKVPress": {"lazy_threshold": 0.0, "n_recent": 8},
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded, and kvpress does not warn five thousand times."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    logging.getLogger("kvpress").setLevel(logging.ERROR)


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    windows = {"layer_types": ["sliding_attention", "full_attention"]} if request.param == "gemma3" else {}
    return build(request.param, num_hidden_layers=2, **windows)


def specs(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """A press, at most two of whose arguments are at an edge, or another such press or a list of them."""
    value: st.SearchStrategy[Any] = EDGES
    if depth:
        value = EDGES | specs(depth - 1) | st.lists(specs(depth - 1) | EDGES, max_size=3)

    def changed(name: str) -> st.SearchStrategy[dict[str, Any]]:
        arguments = sorted(
            inspect.signature(getattr(kvpress, name)).parameters.keys() - {"compression_ratio"}
        )
        changes = st.dictionaries(st.sampled_from(arguments), value, max_size=2) if arguments else st.just({})
        return changes.map(lambda change: {"press": name, "params": {**SMALL.get(name, {}), **change}})

    return st.sampled_from(NAMES).flatmap(changed)


def state(model: PreTrainedModel) -> list[Any]:
    """What a press may have changed about a model."""
    modules = list(model.modules())
    return [
        model.config._attn_implementation,
        [(len(m._forward_hooks), m.forward.__func__ is type(m).forward) for m in modules],
        [getattr(m, "masked_key_indices", None) for m in modules],
        [parameter.requires_grad for parameter in model.parameters()],
    ]


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(spec=specs(depth=2), ratio=st.sampled_from([0.0, 0.5, 0.97]))
def test_any_press_ends_in_a_result_or_in_one_line(
    model: PreTrainedModel, spec: dict[str, Any], ratio: float
) -> None:
    before, logits = state(model), full_pass(model, PROMPT)[0]
    row = asked(model, spec, ratio)
    if isinstance(row, KvguardError):
        assert "\n" not in str(row)
    else:
        windows = sliding_windows(model)
        assert all(0 < live <= N for live in row.cache.live)
        assert all(n == w - 1 for n, w in zip(row.cache.lengths, windows, strict=True) if w is not None)
        got = decode(model, [row], Decoding(2, [1]), batch_size=1)
        assert got.lengths[0] > 0
    assert state(model) == before
    assert torch.equal(full_pass(model, PROMPT)[0], logits)


def asked(model: PreTrainedModel, spec: dict[str, Any], ratio: float) -> Row | KvguardError:
    """Build a press and prefill the prompt under it."""
    condition = Condition("press", ratio)
    try:
        press = build_press(CompressorSpec.model_validate(spec), ratio)
        assert shortest_prompt(press) >= 1
        done = prefill(model, PROMPT, {condition: press}, attention_for(press))
    except KvguardError as error:
        return error
    assert "forward_hook" not in vars(press)
    return Row(PROMPT, done.logits, done.kept[condition])


def test_a_press_inside_another_is_seen_wherever_it_stands() -> None:
    observed, late = kvpress.ObservedAttentionPress(0.5), kvpress.DecodingPress(kvpress.KnormPress())
    for around in (
        lambda press: kvpress.ComposedPress([kvpress.KnormPress(0.5), press]),
        lambda press: kvpress.ComposedPress([kvpress.ComposedPress([press])]),
        lambda press: kvpress.ComposedPress((press,)),
        lambda press: _with(kvpress.KnormPress(0.5), mine={"a": [press]}),
    ):
        assert attention_for(around(observed)) == "eager"
        with pytest.raises(KvguardError, match="press DecodingPress: it compresses what is being generated"):
            check_press(around(late))
        assert shortest_prompt(around(kvpress.SnapKVPress(0.5, window_size=9))) == 10


def _with(press: BasePress, **attributes: Any) -> BasePress:
    vars(press).update(attributes)
    return press


@pytest.mark.parametrize(
    ("press", "words"),
    [
        (
            kvpress.DMSPress(kvpress.KnormPress(), threshold=0.0, decoding=True),
            "press DMSPress.*decoding=False",
        ),
        (_with(kvpress.KnormPress(), compression_ratio=None), "KnormPress: a compression_ratio is no share"),
        (kvpress.ComposedPress([_with(kvpress.KnormPress(), compression_ratio=1.5)]), "ratio of 1.5"),
        (kvpress.AdaKVPress(_with(kvpress.KnormPress(), compression_ratio=float("nan"))), "ratio of nan"),
        (kvpress.KnormPress, "is no kvpress press"),
    ],
)
def test_a_press_that_would_do_something_else_is_rejected(press: object, words: str) -> None:
    with pytest.raises(KvguardError, match=words):
        check_press(press)


@pytest.mark.parametrize(
    ("press", "needs"),
    [
        (kvpress.FastKVzipPress(0.5), 1),
        (kvpress.FinchPress(0.5), 1),
        (kvpress.ThinKPress(0.5), 1),
        (kvpress.LagKVPress(0.5), 1),
        (kvpress.StreamingLLMPress(0.5, n_sink=6), 7),
        (kvpress.PyramidKVPress(0.5, window_size=20), 21),
        (kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(0.5)), 5),
    ],
)
def test_a_prompt_has_to_be_as_long_as_the_arguments_mean(press: BasePress, needs: int) -> None:
    assert shortest_prompt(press) == needs


def test_a_ratio_of_its_own_is_not_overwritten_in_silence() -> None:
    inner = {"press": "KnormPress", "compression_ratio": 0.25}
    for spec in (
        CompressorSpec(press="KnormPress", params={"compression_ratio": 0.25}),
        CompressorSpec(press="ComposedPress", params={"presses": [inner]}),
    ):
        with pytest.raises(KvguardError, match="press KnormPress: its compression_ratio is that of the cond"):
            build_press(spec, 0.5)


def test_what_became_of_one_prompt_does_not_decide_about_the_next(model: PreTrainedModel) -> None:
    """A ratio known only after a pass, 0 here, is not one that was asked for."""
    short, long = PROMPT[:10], PROMPT
    for press in (
        kvpress.SimLayerKVPress(lazy_threshold=0.0, n_recent=12),
        kvpress.DMSPress(kvpress.KnormPress(), threshold=1e9, sliding_window_size=12),
    ):
        condition, whole = Condition("press", 0.5), []
        for prompt in (short, long):
            kept = prefill(model, prompt, {condition: press}, "sdpa").kept[condition]
            whole.append(kept.live[1] == len(prompt))
        assert whole == [True, False]


def test_a_press_that_leaves_more_than_the_prompt_is_rejected(model: PreTrainedModel) -> None:
    """KVCompose leaves its second reading of the prompt in the cache, unless structured."""
    press, condition = kvpress.KVComposePress(structured=False, compression_ratio=0.5), Condition("kv", 0.5)
    words = "sliding-window" if any(sliding_windows(model)) else "layer 0 holds .* of 30 tokens"
    with pytest.raises(KvguardError, match=words):
        prefill(model, PROMPT, {condition: press}, "sdpa")
