"""Documents are read behind prefixes, cut, moved, compressed and asked: what holds whatever the texts."""

import kvpress
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from kvguard.engine.attention import attention
from kvguard.engine.layers import clear_head_masks, sliding_windows
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.press_code import compressing
from kvguard.engine.presses import attention_for
from kvguard.engine.surgery import (
    Asked,
    Reading,
    answer_nll,
    append,
    generate,
    read,
    reposition,
    score,
    select,
    shift,
)
from kvguard.errors import KvguardError
from rotary_zoo import WINDOW, build

BOS = 1
PRESSES = {
    "knorm": lambda: kvpress.KnormPress(0.5),
    "snapkv": lambda: kvpress.SnapKVPress(0.5, window_size=4),
    "observed": lambda: kvpress.ObservedAttentionPress(0.5),  # needs attention weights
    "ada": lambda: kvpress.AdaKVPress(kvpress.KnormPress(0.5)),  # masks heads
    "think": lambda: kvpress.ThinKPress(0.5),  # changes keys
    "chunk": lambda: kvpress.ChunkKVPress(kvpress.KnormPress(0.5), chunk_length=4),
}
ids = st.lists(st.integers(3, 299), min_size=1, max_size=12)
readings = st.builds(
    Reading, document=st.lists(st.integers(3, 299), min_size=1, max_size=40), prefix=st.just(()) | ids,
    separator=ids, keep_prefix=st.booleans(),
)  # fmt: skip
asked = st.builds(Asked, context=ids, answer=ids)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request):
    return build(request.param)


def one_pass(model, text, n):
    logits = model(input_ids=torch.tensor([text])).logits[0, -n - 1 : -1]
    return -logits.log_softmax(-1).gather(1, torch.tensor(text[-n:])[:, None])[:, 0]


@settings(max_examples=15)
@given(
    pairs=st.lists(st.tuples(readings, asked), min_size=2, max_size=5),
    rows=st.integers(1, 4),
    attention=st.sampled_from(["causal", "bidirectional", "isolated"]),
)
def test_a_row_does_not_depend_on_its_company(pairs, rows, attention):
    model = build("gemma3")
    some, questions = [list(part) for part in zip(*pairs, strict=True)]
    together = read(model, some, bos=BOS, attention=attention, batch_rows=rows)
    alone = [read(model, [one], bos=BOS, attention=attention)[0] for one in some]
    nll = answer_nll(model, together, questions, batch_rows=rows)
    for kept, own, question, found in zip(together, alone, questions, nll, strict=True):
        assert kept.lengths == own.lengths
        assert (kept.end, [p.tolist() for p in kept.positions]) == (
            own.end,
            [p.tolist() for p in own.positions],
        )
        torch.testing.assert_close(found, answer_nll(model, [own], [question])[0], atol=1e-4, rtol=0)


