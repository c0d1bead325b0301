"""A text as its tokens come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.engine.stops import StopStrings
from kvguard.guard.text import Unfolding


@pytest.fixture(scope="module")
def byte_tokenizer(tiny_models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_models["tiny"])


def test_characters_of_several_tokens_come_whole_and_can_be_rewound(byte_tokenizer):
    tokenizer = byte_tokenizer
    text = "aé€ 𝄞z"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)
    unfolding = Unfolding(tokenizer)
    pieces = [unfolding.add(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    for kept in range(len(ids)):
        unfolding.rewind(kept)
        assert "".join(pieces[:kept]) + "".join(unfolding.add(token) for token in ids[kept:]) == text
    unfolding.rewind(2)
    assert unfolding.rest() == "\ufffd"  # half a character, at the end of a text


@given(
    st.text("ab€", max_size=12),
    st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
)
def test_no_part_of_a_stop_string_is_told_and_all_before_it_is(byte_tokenizer, text, strings, kept):
    stops = StopStrings(byte_tokenizer, strings)
    ids = byte_tokenizer.encode(text)
    ids = ids[: stops.count(ids)]  # where a generation ends
    text = byte_tokenizer.decode(ids)
    whole = stops.cut(text)
    unfolding = Unfolding(byte_tokenizer, stops)
    pieces = [unfolding.add(token) for token in ids]
    assert "".join(pieces) + unfolding.rest() == whole
    assert unfolding.stopped == (whole != text)
    told = ""
    for piece in pieces:
        told += piece
        assert whole.startswith(told), "what is told is never taken back"
    kept = min(kept, len(ids))
    unfolding.rewind(kept)
    again = [unfolding.add(token) for token in ids[kept:]]
    assert "".join(pieces[:kept] + again) + unfolding.rest() == whole
