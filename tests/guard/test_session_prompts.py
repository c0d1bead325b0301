"""One prompt among others: what is wrong with it is its own, and what the machine lacks is one line."""

import copy

import numpy as np
import pytest
import torch
from kvpress import (
    ExpectedAttentionPress,
    KnormPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)

from guarded import NEW, encoded, ids_of
from kvguard.engine.batch import Batch
from kvguard.errors import KvguardError
from kvguard.models.load import LoadedModel


def test_what_is_wrong_with_one_prompt_is_recorded_and_the_others_finish(guards, reference, prompts):
    asked = [[3, 4, 5], prompts[0], [5] * 5000, [], prompts[1], [5] * 20 + [-1], [5] * 20 + [10**6]]
    out = guards["calm"].generate(*reference, asked, press=SnapKVPress(0.75, window_size=16))
    window = reference[0].config.max_position_embeddings
    assert "prompt 0: 3 tokens are too few for SnapKVPress@0.75, which needs 17" in out[0].error
    assert f"prompt 2: 5000 tokens and {NEW} new ones exceed the model's window of {window}" in out[2].error
    assert "prompt 3: 0 tokens" in out[3].error
    assert "prompt 5: the model knows no token -1" in out[5].error
    assert "prompt 6: the model knows no token 1000000" in out[6].error
    for place in (0, 2, 3, 5, 6):
        assert (out[place].stop_reason, out[place].text, len(out[place].token_ids)) == ("rejected", "", 0)
    good = guards["calm"].generate(*reference, prompts[:2], press=SnapKVPress(0.75, window_size=16))
    assert [out[1].text, out[4].text] == [output.text for output in good]
    alone = guards["calm"].generate(*reference, [[]])
    assert alone[0].stop_reason == "rejected"
    assert guards["calm"].generate(*reference, []) == []


def test_a_prompt_that_the_press_itself_rejects_is_recorded_too(guards, reference, prompts, monkeypatch):
    score = KnormPress.score

    def picky(self, module, hidden_states, *rest):
        assert hidden_states.shape[1] > 20, "too short for me"
        return score(self, module, hidden_states, *rest)

    monkeypatch.setattr(KnormPress, "score", picky)
    short, long = guards["calm"].generate(*reference, [[5] * 10, prompts[0]], press=KnormPress(0.5))
    assert short.stop_reason == "rejected"
    assert "too short for me" in short.error
    assert (long.error, len(long.token_ids)) == (
        None,
        NEW if long.stop_reason == "length" else len(long.token_ids),
    )


def test_logits_that_are_no_numbers_end_their_row_and_no_other(guards, reference, prompts, monkeypatch):
    before = guards["late"].generate(*reference, prompts, press=KnormPress(0.5))
    feed = Batch.feed

    def poisoned(batch):
        feed(batch)
        prompt = np.array([batch.requests[row].key for row in batch.row.tolist()])
        batch.logits[(prompt == 2) & (batch.t == 6)] = float("nan")

    monkeypatch.setattr(Batch, "feed", poisoned)
    finished = []
    after = guards["late"].generate(*reference, prompts, press=KnormPress(0.5), on_finish=finished.append)
    assert sorted(finished) == [0, 1, 2, 3]
    assert after[2].stop_reason == "invalid"
    assert "after 6 tokens are NaN" in after[2].error
    assert after[2].token_ids.tolist() == before[2].token_ids[:6].tolist()
    for place in (0, 1, 3):
        assert after[place].text == before[place].text
    pieces = [p for p in guards["late"].stream(*reference, prompts, press=KnormPress(0.5)) if p.prompt == 2]
    assert (pieces[-1].token_id, pieces[-1].stop_reason, pieces[-1].error) == (
        None,
        "invalid",
        after[2].error,
    )
    assert "".join(piece.text for piece in pieces) == after[2].text


def test_memory_that_runs_out_is_one_line(guards, reference, prompts, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Batch, "feed", full)
    with pytest.raises(KvguardError, match="no memory for even one row"):
        guards["calm"].generate(*reference, prompts)
    with pytest.raises(KvguardError, match="memory ran out: use a smaller batch_size"):
        list(guards["calm"].stream(*reference, prompts))


def test_after_running_out_of_memory_half_the_batch_gives_the_same_texts(
    guards, reference, prompts, monkeypatch
):
    before = guards["late"].generate(*reference, prompts, press=KnormPress(0.5))
    feed, finished = Batch.feed, []

    def tight(batch):
        if batch.n > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        feed(batch)

    monkeypatch.setattr(Batch, "feed", tight)
    after = guards["late"].generate(*reference, prompts, press=KnormPress(0.5), on_finish=finished.append)
    assert [output.text for output in after] == [output.text for output in before]
    assert sorted(finished) == [0, 1, 2, 3]


