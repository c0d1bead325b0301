"""A text as its tokens come."""

from kvguard.guard.text import Unfolding


def test_characters_of_several_tokens_come_whole_and_can_be_rewound(tiny_models):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["tiny"])
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
