"""How the next token is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_COLD = 1e-6  # a temperature below this


@dataclass(frozen=True)
class Past:
    """What stands before the token to be drawn.

    Attributes
    ----------
    prompts : sequence of Tensor
        The token ids of each row's prompt. B of [T]
    generated : Tensor
        [B, L]; only the first ``t`` of a row count, as the batch records them: a rewound row has no others.
    """

    prompts: Sequence[Tensor]
    generated: Tensor


@dataclass(frozen=True)
class Draw:
    """Which token of each row is drawn; chance depends on the first three alone.

    Attributes
    ----------
    row, t, attempt : ndarray
        [B]: the row's number, the token's index in it, and how often the row has been rewound.
    past : Past, optional
        For samplers that read it.
    """

    row: NDArray[np.int64]
    t: NDArray[np.int64]
    attempt: NDArray[np.int64]
    past: Past | None = None


class Sampler(Protocol):
    """Draws one token per row: logits [B, V] -> token ids [B].

    The logits stay as they are. A sampler that has a true attribute ``reads_past`` is told the rows' past.
    """

    def __call__(self, logits: Tensor, draw: Draw) -> Tensor:
        """Draw the tokens."""
        ...


def greedy(logits: Tensor, draw: Draw) -> Tensor:
    """Take the most likely token of each row (the first one on a tie, as transformers does)."""
    return logits.argmax(dim=-1)


@dataclass(frozen=True)
class Nucleus:
    """Sampling at a temperature from the smallest set of tokens that holds ``top_p`` of the probability.

    Before that, ``min_p`` leaves out tokens less likely than this share of the most likely one, and ``top_k``
    all but so many (0: none); what they leave is the whole of which ``top_p`` is a share.

    The random number of a token is a hash of (seed, row, t, attempt), so that a row's text depends neither on
    the batch around it nor on the order of steps, and a rewound row draws anew (Holtzman et al. 2020,
    arXiv 1904.09751).
    """

    temperature: float
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0

    def __call__(self, logits: Tensor, draw: Draw) -> Tensor:
        """Draw the tokens."""
        scaled = torch.nan_to_num(logits.float())
        if self.temperature < _COLD:  # what is divided may grow past all numbers: the largest are made 0
            scaled = scaled - scaled.amax(dim=-1, keepdim=True)
        scaled = torch.nan_to_num(scaled / self.temperature)
        probabilities, order = torch.softmax(scaled, dim=-1).sort(dim=-1, descending=True, stable=True)
        if self.top_k or self.min_p:
            probabilities = self._cut(probabilities)
        total = probabilities.double().cumsum(-1)  # [B, V]
        within = ((total - probabilities) < self.top_p) & (probabilities > 0)
        kept = within.sum(-1, keepdim=True)  # at least the first token
        mass = total.gather(1, kept - 1)
        wanted = torch.from_numpy(self._uniform(draw)).to(mass)[:, None] * mass
        place = torch.minimum(torch.searchsorted(total, wanted, right=True), kept - 1)
        return order.gather(1, place)[:, 0]

    def _cut(self, probabilities: Tensor) -> Tensor:
        """Return probabilities, the largest first, without those that top_k and min_p leave out. [B, V]"""
        left = probabilities * (probabilities >= self.min_p * probabilities[:, :1])
        if self.top_k:
            left[:, self.top_k :] = 0
        return left / left.sum(-1, keepdim=True)

    def _uniform(self, draw: Draw) -> NDArray[np.float64]:
        """Return a number in [0, 1) for each draw. [B]"""
        state = np.full(len(draw.row), self.seed, dtype=np.uint64)
        for part in (draw.row, draw.t, draw.attempt):
            state = _mixed(state ^ part.astype(np.uint64))
        return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64 (Steele, Lea and Flood 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
