"""Rules above scores: what is protected stays, shares are equal, and the budget is the press's own."""

import itertools
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kvpress import StreamingLLMPress
from kvpress.utils import compute_n_kept
from scipy.stats import chi2, chisquare

from kvguard.engine.controls import KeepEndsPress, LayerwiseRandomPress
from kvguard.engine.kept import KeptCache
from kvguard.engine.layers import sliding_windows
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, attention_for, build_press
from kvguard.engine.rules import Fair, Protected, ruled, unmet
from kvguard.errors import KvguardError
from tiny import build

KNORM = {"press": "KnormPress"}
SNAPKV = {"press": "SnapKVPress", "window_size": 8}
PLAIN: dict[str, dict[str, Any]] = {  # presses that only score
    "CURPress": {},
    "CapPress": {},
    "CompactorPress": {},
    "CriticalKVPress": {"press": KNORM},
    "ExpectedAttentionPress": {},
    "KeyDiffPress": {},
    "KnormPress": {},
    "LagKVPress": {"lag_size": 16},
    "LeverageScorePress": {},
    "NonCausalAttnPress": {},
    "ObservedAttentionPress": {},
    "RandomPress": {"seed": 0},
    "SnapKVPress": {"window_size": 8},
    "StreamingLLMPress": {},
    "TOVAPress": {},
}
CHOOSING: dict[str, dict[str, Any]] = {  # presses that score, and choose in their own way
    "AdaKVPress": {"press": SNAPKV},
    "KeyRerotationPress": {"press": KNORM},
    "PerLayerCompressionPress": {"press": KNORM, "compression_ratios": [0.25, 0.5, 0.75]},
    "PyramidKVPress": {"window_size": 8, "beta": 3},
}
REJECTED: dict[str, dict[str, Any]] = {
    "BlockPress": {"press": KNORM},
    "ChunkKVPress": {"press": SNAPKV},
    "ChunkPress": {"press": KNORM},
    "ComposedPress": {"presses": [SNAPKV, {"press": "ThinKPress"}]},
    "CriticalAdaKVPress": {"press": SNAPKV},
    "DMSPress": {"press": KNORM, "threshold": -4.0},
    "KVzipPress": {},
    "MergingPress": {"press": KNORM},
    "SimLayerKVPress": {},
    "ThinKPress": {},
}
NEED_ONE_ROTARY = {"CapPress", "ExpectedAttentionPress", "KeyRerotationPress"}
LENGTH = 96
MODELS = {name: build(name) for name in ("qwen2", "gemma3")}


@dataclass(frozen=True)
class Spec:
    press: str
    params: dict[str, Any]


def make(name, ratio):
    if name == "KeepEndsPress":
        return KeepEndsPress(ratio)
    if name == "LayerwiseRandomPress":
        return LayerwiseRandomPress(ratio)
    return build_press(Spec(name, (PLAIN | CHOOSING | REJECTED)[name]), ratio)


def prompt(length, seed=0):
    """Tokens that all differ, so that values tell positions apart in the first layer too."""
    return torch.randperm(256, generator=torch.Generator().manual_seed(seed))[:length] + 2


def kept(model, ids, press) -> tuple[torch.Tensor, KeptCache, KeptCache]:
    """The last logits, what the press keeps, and the full cache."""
    full, held = Condition("none", 0.0), Condition("held", 0.5)
    torch.manual_seed(0)
    done = prefill(model, ids, {full: None, held: press}, attention_for(press))
    return done.logits, done.kept[held], done.kept[full]


def positions_kept(held: KeptCache, full: KeptCache, layer: int) -> list[set[int]]:
    """Where each head's live entries stood, found by their values, whatever the press did to the keys."""
    found = []
    for head, values in enumerate(held.layer(layer)[1]):
        same = (full.values[layer][head][:, None] == values[None]).all(dim=-1)  # [T, n]
        dead = held.dead[layer] if held.dead is not None else None
        if dead is not None:
            same &= ~dead[head]
        found.append(set(same.any(dim=1).nonzero()[:, 0].tolist()))
    return found


def full_layers(model):
    return [layer for layer, window in enumerate(sliding_windows(model)) if window is None]


names = st.sampled_from([*PLAIN, *CHOOSING, "KeepEndsPress", "LayerwiseRandomPress"])


@settings(max_examples=80)
@given(
    name=names,
    model=st.sampled_from(sorted(MODELS)),
    ratio=st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.75, 0.9]),
    positions=st.sets(st.integers(0, LENGTH - 1), max_size=40),
)
def test_protected_entries_are_kept_in_every_layer_and_head_within_the_same_budget(
    name, model, ratio, positions
):
    if model == "gemma3" and name in {*NEED_ONE_ROTARY, "PerLayerCompressionPress"}:
        return  # kvpress cannot run them there
    language_model, ids = MODELS[model], prompt(LENGTH)
    rule = Protected(tuple(sorted(positions)))
    why = unmet(language_model, make(name, ratio), rule, LENGTH)
    if why is not None:
        with pytest.raises(KvguardError, match=f"^{re.escape(why)}$"):
            kept(language_model, ids, ruled(make(name, ratio), rule))
        return
    logits, held, full = kept(language_model, ids, ruled(make(name, ratio), rule))
    plain_logits, plain, _ = kept(language_model, ids, make(name, ratio))
    assert torch.equal(logits, plain_logits)
    assert held.live == plain.live, "the budget of each layer is the press's"
    for layer in full_layers(language_model):
        for head in positions_kept(held, full, layer):
            assert positions <= head


