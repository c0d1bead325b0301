"""A text as it stands, token by token, of which some is told; a rewind takes back what was not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvguard.serve.trail import Trail

if TYPE_CHECKING:
    from kvguard.serve.logprobs import Said
    from kvguard.serve.tickets import Ask
    from kvguard.serve.trail import Seen


class Draft:
    """A text under way.

    Parameters
    ----------
    prompt
        The log-probabilities of its prompt, if they are to be told.

    Attributes
    ----------
    trail
        What is seen of its tokens, if that is to be told.
    """

    def __init__(self, ask: Ask, prompt: Sequence[Said]) -> None:
        self.tokens: list[int] = []
        self.trail = Trail(ask.guarded) if ask.traced else None
        self._prompt = prompt
        self._said: list[Said] = []

    def add(self, token: int, said: Said | None) -> None:
        """Take the next token, and its log-probabilities if they are to be told."""
        self.tokens.append(token)
        if said is not None:
            self._said.append(said)

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens; its trail has been told by itself."""
        del self.tokens[n_tokens:]
        del self._said[n_tokens:]

    def said(self, begin: int, end: int | None = None) -> list[Said]:
        """Return the log-probabilities of some tokens; the first of them come with the prompt's."""
        return [*(() if begin else self._prompt), *self._said[begin:end]]

    def seen(self, begin: int, end: int | None = None) -> Sequence[Seen]:
        """Return what was seen of some tokens."""
        return self.trail.seen[begin:end] if self.trail is not None else ()
