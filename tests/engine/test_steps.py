"""The loop's consumers may act on rows: restore, rewind, compress again."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from kvguard.engine.batch import Batch
from kvguard.engine.loop import Generated, assemble, decode, decode_steps
from kvguard.engine.oracle import TIE, kvpress_generate
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, build_press
from kvguard.engine.requests import Decoding, Request, Row
from kvguard.engine.sampling import Draw, Nucleus, greedy
from kvguard.sweep.settings import CompressorSpec

EOS, NEW = [1], 24
KNORM = CompressorSpec(press="KnormPress")
HEADWISE = CompressorSpec(press="AdaKVPress", params={"press": {"press": "KnormPress"}})
COMPRESSED = Condition("press", 0.75)


def rows_of(model: PreTrainedModel, spec: CompressorSpec = KNORM, n: int = 3) -> list[Row]:
    rows = []
    for length in range(60, 60 + 7 * n, 7):
        prompt = torch.randint(2, 258, (length,), generator=torch.Generator().manual_seed(length))
        done = prefill(model, prompt, {COMPRESSED: build_press(spec, 0.75)}, "sdpa")
        rows.append(Row(prompt, done.logits, done.kept[COMPRESSED]))
    return rows


def uncompressed(model: PreTrainedModel, ids: torch.Tensor, new: int) -> list[int]:
    """Greedy tokens up to the first step where the model hesitates."""
    found = kvpress_generate(model, ids, None, new, EOS)
    hesitates = [t for t, gap in enumerate(found.gaps) if gap < TIE]
    return found.token_ids[: hesitates[0] if hesitates else None]


@pytest.mark.parametrize("spec", [KNORM, HEADWISE], ids=["removed", "masked"])
@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_restored_row_goes_on_as_the_uncompressed_model_would(
    model: PreTrainedModel, spec: CompressorSpec, at: int
) -> None:
    rows = rows_of(model, spec)
    batch = assemble(model, rows, 2, Decoding(NEW, EOS, keep_cache=True))
    for step in decode_steps(batch):
        batch.restore(np.flatnonzero((step.t == at) & ~step.ended))
    got = Generated.of(batch.collect())
    for r, row in enumerate(rows):
        mine = got.token_ids[r, : got.lengths[r]].tolist()
        if len(mine) > at + 1:
            given = torch.cat([row.prompt_ids, torch.tensor(mine[: at + 1])])
            expected = uncompressed(model, given, NEW - at - 1)
            assert mine[at + 1 :][: len(expected)] == expected


@pytest.mark.parametrize("keep", [0, 3])
def test_a_rewound_row_generates_the_rest_anew_from_its_full_cache(model: PreTrainedModel, keep: int) -> None:
    rows = rows_of(model)
    before = decode(model, rows, Decoding(NEW, EOS), batch_size=3)
    batch = assemble(model, rows, 3, Decoding(NEW, EOS, keep_cache=True))
    for step in decode_steps(batch):
        slots = np.flatnonzero((step.t == 8) & (batch.attempt[: batch.n] == 0))
        batch.restore(slots, [keep] * len(slots))
    got = Generated.of(batch.collect())
    for r, row in enumerate(rows):
        kept = before.token_ids[r, :keep].tolist()
        mine = got.token_ids[r, : got.lengths[r]].tolist()
        expected = uncompressed(
            model, torch.cat([row.prompt_ids, torch.tensor(kept, dtype=torch.long)]), NEW - keep
        )
        if before.lengths[r] > 8:
            assert mine[:keep] == kept
            assert mine[keep:][: len(expected)] == expected


def test_a_rewound_row_takes_back_its_end(model: PreTrainedModel) -> None:
    rows = rows_of(model)
    batch = assemble(model, rows, 3, Decoding(NEW, EOS, keep_cache=True))
    rewound = set()
    for step in decode_steps(batch):
        slots = [s for s in np.flatnonzero(step.ended) if step.row[s] not in rewound]
        rewound.update(int(step.row[s]) for s in slots)
        batch.restore(slots, [2] * len(slots))
    assert rewound == {0, 1, 2}
    got = Generated.of(batch.collect())
    assert ((got.lengths == NEW) | got.stopped).all()


def test_rows_that_act_do_not_change_the_others(model: PreTrainedModel) -> None:
    rows = rows_of(model, n=4)
    before = decode(model, rows, Decoding(NEW, EOS), batch_size=4)
    batch = assemble(model, rows, 4, Decoding(NEW, EOS, keep_cache=True))
    for step in decode_steps(batch):
        slots = np.flatnonzero((step.row == 1) & (step.t == 4) & (batch.attempt[: batch.n] < 2))
        batch.restore(slots, [1] * len(slots))
    got = Generated.of(batch.collect())
    for r in (0, 2, 3):
        assert got.lengths[r] == before.lengths[r]
        assert (got.token_ids[r, : got.lengths[r]] == before.token_ids[r, : got.lengths[r]]).all()


@pytest.mark.parametrize("spec", [KNORM, HEADWISE], ids=["removed", "masked"])
def test_a_row_restored_and_compressed_again_holds_what_its_condition_keeps(
    model: PreTrainedModel, spec: CompressorSpec
) -> None:
    rows = rows_of(model, spec)
    batch = assemble(model, rows, 3, Decoding(NEW, EOS, keep_cache=True))
    for step in decode_steps(batch):
        kept = np.array([row.cache.n_kept for row in rows])[step.row]
        if (step.t == 6).any():
            assert batch.kv_tokens() == pytest.approx(kept + step.t)
            slots = np.flatnonzero((step.t == 6) & ~step.ended)
            batch.restore(slots)
            full = np.array([row.n_prompt for row in rows])[step.row]
            assert batch.kv_tokens()[slots] == pytest.approx((full + step.t)[slots])
            batch.recompress(slots)
            assert batch.kv_tokens() == pytest.approx(kept + step.t)
    assert (Generated.of(batch.collect()).lengths > 6).any()


def test_logits_that_are_no_numbers_end_their_row_and_no_other(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(model, n=4)
    before = decode(model, rows, Decoding(NEW, EOS), batch_size=4)
    feed = Batch.feed

    def poisoned(batch: Batch) -> None:
        feed(batch)
        batch.logits[: batch.n][(batch.row[: batch.n] == 2) & (batch.t[: batch.n] == 5)] = float("nan")

    monkeypatch.setattr(Batch, "feed", poisoned)
    got = decode(model, rows, Decoding(NEW, EOS), batch_size=4)
    assert got.valid.tolist() == [True, True, False, True]
    assert got.lengths[2] == 5
    for r in (0, 1, 3):
        assert (got.token_ids[r] == before.token_ids[r]).all()


def test_a_cache_that_is_no_numbers_does_not_reach_the_row_that_takes_its_place(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(model, n=4)
    before = decode(model, rows, Decoding(NEW, EOS), batch_size=2)
    feed = Batch.feed

    def poisoned(batch: Batch) -> None:
        feed(batch)
        for slot in np.flatnonzero((batch.row[: batch.n] == 2) & (batch.t[: batch.n] == 5)):
            batch.logits[slot] = float("nan")
            for index in range(len(batch.cache.layers)):
                for store in batch.cache.read(index, slot):
                    store.fill_(float("nan"))

    monkeypatch.setattr(Batch, "feed", poisoned)
    got = decode(model, rows, Decoding(NEW, EOS), batch_size=2)
    assert got.valid.tolist() == [True, True, False, True]
    for r in (0, 1, 3):
        assert (got.token_ids[r] == before.token_ids[r]).all()


def draw_of(n: int, t: int = 0, attempt: int = 0) -> Draw:
    return Draw(np.arange(n), np.full(n, t), np.full(n, attempt))


def test_sampled_tokens_do_not_depend_on_the_batch_and_a_rewound_row_draws_anew(
    model: PreTrainedModel,
) -> None:
    rows, sampler = rows_of(model, n=4), Nucleus(1.0, 0.95, seed=3)
    alone, together = (
        decode(model, rows, Decoding(NEW, EOS, sampler=sampler), batch_size=size) for size in (1, 4)
    )
    assert (alone.token_ids == together.token_ids).all()
    assert (alone.token_ids != decode(model, rows, Decoding(NEW, EOS), batch_size=4).token_ids).any()
    logits = torch.zeros(64, 258)
    first, again = (sampler(logits, draw_of(64, attempt=attempt)) for attempt in (0, 1))
    assert (first != again).any()
    assert (first == sampler(logits, draw_of(64))).all()


def test_sampled_tokens_have_the_probabilities_of_the_nucleus() -> None:
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = (wanted.log() * 2).expand(40_000, 4)  # at temperature 2 these are the probabilities
    tokens = Nucleus(2.0, 0.9, seed=1)(logits, draw_of(40_000))
    shares = torch.bincount(tokens, minlength=4) / 40_000
    assert shares[3] == 0
    assert shares[:3].tolist() == pytest.approx((wanted[:3] / 0.95).tolist(), abs=0.01)


def test_a_tiny_nucleus_is_greedy() -> None:
    logits = torch.randn(500, 50, generator=torch.Generator().manual_seed(0))
    assert (Nucleus(0.7, 1e-6)(logits, draw_of(500)) == greedy(logits, draw_of(500))).all()


@pytest.mark.parametrize(("dtype", "copies"), [(torch.float32, 0), (torch.bfloat16, 1)], ids=str)
def test_logits_of_a_large_vocabulary_are_copied_at_most_once_and_only_to_widen_them(
    dtype: torch.dtype, copies: int
) -> None:
    rows, width = 4, 262_144
    config = Gemma3TextConfig(
        vocab_size=width, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=64,
    )  # fmt: skip
    batch = Batch(Gemma3ForCausalLM(config).eval().to(dtype), rows)
    for _ in range(rows):
        batch.add(Request(torch.arange(5, 25), 8, (1,)))
    steps = decode_steps(batch)
    next(steps)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        next(steps)
    steps.close()
    sizes = [event.self_cpu_memory_usage for event in seen.events()]
    large = sorted(size for size in sizes if size > rows * width)
    assert large == [rows * width * dtype.itemsize, *[rows * width * 4] * copies]
