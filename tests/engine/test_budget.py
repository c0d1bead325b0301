"""The decode-time budget, row by row against kvpress's own decoding press."""

import numpy as np
import pytest
import torch
from kvpress import (
    AdaKVPress,
    CompressionRatioDecodingPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    LagKVPress,
    LeverageScorePress,
    ObservedAttentionPress,
    PrefillDecodingPress,
    PyramidKVPress,
    RandomPress,
    ScorerPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.budget import Budget
from kvguard.engine.loop import Generated, assemble, decode_steps
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.prefill import full_cache, prefill
from kvguard.engine.presses import Condition
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.models.load import load_model
from kvguard.models.reference import REFERENCE_PATHS
from kvguard.models.spec import ModelSpec
from kvguard.tasks import sample_prompts

INTERVAL = 12
PRESSES = {
    "snapkv": lambda r: SnapKVPress(r, window_size=8),
    "knorm": KnormPress,
    "random": lambda r: RandomPress(r, seed=3),
    "keydiff": KeyDiffPress,
    "tova": TOVAPress,
    "expected_attention": ExpectedAttentionPress,
    "lagkv": lambda r: LagKVPress(r, lag_size=8),
}


class InOrder(StreamingLLMPress):
    """StreamingLLM as its paper has it: kvpress's, but what stays also stays in order."""

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):  # type: ignore[no-untyped-def]
        if self.compression_ratio == 0:
            return keys, values
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        n = max(1, int(keys.shape[2] * (1 - self.compression_ratio)))
        keep = scores.topk(n).indices.sort().values[..., None].expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, keep), values.gather(2, keep)


def kvpress_of(press: ScorerPress, interval: int) -> PrefillDecodingPress:
    ratio = press.compression_ratio
    base = InOrder(0.0, press.n_sink) if isinstance(press, StreamingLLMPress) else type(press)(**vars(press))
    base.compression_ratio = 0.0
    prefilling = InOrder(ratio, press.n_sink) if isinstance(press, StreamingLLMPress) else press
    decoding = CompressionRatioDecodingPress(
        base_press=base, target_compression_ratio=ratio, compression_interval=interval
    )
    return PrefillDecodingPress(prefilling_press=prefilling, decoding_press=decoding)


@torch.inference_mode()
def kvpress_cache(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    tokens: torch.Tensor,
    press: ScorerPress,
    interval: int,
    prefill_too: bool = True,
) -> DynamicCache:
    """Feed a prompt and then given tokens, one by one, under kvpress."""
    cache, both = DynamicCache(config=model.config), kvpress_of(press, interval)
    with (both if prefill_too else both.decoding_press)(model):
        model(input_ids=prompt[None], past_key_values=cache)
        for position, token in enumerate(tokens, start=len(prompt)):
            at = torch.tensor([position])
            model(
                input_ids=token[None, None], past_key_values=cache, position_ids=at[None], cache_position=at
            )
    return cache


