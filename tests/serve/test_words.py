"""Tokens as text and as bytes: together they are the text, whatever the tokenizer."""

import copy

import pytest
from tokenizers import AddedToken

from kvguard.serve.logprobs import Said
from kvguard.serve.words import ChatLogprobs, TextLogprobs, Words
from tokenizers_of_all_kinds import KINDS, make

TEXT = "How many pens, 漢字 and 🙂, does Ana have? ünïcode"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("bytes", "pieces"))])
def test_the_bytes_of_tokens_are_those_of_their_text(kind):
    words = Words(make(kind))
    ids = words.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    spelled = b"".join(map(words.bytes_of, ids)).decode()
    assert spelled.removeprefix(" ") == TEXT
    parts = [words.word(token)[0] for token in ids]
    assert any(part.startswith("\\x") for part in parts)  # a token that is no whole character
    assert len(set(parts)) == len({bytes(words.word(token)[1]) for token in ids})


@pytest.mark.parametrize("kind", list(KINDS))
def test_offsets_say_where_in_the_text_tokens_begin(kind):
    tokenizer = make(kind)
    words, prompt = Words(tokenizer), "Ana has 3 pens."
    echoed = tokenizer(prompt)["input_ids"]
    ids = tokenizer(" 🙂 said she.", add_special_tokens=False)["input_ids"]
    told = TextLogprobs(words, prompt, len(echoed)).told([Said(token, -1.0) for token in [*echoed, *ids]])
    offsets = told["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    assert offsets[len(echoed)] == len(prompt)
    streamed = TextLogprobs(words, prompt, len(echoed))
    assert offsets == [streamed.told([Said(token, -1.0)])["text_offset"][0] for token in [*echoed, *ids]]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("added", ["▁▁", "  ", "<think>", "<0x41>"])
def test_an_added_token_is_what_it_is_decoded_to(kind, added):
    tokenizer = copy.deepcopy(make(kind))
    tokenizer.add_tokens([AddedToken(added, special=False, normalized=False)])
    [before, token] = [tokenizer.convert_tokens_to_ids(one) for one in ("<bos>", added)]
    whole = tokenizer.decode([before, token, before], clean_up_tokenization_spaces=False)
    assert Words(tokenizer).bytes_of(token).decode().strip() == whole.replace("<bos>", "").strip()
    assert Words(tokenizer).word(before)[0] == "<bos>"


def test_a_token_that_the_tokenizer_does_not_know_is_named_by_its_number():
    words = Words(make("bytes"))
    unknown = len(words.tokenizer) + 5
    [entry] = ChatLogprobs(words).told([Said(unknown, -2.0, ((unknown, -2.0),))])["content"]
    assert entry["token"] == f"token_id:{unknown}"
    assert entry["bytes"] == []
