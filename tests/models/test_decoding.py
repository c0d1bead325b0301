"""Tokens to text: what a tokenizer raises there is one line, wherever it is asked."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tokenizers_of_all_kinds as kinds
from kvguard.cli.trace import pieces
from kvguard.engine.stops import StopStrings
from kvguard.errors import KvguardError
from kvguard.guard.features import thinking_mask
from kvguard.guard.text import Unfolding
from kvguard.models.decoding import text_of, texts_of

SOURCE = Path(__file__).parents[2] / "src/kvguard"


class Broken:
    """A tokenizer whose own code fails where it turns tokens into text."""

    name_or_path = "somewhere/broken"

    def __len__(self) -> int:
        return 8

    def fail(self, *_: object, **__: object) -> Any:
        raise IndexError("piece id\nis out of range")

    decode = batch_decode = convert_ids_to_tokens = convert_tokens_to_string = encode = fail


ASKED: dict[str, Callable[[Any], object]] = {
    "a text": lambda tokenizer: text_of(tokenizer, [1, 2]),
    "tokens": lambda tokenizer: texts_of(tokenizer, [1, 2]),
    "thinking words": lambda tokenizer: thinking_mask(tokenizer, ["wait"]),
    "a stream": lambda tokenizer: Unfolding(tokenizer).add(1),
    "a trace": lambda tokenizer: pieces(tokenizer, [1, 2]),
    "stop strings": lambda tokenizer: StopStrings(tokenizer, ["\n\n"]),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_tokenizer_that_fails_is_one_line(asked: str) -> None:
    with pytest.raises(KvguardError, match=r"tokenizer .*: IndexError: piece id is out of range: ") as caught:
        ASKED[asked](Broken())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_text_is_what_the_tokenizer_writes(kind: str) -> None:
    tokenizer = kinds.make(kind)
    ids = tokenizer.encode("how many pens")
    assert text_of(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)
    assert text_of(tokenizer, ids, special=True) == tokenizer.decode(ids)
    assert texts_of(tokenizer, ids) == [tokenizer.decode([token]) for token in ids]


def test_no_other_place_decodes() -> None:
    """But stop strings and log-probabilities, which ask for single tokens, and the script that trains."""
    callers = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("decode", "batch_decode", "convert_tokens_to_string")
        and "tokenizer" in ast.unparse(node.value)
    }
    known = {"models/decoding.py", "engine/stops.py", "models/reference/evaluate.py", "serve/words.py"}
    assert callers == known
