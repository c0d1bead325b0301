"""How the next token is drawn."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Sampler(Protocol):
    """Draws one token per row: logits [B, V] -> token ids [B]."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Draw the tokens."""
        ...


def greedy(logits: Tensor) -> Tensor:
    """Take the most likely token of each row (the first one on a tie, as transformers does)."""
    return logits.argmax(dim=-1)