def test_one_text_is_not_a_list_of_letters(guards, reference):
    with pytest.raises(KvguardError, match="pass \\[prompt\\]"):
        guards["calm"].generate(*reference, "abc")


@pytest.mark.parametrize("prompts", [None, [None], [5], [[1.5]]])
def test_prompts_that_are_neither_texts_nor_token_ids_are_one_line(guards, reference, prompts):
    with pytest.raises(KvguardError, match=r"prompts: .*a list of texts, or of lists of token ids"):
        guards["calm"].generate(*reference, prompts)


def test_prompts_may_be_drawn_from_an_iterator_and_token_ids_be_a_tensor(guards, reference, prompts):
    ids = encoded(reference, prompts[0])
    out = guards["calm"].generate(*reference, iter([prompts[0], torch.tensor(ids), np.array(ids)]))
    assert len({output.text for output in out}) == 1
    assert len(out) == 3


@pytest.mark.parametrize("press", [SnapKVPress(0.95, window_size=16), ExpectedAttentionPress(0.95)])
def test_a_prompt_whose_budget_the_press_cannot_hold_is_recorded_and_the_others_finish(
    guards, reference, prompts, press
):
    how = {"press": press, "compression_interval": 24, "action": "hold"}
    ids = encoded(reference, prompts[0])
    short, long = guards["late"].generate(*reference, [ids[:25], prompts[1]], **how)
    assert short.stop_reason == "rejected"
    assert f"prompt 0: 25 tokens leave {type(press).__name__}@0.95 too small a budget" in short.error
    assert "\n" not in short.error
    [alone] = guards["late"].generate(*reference, [prompts[1]], **how)
    assert (long.error, long.text) == (None, alone.text)


@pytest.mark.parametrize(("press", "interval"), [(TOVAPress(0.95), 4), (StreamingLLMPress(0.9), 2)])
def test_a_budget_of_one_entry_is_no_reason_to_reject(guards, reference, prompts, press, interval):
    ids = encoded(reference, prompts[0])[:15]
    [output] = guards["late"].generate(*reference, [ids], press=press, compression_interval=interval)
    assert output.error is None


def test_token_ids_are_taken_as_they_are(guards, reference, prompts):
    text, given = guards["calm"].generate(*reference, [prompts[0], encoded(reference, prompts[0])])
    assert text.token_ids.tolist() == given.token_ids.tolist()


@pytest.mark.parametrize("odd", ["a\ud800b", "\udfff"])
@pytest.mark.parametrize("how", ["generate", "stream"])
def test_a_text_that_cannot_be_encoded_is_recorded_and_the_others_finish(
    guards, reference, prompts, odd, how
):
    asked = [prompts[0], odd, prompts[1]]
    found = getattr(guards["calm"], how)(*reference, asked, press=KnormPress(0.5), max_new_tokens=8)
    if how == "stream":
        last = {piece.prompt: piece for piece in found}
        assert {number: piece.error is None for number, piece in last.items()} == {0: True, 1: False, 2: True}
        assert "prompt 1: the text has a lone surrogate" in last[1].error
        return
    assert [output.error is None for output in found] == [True, False, True]
    assert found[1].stop_reason == "rejected"
    alone = guards["calm"].generate(*reference, prompts[:2], press=KnormPress(0.5), max_new_tokens=8)
    assert ids_of([found[0], found[2]]) == ids_of(alone)


@pytest.mark.parametrize("prompts", [[b"abc"], [{"role": "user"}], [bytearray(b"a")]])
def test_bytes_and_mappings_are_no_token_ids(guards, reference, prompts):
    with pytest.raises(
        KvguardError, match=r"prompts: .* is neither a text nor token ids: pass a list of texts"
    ):
        guards["calm"].generate(*reference, prompts)


def test_a_template_that_asks_nothing_is_one_line_before_anything_runs(guards, reference):
    model, tokenizer = reference[0], copy.deepcopy(reference[1])
    tokenizer.chat_template = (
        "{% for part in messages[0]['content'] %}{{ part.text }}{% endfor %}<|assistant|>"
    )
    whole = guards["calm"].generate(
        model, tokenizer, ["How many?"], max_new_tokens=2
    )  # a list of parts it takes
    assert whole[0].error is None
    tokenizer.chat_template = "<|assistant|>"
    with pytest.raises(KvguardError, match="its chat template leaves out"):
        guards["calm"].generate(model, tokenizer, ["How many?"])


def test_a_control_token_that_a_user_types_ends_and_begins_no_turn(guards, reference):
    eos, text = reference[1].eos_token, "Q: 1 + 1?"
    said, plain = (loaded_ids(reference, asked) for asked in (f"{eos}{text}<|assistant|>", text))
    special = set(reference[1].all_special_ids)
    assert [i for i in said if i in special] == [i for i in plain if i in special]


def loaded_ids(reference, asked):
    return LoadedModel("m", *reference, "").encode(asked)
