"""A preallocated KV cache whose rows have their own lengths, per layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True)
class KeptCache:
    """What one condition keeps of one prompt's cache.

    Parameters
    ----------
    keys, values : list of Tensor
        One per layer, [H, T, D]: the full prefill cache (then shared by many conditions), or the press's own.
    indices : list of Tensor or None
        One per layer, [H, n]: the kept entries of ``keys`` in prompt order; None keeps them all.
    dead : list of (Tensor or None), or None
        One per layer, [H, T] bool: entries that a head-wise press masks out instead of removing.
    """

    keys: list[Tensor]
    values: list[Tensor]
    indices: list[Tensor] | None = None
    dead: list[Tensor | None] | None = None

    @property
    def lengths(self) -> list[int]:
        """Entries per layer (a head-masked entry still takes its place)."""
        return [t.shape[1] for t in (self.indices if self.indices is not None else self.keys)]

    @property
    def n_kept(self) -> float:
        """Mean number of live entries over layers and heads."""
        alive = [float(n) for n in self.lengths]
        for layer, dead in enumerate(self.dead or []):
            if dead is not None:
                alive[layer] -= dead.sum().item() / dead.shape[0]
        return sum(alive) / len(alive)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the kept keys and values of a layer, each [H, n, D]."""
        keys, values = self.keys[index], self.values[index]
        if self.indices is None:
            return keys, values
        picked = self.indices[index].long().unsqueeze(-1).expand(-1, -1, keys.shape[-1])
        return keys.gather(1, picked), values.gather(1, picked)


class RaggedLayer(CacheLayerMixin):
    """One layer's preallocated keys and values, [rows, H, capacity, D], filled from the left."""

    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.dead: Tensor | None = None  # [rows, H, capacity] bool, only where a press masks heads
        self.mask: Tensor | None = None  # additive, [n, 1 or H, 1, length], of the step under way
        self.slots: Tensor | None = None  # [n], where this step writes
        self.width = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage is allocated up front."""

    def update(
        self, key_states: Tensor, value_states: Tensor, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Append one token per active row: key and value [n, H, 1, D]; return the views to attend to."""
        n = key_states.shape[0]
        assert self.slots is not None
        rows = torch.arange(n, device=self.keys.device)
        self.keys[rows, :, self.slots] = key_states[:, :, 0]
        self.values[rows, :, self.slots] = value_states[:, :, 0]
        return self.keys[:n, :, : self.width], self.values[:n, :, : self.width]

    def get_mask_sizes(self, cache_position: Tensor) -> tuple[int, int]:
        """Width and offset of the keys attended to (unused: the mask comes from the cache)."""
        return self.width, 0

    def get_seq_length(self) -> int:
        """Longest row of the step under way."""
        return self.width

    def get_max_cache_shape(self) -> int:
        """Capacity in tokens."""
        return self.keys.shape[2]


class RaggedCache(Cache):
    """Preallocated keys and values for a batch of rows; every (layer, row) has a length of its own.

    Rows are loaded, moved, truncated and evicted from independently; the first ``n`` rows take part in a
    step. The step is ``begin(n)``, one model forward, ``advance(n)``.

    Parameters
    ----------
    n_layers, rows, capacity, n_heads, head_dim : int
        ``n_heads`` counts KV heads; ``capacity`` is in tokens.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment]

    def __init__(
        self,
        n_layers: int,
        rows: int,
        capacity: int,
        n_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (rows, n_heads, capacity, head_dim)
        super().__init__(
            layers=[
                RaggedLayer(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
                for _ in range(n_layers)
            ]
        )
        self.lengths = torch.zeros(n_layers, rows, dtype=torch.long)  # on the host: the one truth
        self.device = torch.device(device)

    @staticmethod
    def bytes_per_row(n_layers: int, capacity: int, n_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Memory that one row takes, in bytes."""
        return 2 * n_layers * capacity * n_heads * head_dim * dtype.itemsize

    def load(self, row: int, kept: KeptCache) -> None:
        """Replace a row by what a condition kept of a prompt."""
        for index, layer in enumerate(self.layers):
            keys, values = kept.layer(index)
            n = keys.shape[1]
            layer.keys[row, :, :n] = keys
            layer.values[row, :, :n] = values
            self.lengths[index, row] = n
            dead = kept.dead[index] if kept.dead is not None else None
            if dead is not None and layer.dead is None:
                layer.dead = torch.zeros(layer.keys.shape[:3], dtype=torch.bool, device=self.device)
            if layer.dead is not None:
                layer.dead[row] = False
                if dead is not None:
                    layer.dead[row, :, :n] = dead

    def move(self, source: int, target: int) -> None:
        """Copy row ``source`` over row ``target``."""
        for index, layer in enumerate(self.layers):
            n = int(self.lengths[index, source])
            layer.keys[target, :, :n] = layer.keys[source, :, :n]
            layer.values[target, :, :n] = layer.values[source, :, :n]
            if layer.dead is not None:
                layer.dead[target] = layer.dead[source]
        self.lengths[:, target] = self.lengths[:, source]

    def truncate(self, row: int, n_tokens: int) -> None:
        """Rewind a row by its last ``n_tokens`` tokens, in every layer."""
        if n_tokens < 0 or n_tokens > int(self.lengths[:, row].min()):
            raise ValueError(f"row {row} cannot be rewound by {n_tokens} tokens")
        self.lengths[:, row] -= n_tokens
        for index, layer in enumerate(self.layers):
            if layer.dead is not None:
                layer.dead[row, :, int(self.lengths[index, row]) :] = False

    def evict(self, row: int, index: int, keep: Tensor) -> None:
        """Keep only some entries of a row in one layer.

        Parameters
        ----------
        row, index : int
            The row and the layer.
        keep : Tensor
            [H, m] indices of the entries to keep, ascending, every head with its own choice.
        """
        layer, m = self.layers[index], keep.shape[1]
        picked = keep.unsqueeze(-1).expand(-1, -1, layer.keys.shape[-1])
        layer.keys[row, :, :m] = layer.keys[row].gather(1, picked)
        layer.values[row, :, :m] = layer.values[row].gather(1, picked)
        if layer.dead is not None:
            alive = layer.dead[row].gather(1, keep)
            layer.dead[row] = False
            layer.dead[row, :, :m] = alive
        self.lengths[index, row] = m

    def begin(self, n: int) -> None:
        """Prepare a step of the first ``n`` rows: where each layer writes, and what it may attend to."""
        shared: dict[bytes, tuple[Tensor, Tensor, int]] = {}
        for index, layer in enumerate(self.layers):
            lengths = self.lengths[index, :n]
            token = lengths.numpy().tobytes()
            if token not in shared:
                slots = lengths.to(self.device, non_blocking=True)
                width = int(lengths.max()) + 1
                beyond = torch.arange(width, device=self.device) > slots[:, None]
                mask = torch.zeros(beyond.shape, dtype=layer.keys.dtype, device=self.device)
                shared[token] = slots, mask.masked_fill_(beyond, float("-inf"))[:, None, None], width
            layer.slots, layer.mask, layer.width = shared[token]
            if layer.dead is not None:
                dead = layer.dead[:n, :, None, : layer.width]
                layer.mask = layer.mask.expand(dead.shape).masked_fill(dead, float("-inf"))

    def advance(self, n: int) -> None:
        """Count the token that the step appended to each of the first ``n`` rows."""
        self.lengths[:, :n] += 1