def distinct_tokens(*lengths: int, new: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Prompts and what follows them; a token that returns would tie with itself, in layer 0, in any norm."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(256, generator=generator)[: n + new] + 2 for n in lengths]
    return [row[:n] for row, n in zip(rows, lengths, strict=True)], torch.stack(
        [row[n:] for row, n in zip(rows, lengths, strict=True)]
    )


def rows_of(model: PreTrainedModel, prompts: list[torch.Tensor], presses: list[ScorerPress]) -> list[Row]:
    rows = []
    for prompt, press in zip(prompts, presses, strict=True):
        condition = Condition("x", press.compression_ratio)
        done = prefill(model, prompt, {condition: press}, "sdpa")
        rows.append(Row(prompt, done.logits, done.kept[condition]))
    return rows


class Run:
    """Decode given tokens under a budget, with what a test does between two of them."""

    def __init__(  # type: ignore[no-untyped-def]
        self, model, prompts, presses, forced, interval=INTERVAL, size=None, rows=None
    ):
        rows = rows if rows is not None else rows_of(model, prompts, presses)
        n_new = forced.shape[1] + 1
        self.batch = assemble(model, rows, size or len(rows), Decoding(n_new, [1], sampler=self.next_token))
        self.budget = Budget(model, presses, interval)
        self.forced = torch.cat([forced, forced[:, :1]], dim=1)

    def next_token(self, logits, draw):  # type: ignore[no-untyped-def]
        return self.forced[torch.from_numpy(draw.row), torch.from_numpy(draw.t)]

    def steps(self, hold=(), protected=None):  # type: ignore[no-untyped-def]
        with self.budget:
            for step in decode_steps(self.batch):
                slots = np.flatnonzero(~np.isin(step.row, hold))
                exempt = None if protected is None else [protected[row] for row in step.row[slots]]
                self.budget.enforce(self.batch, slots, exempt)
                yield step

    def entries(self, slot: int) -> list[torch.Tensor]:
        cache = self.batch.cache
        return [cache.read(index, slot)[0].clone() for index in range(len(cache.layers))]


def final_entries(run: Run, **options) -> dict[int, list[torch.Tensor]]:  # type: ignore[no-untyped-def]
    """Keys of every row when all forced tokens have been fed. [H, L, D] per layer"""
    last = run.forced.shape[1] - 1
    return {
        int(row): run.entries(slot)
        for step in run.steps(**options)
        for slot, row in enumerate(step.row)
        if step.t[slot] == last
    }


def assert_same(got: list[torch.Tensor], cache: DynamicCache) -> None:
    for mine, layer in zip(got, cache.layers, strict=True):
        assert layer.keys is not None
        assert mine.shape == layer.keys[0].shape
        torch.testing.assert_close(mine, layer.keys[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.5, 0.875])
@pytest.mark.parametrize("name", ["streaming_llm", *PRESSES])
def test_every_entry_kept_is_kvpress_s_own_in_its_own_order(
    model: PreTrainedModel, name: str, ratio: float
) -> None:
    press = StreamingLLMPress(ratio) if name == "streaming_llm" else PRESSES[name](ratio)
    prompts, forced = distinct_tokens(70, 53, 70, 61, new=3 * INTERVAL + 5)
    run = Run(model, prompts, [press] * 4, forced, size=3)  # one waits, and takes a freed slot
    got = final_entries(run)
    assert sorted(got) == [0, 1, 2, 3]
    for row, entries in got.items():
        assert_same(entries, kvpress_cache(model, prompts[row], forced[row], press, INTERVAL))


def positions(run: Run, row: int, slot: int, n_fed: int) -> list[list[int]]:
    """Which positions the heads of layer 0 hold: there a key depends on its token and position alone."""
    ids = torch.cat([run.batch.requests[row].prompt_ids, run.forced[row, :n_fed]])
    full = full_cache(run.batch.model, ids).keys[0]
    distance = torch.cdist(run.entries(slot)[0], full)
    assert distance.min(dim=-1).values.max() < 0.1
    return distance.argmin(dim=-1).tolist()


def test_streaming_llm_keeps_sinks_and_the_most_recent(model: PreTrainedModel) -> None:
    prompts, forced = distinct_tokens(80, 60, new=26)
    run = Run(model, prompts, [StreamingLLMPress(0.75)] * 2, forced)
    for step in run.steps():
        if step.t[0] in (12, 24):
            for slot, row in enumerate(step.row):
                seen = len(prompts[row]) + step.t[0]
                recent = range(seen - (seen // 4 - 4), seen)
                assert positions(run, row, slot, step.t[0]) == [[0, 1, 2, 3, *recent]] * 3


@pytest.mark.parametrize("press", [KnormPress(0.9), TOVAPress(0.95), LagKVPress(0.9)])
def test_a_budget_of_one_entry_is_enforced_after_every_token(
    model: PreTrainedModel, press: ScorerPress
) -> None:
    prompts, forced = distinct_tokens(9, new=30)
    run = Run(model, prompts, [press], forced)
    assert_same(final_entries(run)[0], kvpress_cache(model, prompts[0], forced[0], press, INTERVAL))


def test_hidden_states_are_collected_as_far_back_as_kvpress_does(model: PreTrainedModel) -> None:
    press, interval = ExpectedAttentionPress(0.5), 262
    prompt, forced = torch.arange(2, 42), torch.arange(interval).remainder(97)[None] + 100
    run = Run(model, [prompt], [press], forced, interval=interval)
    assert_same(final_entries(run)[0], kvpress_cache(model, prompt, forced[0], press, interval))


def test_rows_of_many_presses_share_a_batch(model: PreTrainedModel) -> None:
    presses = [StreamingLLMPress(0.5), *(make(0.75) for make in PRESSES.values()), StreamingLLMPress(0.0)]
    prompts, forced = distinct_tokens(*[50 + i for i in range(len(presses))], new=30)
    got = final_entries(Run(model, prompts, presses, forced, size=5))
    assert [got[len(presses) - 1][0].shape[1], len(got)] == [len(prompts[-1]) + 30, len(presses)]
    for row, press in enumerate(presses[:-1]):
        assert_same(got[row], kvpress_cache(model, prompts[row], forced[row], press, INTERVAL))


def test_random_draws_without_a_seed_do_not_depend_on_the_batch(model: PreTrainedModel) -> None:
    presses = [RandomPress(0.5)] * 3
    prompts, forced = distinct_tokens(50, 50, 50, new=30)
    rows = rows_of(model, prompts, presses)
    together, alone = (
        final_entries(Run(model, prompts, presses, forced, rows=rows, size=size)) for size in (3, 1)
    )
    for row in range(3):
        assert torch.allclose(together[row][0], alone[row][0], atol=1e-4)
    assert not torch.equal(together[0][0], together[1][0])


def test_a_held_row_keeps_everything_and_is_due_when_named_again(model: PreTrainedModel) -> None:
    presses = [SnapKVPress(0.5, window_size=8)] * 2
    prompts, forced = distinct_tokens(60, 60, new=40)
    run = Run(model, prompts, presses, forced)
    held: list[int] = []
    for step in run.steps(hold=held):
        lengths = run.batch.cache.lengths[0].tolist()
        if step.t[0] == 11:
            held.append(1)
        if 12 <= step.t[0] < 30:
            assert lengths[1] == 30 + step.t[0]
            assert lengths[0] == (60 + step.t[0] // 12 * 12) // 2 + step.t[0] % 12
        if step.t[0] == 29:
            held.clear()
        if step.t[0] == 30:
            assert lengths[1] == 45


@pytest.mark.parametrize("name", ["streaming_llm", *PRESSES])
def test_a_restored_row_starts_anew_from_its_full_cache(model: PreTrainedModel, name: str) -> None:
    press = StreamingLLMPress(0.75) if name == "streaming_llm" else PRESSES[name](0.75)
    prompts, forced = distinct_tokens(60, 55, new=40)
    run = Run(model, prompts, [press] * 2, forced)
    rewound, entries = False, {}
    for step in run.steps():
        if step.t[0] == 20 and not rewound:
            rewound = True
            run.batch.restore([1], [16])  # fifteen of its tokens are in its cache again, the sixteenth waits
        for slot in np.flatnonzero(step.t == 39):
            entries[int(step.row[slot])] = run.entries(slot)
    assert_same(entries[0], kvpress_cache(model, prompts[0], forced[0, :39], press, INTERVAL))
    start = torch.cat([prompts[1], forced[1, :15]])
    expected = kvpress_cache(model, start, forced[1, 15:39], press, INTERVAL, prefill_too=False)
    assert_same(entries[1], expected)


@pytest.mark.parametrize("name", ["streaming_llm", "snapkv", "knorm"])
def test_protected_positions_displace_others_and_the_budget_stays(model: PreTrainedModel, name: str) -> None:
    press = StreamingLLMPress(0.75) if name == "streaming_llm" else PRESSES[name](0.75)
    prompts, forced = distinct_tokens(60, 60, 60, new=26)
    chosen = [np.array([61, 62, 63, 70]), None, np.arange(60, 84)]
    run = Run(model, prompts, [press] * 3, forced)
    plain = Run(model, prompts, [press] * 3, forced)
    for step, _ in zip(run.steps(protected=chosen), plain.steps(), strict=True):
        if step.t[0] in (12, 24):
            seen = 60 + int(step.t[0])
            assert run.batch.cache.lengths[:, :3].tolist() == [[seen // 4] * 3] * 3
            kept = [positions(run, row, slot, step.t[0]) for slot, row in enumerate(step.row)]
            assert all({61, 62, 63, 70} <= set(head) for head in kept[0])
            assert kept[1] == positions(plain, 1, 1, step.t[0])
            assert step.t[0] == 12 or kept[0] != positions(plain, 0, 0, step.t[0])
            most_recent = set(range(max(60, seen - seen // 4), seen))
            assert all(most_recent <= set(head) for head in kept[2])


def test_a_press_that_cannot_compress_while_decoding_is_rejected(model: PreTrainedModel) -> None:
    for press, reason in [
        (ObservedAttentionPress(0.5), "attention weights"),
        (AdaKVPress(KnormPress(0.5)), "not a plain scorer"),
        (PyramidKVPress(0.5), "not a plain scorer"),
        (SnapKVPress(0.5, window_size=12), "window_size 12 must be below the 12 hidden states"),
        (ExpectedAttentionPress(0.5, n_sink=12), "too few"),
        (LeverageScorePress(0.5), "fails|too few"),
    ]:
        with pytest.raises(KvguardError, match=f"cannot compress while decoding.*({reason}).*StreamingLLM"):
            Budget(model, [press], INTERVAL)


def test_a_row_that_a_press_rejects_is_named(model: PreTrainedModel) -> None:
    press = SnapKVPress(0.95, window_size=8)
    prompts, forced = distinct_tokens(12, new=5)
    with pytest.raises(KvguardError, match="row 0: SnapKVPress is to keep 1 of 2 entries: the press rejects"):
        final_entries(Run(model, prompts, [press], forced))


def test_a_row_prefilled_by_another_kind_of_press_is_rejected(model: PreTrainedModel) -> None:
    prompts, forced = distinct_tokens(40, new=20)
    rows = rows_of(model, prompts, [PyramidKVPress(0.5, window_size=8)])
    with pytest.raises(KvguardError, match="row 0: which entries its prefill kept is not known"):
        final_entries(Run(model, prompts, [KnormPress(0.5)], forced, rows=rows))


@pytest.mark.parametrize("name", sorted(REFERENCE_PATHS))
def test_a_reference_model_generates_what_it_does_under_kvpress(name: str) -> None:
    spec = ModelSpec(source=f"embedded:{REFERENCE_PATHS[name].name}", task="arithmetic")
    loaded = load_model(name, spec, "cpu")
    asked = sample_prompts("arithmetic", 1, seed=9, n_shots=3)["prompt"]
    prompts = [torch.tensor(loaded.encode(prompt)) for prompt in asked] * (len(PRESSES) + 1)
    made = [StreamingLLMPress(0.75), *(make(0.5) for make in PRESSES.values())]
    presses = [press for press in made for _ in asked]
    rows = rows_of(loaded.model, prompts, presses)
    batch = assemble(loaded.model, rows, len(rows), Decoding(48, loaded.eos_ids))
    with Budget(loaded.model, presses, INTERVAL) as budget:
        for step in decode_steps(batch):
            budget.enforce(batch, np.flatnonzero(step.valid))
    got = Generated.of(batch.collect())
    for row, (prompt, press) in enumerate(zip(prompts, presses, strict=True)):
        reference = kvpress_generate(loaded.model, prompt, kvpress_of(press, INTERVAL), 48, loaded.eos_ids)
        assert reference.agrees(got.token_ids[row, : got.lengths[row]].tolist()), f"{press}"