@settings(max_examples=40)
@given(
    name=names.filter(lambda name: name != "AdaKVPress"),
    ratio=st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]),
    cuts=st.lists(st.integers(0, LENGTH), min_size=2, max_size=6, unique=True).map(sorted),
)
def test_fair_eviction_takes_an_equal_share_of_each_group_within_the_same_budget(name, ratio, cuts):
    model, ids = MODELS["qwen2"], prompt(LENGTH)
    groups = tuple(tuple(range(a, b)) for a, b in itertools.pairwise(cuts))
    _, held, full = kept(model, ids, ruled(make(name, ratio), Fair(groups)))
    _, plain, _ = kept(model, ids, make(name, ratio))
    assert held.live == plain.live
    for layer in full_layers(model):
        for head in positions_kept(held, full, layer):
            for group in groups:
                share = len(group) * held.live[layer] / LENGTH
                assert abs(len(head & set(group)) - share) <= 1


@pytest.mark.parametrize("name", sorted(REJECTED))
def test_a_press_that_does_not_choose_by_one_score_of_each_entry_is_rejected_by_name(name):
    with pytest.raises(KvguardError, match=rf"^press {name}: [^\n]*$"):
        ruled(make(name, 0.5), Protected((1,)))


def test_heads_of_unequal_budgets_have_no_equal_share():
    with pytest.raises(KvguardError, match=r"^press AdaKVPress: [^\n]*equal share[^\n]*$"):
        ruled(make("AdaKVPress", 0.5), Fair(((1, 2),)))


@given(length=st.integers(6, 200), ratio=st.floats(0.01, 0.95))
def test_keeping_both_ends_keeps_what_streaming_llm_keeps(length, ratio):
    keys = torch.zeros(1, 2, length, 4)
    n_kept = compute_n_kept(length, ratio)
    ours, theirs = (
        press.score(None, None, keys, keys, None, {}).topk(n_kept).indices.sort().values
        for press in (KeepEndsPress(ratio, 4), StreamingLLMPress(ratio, 4))
    )
    if n_kept >= 4:
        assert torch.equal(ours, theirs)


@given(length=st.integers(2, 300), ratio=st.floats(0, 0.95), initial=st.floats(0, 1) | st.integers(0, 400))
def test_keeping_both_ends_keeps_nothing_between(length, ratio, initial):
    keys = torch.zeros(1, 1, length, 4)
    n_kept = compute_n_kept(length, ratio)
    scores = KeepEndsPress(ratio, initial).score(None, None, keys, keys, None, {})
    assert not scores.isnan().any()
    chosen = set(scores.topk(n_kept).indices.flatten().tolist())
    first = min(initial if isinstance(initial, int) else round(initial * n_kept), n_kept)
    assert chosen == {*range(first), *range(length - n_kept + first, length)}


def test_under_protection_both_ends_shrink_alike():
    rule = Protected(tuple(range(40, 60)))
    _, held, full = kept(MODELS["qwen2"], prompt(LENGTH), ruled(KeepEndsPress(0.5), rule))
    expected = {*range(14), *range(40, 60), *range(LENGTH - 14, LENGTH)}
    assert positions_kept(held, full, 0)[0] == expected


@pytest.mark.parametrize("rule", [None, Protected((0, 3, 50)), Protected(tuple(range(30)))])
def test_random_eviction_is_uniform_over_what_may_be_evicted(rule):
    """By a chi-squared test over positions, pooled over layers, heads and seeds."""
    model, length, ratio = MODELS["qwen2"], 64, 0.5
    protected = set(rule.positions) if rule else set()
    counts = torch.zeros(length)
    for seed in range(40):
        press = LayerwiseRandomPress(ratio, seed)
        _, held, full = kept(model, prompt(length), ruled(press, rule) if rule else press)
        for layer in full_layers(model):
            for head in positions_kept(held, full, layer):
                counts[sorted(set(range(length)) - head)] += 1
    assert not counts[sorted(protected)].any()
    free = counts[[t for t in range(length) if t not in protected]].numpy()
    # Draws without replacement vary less than independent ones, by the share that stays.
    stays, n = 1 - length * ratio / len(free), len(free)
    assert 1e-3 < chi2.sf(chisquare(free).statistic / stays * (n - 1) / n, n - 1) < 1 - 1e-3


def test_random_eviction_differs_between_layers_and_seeds():
    def chosen(seed):
        _, held, full = kept(MODELS["qwen2"], prompt(64), LayerwiseRandomPress(0.5, seed))
        return [tuple(sorted(positions_kept(held, full, layer)[0])) for layer in full_layers(MODELS["qwen2"])]

    assert chosen(1) == chosen(1)
    assert len({*chosen(1), *chosen(2)}) == 6