@settings(max_examples=10)
@given(reading=readings, question=asked)
def test_a_kept_prefix_is_one_pass_over_all(reading, question):
    model = build("gemma3")
    whole = Reading(reading.document, reading.prefix, reading.separator, keep_prefix=True)
    found = answer_nll(model, read(model, [whole], bos=BOS), [question])[0]
    text = [BOS, *whole.before, *whole.document, *question.context, *question.answer]
    with torch.inference_mode():
        torch.testing.assert_close(found, one_pass(model, text, len(question.answer)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PRESSES)
def test_without_a_prefix_a_press_keeps_what_kvpress_keeps(model, name):
    document, context, answer = list(range(3, 33)), [40, 41, 42], [50, 51]
    kept = read(model, [Reading(document)], bos=BOS, press=PRESSES[name]())
    found = answer_nll(model, kept, [Asked(context, answer)])[0]
    text = torch.tensor([BOS, *document])
    cache = DynamicCache(config=model.config)
    nll = []
    try:
        with torch.inference_mode():
            with attention(model, attention_for(PRESSES[name]())), compressing(model, PRESSES[name](), name):
                model(input_ids=text[None], past_key_values=cache)
            for token in (*context, *answer[:-1]):  # one by one: kvpress masks heads for such steps
                at = torch.tensor([len(text) + len(nll)])
                step = {"position_ids": at[None], "cache_position": at, "past_key_values": cache}
                nll.append(-model(input_ids=torch.tensor([[token]]), **step).logits[0, -1].log_softmax(-1))
    finally:
        clear_head_masks(model)
    expected = torch.stack([nll[len(context) - 1 + i][token] for i, token in enumerate(answer)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PRESSES)
def test_a_press_compresses_the_document_and_not_the_prefix(model, name):
    texts = [Reading(list(range(3, 33)), prefix, [9]) for prefix in ((), range(50, 60), range(70, 90))]
    kept = read(model, texts, bos=BOS, press=PRESSES[name]())
    assert all(cache.end == 31 for cache in kept)
    if name != "chunk":  # which keeps whole chunks, and one of them is short
        assert len({cache.n_entries for cache in kept}) == 1
    full = [i for i, window in enumerate(sliding_windows(model)) if window is None]
    if name in {"knorm", "snapkv", "observed"}:
        assert all(cache.lengths[layer] == 15 for cache in kept for layer in full)
    whole = read(model, [texts[0]], bos=BOS)[0]
    for layer in set(range(len(kept[0].lengths))) - set(full):  # sliding windows are not compressed
        assert torch.equal(kept[0].positions[layer], whole.positions[layer])


def test_a_press_that_works_outside_of_layers_is_rejected():
    with pytest.raises(KvguardError, match="KVzipPress compresses a whole prompt at once"):
        read(build("llama"), [Reading([5, 6])], bos=BOS, press=kvpress.KVzipPress(0.5))


@pytest.mark.parametrize("window", [None, WINDOW])
def test_a_bidirectional_reading_is_that_of_transformers_masks(window):
    """Causal masks with an ``or_mask_function``, its own hook for blocks; and one built by hand."""
    model = build("mistral", sliding_window=window)
    text = [BOS, *range(3, 60)]
    model.config._attn_implementation = "eager"
    make = create_causal_mask if window is None else create_sliding_window_causal_mask
    ids = torch.tensor([text])
    hooked = make(
        config=model.config,
        inputs_embeds=model.get_input_embeddings()(ids),
        attention_mask=None,
        cache_position=torch.arange(len(text)),
        past_key_values=None,
        or_mask_function=lambda b, h, q, k: q >= 0,  # all of it is one block
    )
    distance = torch.arange(len(text))[:, None] - torch.arange(len(text))
    by_hand = torch.zeros(1, 1, len(text), len(text))
    if window is not None:
        by_hand.masked_fill_(distance.abs() >= window, float("-inf"))
        hooked = by_hand  # transformers' hook opens the window too, so that only the hand's mask compares
    with torch.inference_mode():
        caches = [DynamicCache(), DynamicCache()]
        for mask, cache in zip((hooked, by_hand), caches, strict=True):
            model(input_ids=ids, attention_mask=mask, past_key_values=cache)
    kept = read(model, [Reading(text[1:])], bos=BOS, attention="bidirectional")[0]
    for layer, keys in enumerate(kept.keys):
        for cache in caches:
            whole = cache.layers[layer].keys[0]
            torch.testing.assert_close(keys, whole[:, -keys.shape[1] :], atol=1e-4, rtol=1e-4)


def test_an_isolated_document_does_not_depend_on_the_words_of_its_prefix(model):
    texts = [Reading(list(range(3, 20)), prefix, [9]) for prefix in (range(50, 60), range(70, 80))]
    one, other = read(model, texts, bos=BOS, attention="isolated")
    for a, b in zip(one.values, other.values, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_appended_is_as_if_it_had_been_read(model):
    document, more = list(range(3, 3 + WINDOW + 4)), [70, 71, 72]
    kept = read(model, [Reading(document), Reading(document[:4])], bos=BOS)
    grown = append(model, kept, [more, more[:1]]).caches[0]
    read_whole = read(model, [Reading([*document, *more])], bos=BOS)[0]
    assert grown.lengths == read_whole.lengths
    question = Asked([80], [90, 91])
    a, b = (answer_nll(model, [cache], [question])[0] for cache in (grown, read_whole))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_generation_goes_on_as_kvpress_does_from_one_pass(model):
    texts = [list(range(3, 3 + n)) for n in (4, WINDOW + 6, 17)]
    contexts = [[40, 41], [42], [43, 44, 45]]
    kept = read(model, [Reading(text) for text in texts], bos=BOS)
    said = generate(model, kept, contexts, 8, [2])
    for text, context, tokens in zip(texts, contexts, said, strict=True):
        assert kvpress_generate(model, torch.tensor([BOS, *text, *context]), None, 8, [2]).agrees(tokens)


def test_score_is_the_nll_of_each_token_behind_a_cache(model):
    document, text = [5, 6, 7, 8], [30, 31, 32, 33]
    found = score(model, read(model, [Reading(document)], bos=BOS)[0], text)
    assert found[0].isnan()
    with torch.inference_mode():
        expected = one_pass(model, [BOS, *document, *text], 3)
    torch.testing.assert_close(found[1:], expected, atol=1e-4, rtol=0)


def test_selected_entries_are_the_only_ones_that_are_seen(model):
    kept = read(model, [Reading(list(range(3, 15)))], bos=BOS)[0]
    some = select(kept, torch.tensor([0, 3, 5, 12]))
    assert some.lengths == [4] * len(some.keys)
    assert some.end == kept.end
    assert some.positions[0].tolist() == [[0, 3, 5, 12]]
    question = Asked([40], [50])
    assert not torch.equal(*(answer_nll(model, [cache], [question])[0] for cache in (kept, some)))


def test_layers_that_hold_less_are_selected_by_their_own_indices_or_rejected():
    model = build("gemma3")
    kept = read(model, [Reading(list(range(3, 40)))], bos=BOS)[0]
    with pytest.raises(KvguardError, match="layer 0 holds 23 entries"):
        select(kept, torch.tensor([0, 30]))
    own = select(kept, [torch.arange(n - 2, n) for n in kept.lengths])
    assert {tuple(p[0].tolist()) for p in own.positions} == {(36, 37)}


def test_a_shifted_cache_is_asked_alike(model):
    """Rotary positions are relative: a text that has moved as a whole says the same."""
    kept = read(model, [Reading(list(range(3, 15)))], bos=BOS)[0]
    moved = shift(model, kept, 100)
    assert moved.end == kept.end + 100
    question = Asked([40, 41], [50, 51])
    a, b = (answer_nll(model, [cache], [question])[0] for cache in (kept, moved))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_bf16_is_scored_in_float32(model):
    half = build(model.config.model_type.removesuffix("_text")).bfloat16()
    reading, question = Reading(list(range(3, 30)), [50, 51], [9]), Asked([40], [50, 51])
    found = answer_nll(half, read(half, [reading], bos=BOS), [question])[0]
    exact = answer_nll(model, read(model, [reading], bos=BOS), [question])[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.5, rtol=0.1)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda m: read(m, [Reading([])], bos=BOS), "reading 0: its document is empty"),
        (lambda m: read(m, [Reading([5] * 600)], bos=BOS), "reading 0: 601 tokens, and llama"),
        (lambda m: _ask(m, [], [5]), "question 0: its context is empty"),
        (lambda m: _ask(m, [5], []), "question 0: its answer is empty"),
        (lambda m: _ask(m, [5] * 510, [5]), "question: 513 tokens, and llama"),
        (lambda m: score(m, read(m, [Reading([5])], bos=BOS)[0], [5]), "pass two or more"),
    ],
)
def test_a_mistake_is_one_line(act, says):
    with pytest.raises(KvguardError, match=says) as raised:
        act(build("llama"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("kind", "limit"), [("dynamic", 512), ("longrope", 256)])
def test_rotations_that_change_with_the_length_are_rejected_beyond_it(kind, limit):
    model = build(f"rope/{kind}", max_position_embeddings=512)
    assert read(model, [Reading([5] * (limit - 1))], bos=BOS)
    with pytest.raises(KvguardError, match="fixed angles for the first"):
        read(model, [Reading([5] * limit)], bos=BOS)


def test_entries_that_a_press_does_not_name_cannot_be_moved():
    model = build("llama")
    kept = read(model, [Reading(list(range(3, 33)))], bos=BOS, press=PRESSES["chunk"]())[0]
    with pytest.raises(KvguardError, match="nobody knows where their keys stand"):
        reposition(model, kept, kept.positions, kept.end)


def _ask(model, context, answer):
    return answer_nll(model, read(model, [Reading([5, 6])], bos=BOS), [Asked(context, answer)])
