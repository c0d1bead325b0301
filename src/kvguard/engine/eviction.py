"""Which entries a budget keeps, from their scores, their positions and what is exempt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

_FAR = 1 << 32  # beyond any position


def flags_of(exempt: Sequence[Ints | None], n_positions: int, device: torch.device) -> Tensor | None:
    """Mark exempt positions. [g, n_positions] bool, or None if there are none"""
    if all(positions is None or not len(positions) for positions in exempt):
        return None
    flags = np.zeros((len(exempt), n_positions), dtype=bool)
    for flag, positions in zip(flags, exempt, strict=True):
        if positions is not None:
            flag[positions[positions < n_positions]] = True
    return torch.from_numpy(flags).to(device)


def best(scores: Tensor, n: int, positions: Tensor, flags: Tensor | None) -> Tensor:
    """Pick the n best entries, exempt ones first, the most recent of those first. [g, H, L] -> [g, H, n]"""
    best = scores.topk(n, dim=-1).indices
    if flags is None:
        return best
    exempt = flags[:, None].expand(-1, positions.shape[1], -1).gather(2, positions)
    ranks = scores.argsort(dim=-1).argsort(dim=-1)
    displaced = torch.where(exempt, positions + ranks.shape[-1], ranks).topk(n, dim=-1).indices
    # A row alone, not its group.
    return torch.where(exempt.flatten(1).any(dim=1)[:, None, None], displaced, best)


def window_of(positions: Tensor, ends: Tensor, n_sink: int, flags: Tensor | None) -> Tensor:
    """Pick exempt entries, then sinks, then the most recent ones, in order of position.

    Parameters
    ----------
    positions : Tensor
        [g, W], of each row's entries, ascending.
    ends : Tensor
        [2, g]: how many entries a row has, and how many it keeps.

    Returns
    -------
    Tensor
        [g, m], m the most that any row keeps; what stands beyond a row's own number does not count.
    """
    columns = torch.arange(positions.shape[1], device=positions.device)
    worth = torch.where(positions < n_sink, 2 * _FAR - positions, positions)
    if flags is not None:
        worth = torch.where(
            flags.gather(1, positions.clamp(max=flags.shape[1] - 1)), 2 * _FAR + positions, worth
        )
    worth = torch.where(columns < ends[0, :, None], worth, -1)
    keep = worth.topk(int(ends[1].max()), dim=-1).indices
    keep = torch.where(
        columns[: keep.shape[1]] < ends[1, :, None], keep, len(columns)
    )  # those sort to the end
    return keep.sort(dim=-1).values.clamp(max=len(columns) - 1)
