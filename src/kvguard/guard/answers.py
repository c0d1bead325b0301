"""Where a row's text answers what was asked, counted in tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kvguard.errors import KvguardError, foreign
from kvguard.guard.text import Unfolding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answered = Callable[[str], Iterable[int]]

_FIX = "make it return at which characters the complete answers of a text end, [] where it has none"


class Answers:
    """Finds the complete answers in the tokens of a row.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    answered : callable
        Takes a text and returns where each complete answer to what was asked ends in it: ``text[:end]`` holds
        the answer. Texts may be cut anywhere. Space at the end of an answer is none of it: mostly the token
        that brings it is the first one of what follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, answered: Answered) -> None:
        self._tokenizer, self._answered = tokenizer, answered

    def ends(self, token_ids: Sequence[int]) -> list[int]:
        """Return how many tokens each complete answer takes, in ascending order.

        They are the fewest whose whole characters reach the end of the answer.

        Parameters
        ----------
        token_ids
            Of all that a row has generated. [T]

        Raises
        ------
        KvguardError
            The user's function raises, or returns what are no positions in the text.
        """
        unfolding = Unfolding(self._tokenizer)
        pieces = [unfolding.add(token) for token in token_ids]
        text = "".join(pieces) + unfolding.rest()
        told = np.cumsum([0, *map(len, pieces)])  # characters after 0, 1, 2, ... tokens
        ends = [len(text[:end].rstrip()) for end in self._positions(text)]
        return [min(int(np.searchsorted(told, end)), len(pieces)) for end in ends]

    def _positions(self, text: str) -> list[int]:
        with foreign("answered", f"{_FIX}; it was given {text[-80:]!r}"):
            found = list(self._answered(text))
        for end in found:
            whole = isinstance(end, int | np.integer) and not isinstance(end, bool)
            if not whole or not 0 < end <= len(text):
                raise KvguardError(f"answered: {end!r} is no position in a text of {len(text)}: {_FIX}")
        return sorted(map(int, found))
