"""The cache of one text: keys and values that know their positions, to be cut, moved and fed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.kept import KeptCache
from kvguard.engine.surgery.rope import Rope
from kvguard.engine.surgery.sight import NOWHERE
from kvguard.errors import KvguardError

UNKNOWN = -1  # seen by every token


class Piece(NamedTuple):
    """One layer of a cache: keys and values [H, n, D], positions [1 or H, n]."""

    keys: Tensor
    values: Tensor
    positions: Tensor


@dataclass(frozen=True)
class DocumentCache:
    """What is kept of a text that was read.

    Parameters
    ----------
    keys, values : tuple of Tensor
        One per layer, [H, n, D]; layers may hold different numbers of entries.
    positions : tuple of Tensor
        One per layer, [1 or H, n] int64: the position that each key is rotated to; :data:`NOWHERE` where a
        head-wise press masks an entry, :data:`UNKNOWN` where a press does not tell what it kept.
    end : int
        The position of the token that comes next: no count of entries, of which a press may have removed
        some.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]
    end: int

    @classmethod
    def of(cls, layers: Sequence[Piece], end: int) -> DocumentCache:
        """Return the cache of these layers."""
        keys, values, positions = zip(*layers, strict=True)
        return cls(keys, values, positions, end)

    @property
    def lengths(self) -> list[int]:
        """Entries per layer, masked ones included."""
        return [keys.shape[1] for keys in self.keys]

    @property
    def n_entries(self) -> float:
        """Mean number of entries that are seen, over layers and heads."""
        seen = [int((p < NOWHERE).sum()) / p.shape[0] for p in self.positions]
        return sum(seen) / len(seen)

    def kept(self) -> KeptCache:
        """Return it as the batch engine holds caches; masked entries are its dead ones."""
        dead = [
            (p >= NOWHERE).expand(k.shape[:2]) if bool((p >= NOWHERE).any()) else None
            for p, k in zip(self.positions, self.keys, strict=True)
        ]
        masked = dead if any(d is not None for d in dead) else None
        return KeptCache(list(self.keys), list(self.values), dead=masked)


def select(cache: DocumentCache, indices: Tensor | Sequence[Tensor]) -> DocumentCache:
    """Keep only some entries, where they are; what comes next still comes at ``cache.end``.

    Parameters
    ----------
    indices : Tensor or sequence of Tensor
        [n] int64 for all layers, or one per layer: a sliding-window layer holds fewer entries and is selected
        by its own indices.

    Raises
    ------
    KvguardError
        If an index is out of a layer's range.
    """
    chosen = [indices] * len(cache.keys) if isinstance(indices, Tensor) else list(indices)
    if len(chosen) != len(cache.keys):
        raise KvguardError(
            f"select: {len(chosen)} sets of indices for {len(cache.keys)} layers: pass one for each, or one "
            "for all"
        )
    for layer, (index, length) in enumerate(zip(chosen, cache.lengths, strict=True)):
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < length):
            raise KvguardError(
                f"select: layer {layer} holds {length} entries, and index {int(index.max())} is asked for "
                f"(least {int(index.min())}): select layers that hold less by indices of their own"
            )
    picked = [index.to(keys.device) for index, keys in zip(chosen, cache.keys, strict=True)]
    return replace(
        cache,
        keys=tuple(k[:, i] for k, i in zip(cache.keys, picked, strict=True)),
        values=tuple(v[:, i] for v, i in zip(cache.values, picked, strict=True)),
        positions=tuple(p[:, i] for p, i in zip(cache.positions, picked, strict=True)),
    )


def reposition(
    model: PreTrainedModel, cache: DocumentCache, new: Sequence[Tensor], end: int
) -> DocumentCache:
    """Rotate the keys of a cache to other positions.

    Parameters
    ----------
    new : sequence of Tensor
        One per layer, [1 or H, n] int64, shaped like ``cache.positions``.
    end : int
        The position of what comes next.

    Raises
    ------
    KvguardError
        If the model's keys cannot be moved exactly, or a position is one that it has no fixed rotation for.
    """
    rope = Rope.of(model)
    rope.check(end, "reposition")
    if any(bool((p < 0).any()) for p in cache.positions):
        raise KvguardError(
            "reposition: a press kept entries without telling which, so that nobody knows where their keys "
            "stand; move before it compresses, or use a press that only scores"
        )
    keys = []
    for layer, (k, old, to) in enumerate(zip(cache.keys, cache.positions, new, strict=True)):
        nowhere = old >= NOWHERE
        move = rope.move(old.masked_fill(nowhere, 0), to.masked_fill(nowhere, 0), k)
        heads = (
            k[:, None] if len(old) == len(k) else k[None]
        )  # a head with positions of its own is a row of its own
        keys.append(move(layer, heads).reshape(k.shape))
    moved = [torch.where(old >= NOWHERE, old, to) for old, to in zip(cache.positions, new, strict=True)]
    return replace(cache, keys=tuple(keys), positions=tuple(moved), end=end)


def shift(model: PreTrainedModel, cache: DocumentCache, delta: int) -> DocumentCache:
    """Move a whole cache by ``delta`` positions, see :func:`reposition`."""
    return reposition(model, cache, [p + delta for p in cache.positions], cache.end + delta)
