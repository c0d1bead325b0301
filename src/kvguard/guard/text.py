"""Tokens to text as they come, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvguard.engine.stops import StopStrings
from kvguard.models.decoding import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what decoders write for the bytes of a character that is not all there


class Unfolding:
    """The text that each token of one generation adds; a character of several tokens comes with its last.

    Only the tokens since the last but one piece are decoded again, so a long text costs no more per token,
    and a tokenizer that treats the beginning of a text specially does so on both sides of the difference.
    What may be the beginning of a stop string comes once it turns out to be none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: StopStrings | None = None) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._begin = self._told = 0  # the window begins there; the text up to there has been decoded
        self._held = ""  # decoded, and perhaps a stop string's beginning

    def add(self, token_id: int) -> str:
        """Return what the next token adds."""
        self._ids.append(token_id)
        fresh = self._fresh()
        if not fresh or fresh.endswith(
            _INCOMPLETE
        ):  # nothing: a special token, after which the next is no first
            return ""
        self._begin, self._told = self._told, len(self._ids)
        if self._stops is None:
            return fresh
        text = self._held + fresh
        added = self._stops.settled(text)
        self._held = text[len(added) :]
        return added

    def rest(self) -> str:
        """Return what has been held back, without a stop string."""
        text = self._held + self._fresh()
        return self._stops.cut(text) if self._stops is not None else text

    @property
    def stopped(self) -> bool:
        """Whether the text has come to a stop string."""
        return self._stops is not None and self._stops.cut(self._held) != self._held

    def rewind(self, n_tokens: int) -> None:
        """Keep the first ``n_tokens`` tokens."""
        kept = self._ids[:n_tokens]
        self._ids, self._begin, self._told, self._held = [], 0, 0, ""
        for token_id in kept:
            self.add(token_id)

    def _fresh(self) -> str:
        return self._decode(len(self._ids))[len(self._decode(self._told)) :]

    def _decode(self, end: int) -> str:
        # What a tokenizer tidies up ("was ." to "was.") depends on what follows: not to be told as it comes.
        return text_of(self._tokenizer, self._ids[self._begin : end], tidy=False)


def told(tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int], stops: StopStrings | None) -> str:
    """Return what the tokens add to the text while more of them may come."""
    text = Unfolding(tokenizer, stops)
    return "".join(map(text.add, token_ids))
