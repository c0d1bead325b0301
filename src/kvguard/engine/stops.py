"""Stop strings: a text ends where one of them is complete, found token by token.

What counts is what transformers' ``stop_strings`` count: the strings that single tokens stand for, one after
another. A string may begin and end inside tokens; it stops the text at the token that brings its last
character. Unlike there, the prompt is no part of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from kvguard.errors import KvguardError, foreign

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEFORE = "abcdef"  # stands before a token, since some tokenizers drop a text's first space


class Pieces:
    """The strings that single tokens of a tokenizer stand for, whatever stands before them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        with _foreign():
            ids = tokenizer.encode(_BEFORE, add_special_tokens=False)
            self._before = tokenizer.convert_ids_to_tokens(ids)
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        """Return the string of a token; empty for one that the tokenizer does not know."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._string(token_id).partition(_BEFORE)[2]
        return found

    def _string(self, token_id: int) -> str:
        """Return what a token stands for, after ``_BEFORE``."""
        with _foreign():
            token = self._tokenizer.convert_ids_to_tokens([token_id])[0]
            return "" if token is None else self._tokenizer.convert_tokens_to_string([*self._before, token])


class StopStrings:
    """The stop strings of many texts by one tokenizer.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    strings : sequence of str

    Raises
    ------
    KvguardError
        There is no string, or an empty one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        if not strings or not all(strings):
            raise KvguardError(f"stop strings {list(strings)}: each needs at least one character")
        self.strings = tuple(strings)
        self.longest = max(map(len, strings))
        self.piece = Pieces(tokenizer)

    def start(self) -> StopState:
        """Return the state of a text that has no token yet."""
        return StopState(self)

    def count(self, token_ids: Sequence[int]) -> int:
        """Return how many of the tokens a text has: up to the one that completes a stop string, or all."""
        state = self.start()
        return next((n for n, token in enumerate(token_ids, start=1) if state.push(token)), len(token_ids))

    def cut(self, text: str) -> str:
        """Return ``text`` up to where the first stop string in it begins."""
        return text[: min((at for at in map(text.find, self.strings) if at >= 0), default=len(text))]

    def settled(self, text: str) -> str:
        """Return ``text`` up to where a stop string begins in it, or may begin once more text follows."""
        whole = self.cut(text)
        begin = max(0, len(text) - self.longest + 1)
        open_at = (at for at in range(begin, len(whole)) if self._may_begin(text[at:]))
        return whole[: next(open_at, len(whole))]

    def _may_begin(self, end: str) -> bool:
        return any(string.startswith(end) for string in self.strings)


def _foreign() -> AbstractContextManager[None]:
    return foreign("the tokenizer cannot tell what its tokens stand for", "leave out stop strings, or fix it")


class StopState:
    """How much of a stop string the end of one text may hold."""

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._tails = [""]  # after 0, 1, 2, ... tokens: the last characters that a stop string may begin in

    def push(self, token_id: int) -> bool:
        """Take the text's next token; return whether it completes a stop string."""
        text = self._tails[-1] + self._stops.piece(token_id)  # the tail alone is too short to hold one
        keep = self._stops.longest - 1
        self._tails.append(text[-keep:] if keep else "")
        return any(self._completes(text, string) for string in self._stops.strings)

    def _completes(self, text: str, string: str) -> bool:
        """Return whether ``string`` ends in the newest token, which ``text`` ends with."""
        n_old = len(self._tails[-2])
        return text.find(string, max(0, n_old - len(string) + 1)) >= 0

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens."""
        del self._tails[n_tokens + 1 :]
