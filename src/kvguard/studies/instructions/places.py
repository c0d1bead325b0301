"""Where in a prompt's tokens an instruction stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvguard.models.decoding import text_of
from kvguard.models.load import LoadedModel
from kvguard.studies.instructions.examples import Example

Positions = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """An example as a model reads it.

    Parameters
    ----------
    example : Example
    ids : list of int
        The prompt's tokens.
    instructions : tuple of (tuple of int or None)
        The tokens of each instruction; None where its words cannot be told apart.
    system : tuple of int or None
        The tokens of the system prompt, if there is one.
    """

    example: Example
    ids: list[int]
    instructions: tuple[Positions | None, ...]
    system: Positions | None


def encode(loaded: LoadedModel, example: Example) -> Encoded:
    """Encode an example, and find its instructions among its tokens.

    Raises
    ------
    KvguardError
        It cannot be encoded.
    """
    ids = loaded.encode({"messages": example.messages, "text": example.text})
    text, owners = _written(loaded, ids)
    user, system = _find(text, example.prompt, 0), None
    if example.system is not None:
        system = _find(text, example.system, 0)
        user = _find(text, example.prompt, system[1] if system else 0) or user
    instructions = []
    for instruction in example.instructions:
        span = None
        for message in (system, user):
            if span is None and message is not None and instruction.text:
                span = _find(text[: message[1]], instruction.text, message[0])
        instructions.append(_tokens(owners, span))
    return Encoded(example, ids, tuple(instructions), _tokens(owners, system))


def _written(loaded: LoadedModel, ids: Sequence[int]) -> tuple[str, list[list[int]]]:
    """Return a prompt as text, and for each of its characters the tokens that write it.

    Text is told after each token; that of a character of several tokens comes with its last.
    """
    special = set(loaded.tokenizer.all_special_ids)
    text, owners, waiting, begin = "", [], list[int](), 0
    for place, token in enumerate(ids):
        if token in special:
            begin, waiting = place + 1, []
            continue
        waiting.append(place)
        # From the token before on, since some tokenizers treat the first one of a text specially.
        start = max(begin, waiting[0] - 1)
        before = text_of(loaded.tokenizer, ids[start : waiting[0]], tidy=False)
        fresh = text_of(loaded.tokenizer, ids[start : place + 1], tidy=False)[len(before) :]
        if not fresh or fresh.endswith("\ufffd"):
            continue
        text += fresh
        owners += [waiting] * len(fresh)
        waiting = []
    return text, owners


def _find(text: str, words: str, start: int) -> tuple[int, int] | None:
    """Return where ``words`` stand in a text from ``start`` on, whatever the space between them."""
    places = [place for place, letter in enumerate(text) if place >= start and not letter.isspace()]
    squeezed, wanted = "".join(text[place] for place in places), "".join(words.split())
    found = squeezed.find(wanted)
    if not wanted or found < 0:
        return None
    return places[found], places[found + len(wanted) - 1] + 1


def _tokens(owners: Sequence[Sequence[int]], span: tuple[int, int] | None) -> Positions | None:
    if span is None:
        return None
    return tuple(sorted({token for owner in owners[slice(*span)] for token in owner}))
