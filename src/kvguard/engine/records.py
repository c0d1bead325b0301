"""What the rows under way have drawn so far, on the device, by seat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvguard.engine.signals import N_SIGNALS

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_TOKENS = 32  # of every row: room at first, doubled when it is full


@dataclass(frozen=True)
class Step:
    """One token of every row under way; slot i of the batch is entry i here.

    Attributes
    ----------
    row, seat : ndarray
        [n], the row that a slot holds, and its seat (see :class:`~kvguard.engine.requests.Follower`).
    t : ndarray
        [n], the index in its row of the token just drawn.
    tokens : Tensor
        [n]
    signals : Tensor
        [n, 26]
    ended : ndarray
        [n] bool: an end token, a stop, or the last token allowed.
    valid : ndarray
        [n] bool: False where the logits were NaN; that token does not count, and the row leaves.
    """

    row: Ints
    seat: Ints
    t: Ints
    tokens: Tensor
    signals: Tensor
    ended: Bools
    valid: Bools


class Records:
    """Tokens and signals of the rows under way.

    Attributes
    ----------
    tokens, signals : Tensor
        [seats, capacity] int32 and [seats, capacity, 26].
    """

    def __init__(self, device: torch.device) -> None:
        self.tokens = torch.zeros(0, _TOKENS, dtype=torch.int32, device=device)
        self.signals = torch.zeros(0, _TOKENS, N_SIGNALS, device=device)

    def room(self, seats: int, n_tokens: int) -> None:
        """Make room for so many seats, and for one more token than ``n_tokens``."""
        n, capacity = self.tokens.shape
        while capacity <= n_tokens:
            capacity *= 2
        if seats > n or capacity > self.tokens.shape[1]:
            shape = max(seats, n), capacity
            tokens, signals = self.tokens.new_zeros(shape), self.signals.new_zeros(*shape, N_SIGNALS)
            tokens[:n, : self.tokens.shape[1]] = self.tokens
            signals[:n, : self.tokens.shape[1]] = self.signals
            self.tokens, self.signals = tokens, signals

    def begin(self, seat: int, prefix: Sequence[int]) -> None:
        """Begin a row with tokens whose signals are not known."""
        if prefix:
            self.tokens[seat, : len(prefix)] = torch.tensor(prefix, dtype=torch.int32)
            self.signals[seat, : len(prefix)] = float("nan")

    def write(self, seats: Tensor, t: Tensor, tokens: Tensor, signals: Tensor) -> None:
        """Record the token with index ``t`` of each seat. All [n], signals [n, 26]."""
        self.tokens[seats, t] = tokens.to(torch.int32)
        self.signals[seats, t] = signals

    def read(self, seat: int, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Copy the first ``n`` tokens of a row, and their signals, to the host."""
        return self.tokens[seat, :n].cpu().numpy().copy(), self.signals[seat, :n].cpu().numpy().copy()
