"""Where answers end, from characters to tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.guard.answers import Answers
from kvguard.models.reference import WEIGHTS
from tokenizers_of_all_kinds import KINDS, make

PARTS = ("Ana has", " 12", " pens", ".", " ", "\n\n", "The answer is", " é€", "𝄞", "#### 7", "a")
SAID = st.lists(st.sampled_from(PARTS), min_size=1, max_size=14).map("".join)


@pytest.fixture(
    scope="module",
    params=["reference", "bytes", *KINDS, pytest.param("smollm2", marks=pytest.mark.real_model)],
)
def tokenizer(request, tiny_models, real_model):
    from transformers import AutoTokenizer

    if request.param in KINDS:
        return make(request.param)
    if request.param == "smollm2":
        return AutoTokenizer.from_pretrained(real_model("smollm2"))
    return AutoTokenizer.from_pretrained(
        WEIGHTS / "qwen2" if request.param == "reference" else tiny_models["tiny"]
    )


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


def fewest(tokenizer, ids, wanted):
    """The shortest start of the tokens whose text is of whole characters and reaches all that is wanted."""
    for n in range(len(ids) + 1):
        text = decoded(tokenizer, ids[:n])
        if text.startswith(wanted) and not text.endswith("\ufffd"):
            return n
    return len(ids)


@given(SAID, st.data())
def test_an_answer_takes_the_fewest_tokens_whose_text_reaches_its_end(tokenizer, said, data):
    ids = tokenizer.encode(said, add_special_tokens=False)
    text = decoded(tokenizer, ids)
    if not text:
        return
    ends = data.draw(st.lists(st.integers(1, len(text)), max_size=4))
    given_texts = []

    def answered(seen):
        given_texts.append(seen)
        return ends

    found = Answers(tokenizer, answered).ends(ids)
    assert given_texts == [text]
    assert found == [fewest(tokenizer, ids, text[:end].rstrip()) for end in sorted(ends)]


@given(st.lists(st.integers(0, 10**6), max_size=20), st.data())
def test_any_tokens_have_an_end_for_every_position(tokenizer, ids, data):
    """As a model may write them: halves of characters, special tokens."""
    size = len(tokenizer)
    ids = [token % size for token in ids]
    length = []
    Answers(tokenizer, lambda seen: length.append(len(seen)) or []).ends(ids)
    ends = sorted(data.draw(st.lists(st.integers(1, length[0]), max_size=4))) if length[0] else []
    found = Answers(tokenizer, lambda _: ends).ends(ids)
    assert found == sorted(found)
    assert all(0 <= n <= len(ids) for n in found)


def test_space_after_an_answer_belongs_to_what_follows():
    tokenizer = make("bytes")
    ids = tokenizer.encode("Ana has 7 pens. How many", add_special_tokens=False)
    text = decoded(tokenizer, ids)
    end = text.index(".") + 1
    assert Answers(tokenizer, lambda _: [end, end + 1]).ends(ids) == [fewest(tokenizer, ids, text[:end])] * 2


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        (lambda text: [][1], "answered: IndexError: list index out of range: make it return"),
        (lambda text: None, "answered: TypeError: 'NoneType' object is not iterable: make it return"),
        (lambda text: 5, "answered: TypeError: 'int' object is not iterable: make it return"),
        (lambda text, more: [], "answered: TypeError: .*missing 1 required positional argument"),
        (lambda text: [0], "answered: 0 is no position in a text of 5: make it return"),
        (lambda text: [6], "answered: 6 is no position"),
        (lambda text: [-1], "answered: -1 is no position"),
        (lambda text: [True], "answered: True is no position"),
        (lambda text: [1.0], r"answered: 1\.0 is no position"),
        (lambda text: text, "answered: 'a' is no position"),
        (lambda text: [None], "answered: None is no position"),
    ],
)
def test_a_function_that_names_no_positions_is_one_line(answered, words):
    tokenizer = make("bytes")
    with pytest.raises(KvguardError, match=words) as caught:
        Answers(tokenizer, answered).ends(tokenizer.encode("a\nb c", add_special_tokens=False))
    assert "\n" not in str(caught.value)


def test_positions_may_be_of_any_order_and_of_numpy():
    tokenizer = make("bytes")
    ids = tokenizer.encode("abcde", add_special_tokens=False)
    assert Answers(tokenizer, lambda _: np.array([5, 1])).ends(ids) == [
        fewest(tokenizer, ids, "a"),
        fewest(tokenizer, ids, "abcde"),
    ]
    assert Answers(tokenizer, lambda text: (i for i in (2,))).ends(ids) == [fewest(tokenizer, ids, "ab")]
