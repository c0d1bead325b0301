"""Tokens to text as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what decoders write for the bytes of a character that is not all there


class Unfolding:
    """The text that each token of one generation adds; a character of several tokens comes with its last.

    Only the tokens since the last but one piece are decoded again, so a long text costs no more per token,
    and a tokenizer that treats the beginning of a text specially does so on both sides of the difference.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._begin = self._told = 0  # the window begins there; the text up to there has been told

    def add(self, token_id: int) -> str:
        """Return what the next token adds."""
        self._ids.append(token_id)
        added = self.rest()
        if added.endswith(_INCOMPLETE):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return added

    def rest(self) -> str:
        """Return what has been held back."""
        return self._decode(len(self._ids))[len(self._decode(self._told)) :]

    def rewind(self, n_tokens: int) -> None:
        """Keep the first ``n_tokens`` tokens."""
        kept = self._ids[:n_tokens]
        self._ids, self._begin, self._told = [], 0, 0
        for token_id in kept:
            self.add(token_id)

    def _decode(self, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[self._begin : end], skip_special_tokens=True))
