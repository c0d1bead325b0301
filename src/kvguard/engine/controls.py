"""Presses of ours, to hold others against: both ends of a prompt, and chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from kvpress import RandomPress, ScorerPress
from kvpress.utils import compute_n_kept
from torch import Tensor, nn


@dataclass
class KeepEndsPress(ScorerPress):
    """Keep the first entries and the most recent ones, as StreamingLLM does (arXiv 2309.17453).

    Unlike kvpress's class the scores fall towards the middle, so that what is kept under a smaller budget
    still is both ends of the prompt, in the same proportion.

    Parameters
    ----------
    compression_ratio : float
    initial : int or float
        How many of the kept entries are the first ones: tokens, or a share of the budget.
    """

    compression_ratio: float = 0.0
    initial: int | float = 0.5

    def score(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Return how near an entry is to its end of the prompt, in units of what is kept there. [B, H, T]"""
        first, last = self.ends(keys.shape[2])
        from_start = torch.arange(keys.shape[2], device=keys.device, dtype=torch.float32) + 0.5
        distance = torch.minimum(from_start / first, from_start.flip(0) / last)
        return -distance.expand(keys.shape[:3])

    def ends(self, length: int) -> tuple[int, int]:
        """Return how many of the first and of the last entries are kept of ``length``."""
        n_kept = compute_n_kept(length, self.compression_ratio)
        share = self.initial if isinstance(self.initial, int) else round(self.initial * n_kept)
        first = min(share, n_kept)
        return first, n_kept - first


@dataclass
class LayerwiseRandomPress(RandomPress):
    """Evict at random, with a draw of its own for every layer and head.

    kvpress's class draws the same numbers in every layer, so that it takes the same tokens from all of them.

    Parameters
    ----------
    compression_ratio : float
    seed : int
    """

    seed: int = 0

    def score(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Return uniform numbers. [B, H, T]"""
        generator = torch.Generator().manual_seed(hash((self.seed, module.layer_idx)) & (2**63 - 1))
        return torch.rand(*keys.shape[:3], generator=generator).to(keys.device)
