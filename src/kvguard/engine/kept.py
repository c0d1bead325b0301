"""What a condition keeps of a prompt's cache, and in which form it waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

Key = TypeVar("Key")


@dataclass(frozen=True)
class KeptCache:
    """What one condition keeps of one prompt's cache.

    Parameters
    ----------
    keys, values : list of Tensor
        One per layer, [H, T, D]: the full prefill cache (then shared by many conditions), or the press's own.
    indices : list of Tensor or None
        One per layer, [H, n]: the kept entries of ``keys``, best score first; None keeps them all.
    dead : list of (Tensor or None), or None
        One per layer, [H, T] bool: entries that a head-wise press masks out instead of removing.
    ranked : list of Tensor or None
        Once the kept entries were gathered: the ``indices`` they had in the prompt, best score first.
    """

    keys: list[Tensor]
    values: list[Tensor]
    indices: list[Tensor] | None = None
    dead: list[Tensor | None] | None = None
    ranked: list[Tensor] | None = field(default=None, repr=False)

    @property
    def lengths(self) -> list[int]:
        """Entries per layer (a head-masked entry still takes its place)."""
        return [t.shape[1] for t in (self.indices if self.indices is not None else self.keys)]

    @property
    def live(self) -> list[float]:
        """Entries per layer that are not masked out, a mean over its heads."""
        alive = [float(n) for n in self.lengths]
        for layer, dead in enumerate(self.dead or []):
            if dead is not None:
                alive[layer] -= dead.sum().item() / dead.shape[0]
        return alive

    @property
    def n_kept(self) -> float:
        """Mean number of live entries over layers and heads."""
        return sum(self.live) / len(self.lengths)

    @property
    def positions(self) -> list[Tensor] | None:
        """Where in the prompt the kept entries stood, best score first, per layer [H, n]; None if unknown."""
        return self.indices if self.indices is not None else self.ranked

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the kept keys and values of a layer in prompt order, each [H, n, D]."""
        keys, values = self.keys[index], self.values[index]
        if self.indices is None:
            return keys, values
        ordered = self.indices[index].long().sort(dim=-1).values
        picked = ordered.unsqueeze(-1).expand(-1, -1, keys.shape[-1])
        return keys.gather(1, picked), values.gather(1, picked)

    def gathered(self) -> KeptCache:
        """Return the same entries in tensors of their own, so that the full cache can be let go."""
        if self.indices is None:
            return self
        layers = [self.layer(index) for index in range(len(self.keys))]
        return KeptCache([k for k, _ in layers], [v for _, v in layers], None, self.dead, self.indices)


def smaller_form(kept: Mapping[Key, KeptCache]) -> dict[Key, KeptCache]:
    """Return the caches of one prompt, gathered where that takes less than the full cache they share."""
    sharing = {name: cache for name, cache in kept.items() if cache.indices is not None}
    if not sharing:
        return dict(kept)
    full = next(iter(sharing.values())).keys
    gathered = sum(sum(cache.lengths) for cache in sharing.values())
    if gathered >= sum(keys.shape[1] for keys in full) or any(
        cache.indices is None and cache.keys is full for cache in kept.values()
    ):
        return dict(kept)
    return {name: cache.gathered() for name, cache in kept.items()}
