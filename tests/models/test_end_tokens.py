"""What ends a text: a run that starts, and a line about whatever in it may be wrong."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizers_of_all_kinds as kinds
from kvguard.engine.loop import decode
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import NONE, Condition
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.models.end_tokens import end_tokens
from kvguard.models.load import LoadedModel
from tiny import build

SIZE = 258  # of the tiny models' vocabulary
FULL = Condition(NONE, 0.0)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return build("qwen2")


def loaded(model: Any, named: Any, own: int | None = None) -> LoadedModel:
    model.generation_config.eos_token_id = named
    tokenizer = kinds.make("bytes", bos=False)
    return LoadedModel("m", model, _Ending(tokenizer, own), "")  # type: ignore[arg-type]


class _Ending:
    """A tokenizer with another end token."""

    def __init__(self, tokenizer: Any, own: int | None) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **how: Any) -> Any:
        return self._tokenizer(*args, **how)


def test_an_end_token_that_the_tokenizer_appends_is_told(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = loaded(tiny, 1, 1)
    appending = LoadedModel("m", model.model, kinds.make("bytes", bos=False, eos=True), "")
    assert appending.encode({"text": "a"}) == model.encode({"text": "a"})
    appending.warn_of_doubts()
    assert [message for message in caplog.messages if "ends every text with '<eos>'" in message]


@pytest.mark.parametrize(
    ("named", "own", "ids", "doubts"),
    [
        (1, 1, [1], []),
        ([1, 5], 5, [1, 5], []),
        (1, None, [1], []),
        (None, 7, [7], []),
        (1, 7, [1, 7], ["names only [1]"]),
        ([SIZE], None, [], [f"end token {SIZE} never comes", "no end token"]),
        ([-1], 3, [3], ["(3) too", "end token -1 never comes"]),
        (SIZE - 1, SIZE, [SIZE - 1], [f"end token {SIZE} never comes"]),
        (None, None, [], ["no end token"]),
        ([], None, [], ["no end token"]),
        ([1, 10**12], 1, [1], ["never comes"]),
    ],
)
def test_a_text_ends_at_what_can_come_and_doubts_are_told(
    tiny: Any,
    named: Any,
    own: int | None,
    ids: list[int],
    doubts: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = loaded(tiny, named, own)
    assert model.eos_ids == ids
    model.warn_of_doubts()
    assert len(caplog.messages) == len(doubts)
    for message, words in zip(caplog.messages, doubts, strict=True):
        assert message.startswith("model m: ")
        assert "\n" not in message
        assert words in message


@pytest.mark.parametrize("named", ["2", [1, "2"], 1.5, [None], True, [[1]], {"a": 1}])
def test_what_is_no_token_id_is_one_line(tiny: Any, named: Any) -> None:
    with pytest.raises(KvguardError, match=r"^model m: eos_token_id .* is no token id: give a whole number"):
        loaded(tiny, named).eos_ids  # noqa: B018


@settings(max_examples=25)
@given(
    named=st.none() | st.integers(-2, 300) | st.lists(st.integers(-2, 300), max_size=3),
    own=st.none() | st.integers(0, 300),
)
def test_every_list_of_end_tokens_generates_as_transformers_does(
    tiny: Any, named: Any, own: int | None
) -> None:
    model = loaded(tiny, named, own)
    ids = torch.arange(2, 30)
    done = prefill(tiny, ids, {FULL: None}, "sdpa")
    found = decode(tiny, [Row(ids, done.logits, done.kept[FULL])], Decoding(12, model.eos_ids), batch_size=1)
    reference = kvpress_generate(tiny, ids, None, 12, model.eos_ids)
    tokens = found.token_ids[0, : found.lengths[0]].tolist()
    assert reference.agrees(tokens)
    assert all(token not in model.eos_ids for token in tokens[:-1])
    assert end_tokens("m", tiny, model.tokenizer).ids == tuple(model.eos_ids)
