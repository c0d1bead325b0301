"""A preallocated KV cache whose rows have their own lengths, per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

# What one more call of an attention kernel costs, in the bytes of keys and values it could have read instead.
_CALL = {"cpu": 1 << 17}
_CALL_ELSEWHERE = 1 << 25
_CHECKED = 8  # steps between two looks at the order of the rows


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
        """Return the kept keys and values of a layer in prompt order, each [H, n, D]."""
        keys, values = self.keys[index], self.values[index]
        if self.indices is None:
            return keys, values
        ordered = self.indices[index].long().sort(dim=-1).values
        picked = ordered.unsqueeze(-1).expand(-1, -1, keys.shape[-1])
        return keys.gather(1, picked), values.gather(1, picked)


class Segment(NamedTuple):
    """Neighbouring rows of a step, ``first`` to ``last``, that attend to their first ``width`` entries.

    The mask is additive, [last - first, 1 or H, 1, width].
    """

    first: int
    last: int
    width: int
    mask: Tensor


class Layout(NamedTuple):
    """How the rows of a step attend, in numbers of the host: what a recorded step cannot change.

    Parameters
    ----------
    rows : int
        Rows of the step.
    like : tuple of int
        For each layer the first one with the same lengths and window: they share places and mask.
    parts : dict
        For those first layers the (first, last, width) of rows that attend together.
    masked : tuple of bool
        For each layer whether a press masks heads in it.
    """

    rows: int
    like: tuple[int, ...]
    parts: dict[int, list[tuple[int, int, int]]]
    masked: tuple[bool, ...]


class RaggedLayer(CacheLayerMixin):
    """One layer's preallocated keys and values, [rows, H, capacity, D], filled from the left."""

    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.window: int | None = None  # tokens that a sliding-window layer attends to, the newest included
        self.dead: Tensor | None = None  # [rows, H, capacity] bool, only where a press masks heads
        self.segments: list[Segment] = []  # of the step under way
        self.places: Tensor | None = None  # [n * H], where this step writes, in the storage as [..., D]
        self.width = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage is allocated up front."""

    def update(
        self, key_states: Tensor, value_states: Tensor, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Append one token per active row: key and value [n, H, 1, D]; return the views to attend to."""
        n, dim = key_states.shape[0], key_states.shape[3]
        assert self.places is not None
        self.keys.view(-1, dim).index_copy_(0, self.places, key_states.reshape(-1, dim))
        self.values.view(-1, dim).index_copy_(0, self.places, value_states.reshape(-1, dim))
        return self.keys[:n, :, : self.width], self.values[:n, :, : self.width]

    def get_mask_sizes(self, cache_position: Tensor) -> tuple[int, int]:
        """Width and offset of the keys attended to (unused: the masks come from the cache)."""
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
        windows: Sequence[int | None] | None = None,
    ) -> None:
        shape = (rows, n_heads, capacity, head_dim)
        super().__init__(
            layers=[
                RaggedLayer(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
                for _ in range(n_layers)
            ]
        )
        for layer, window in zip(self.layers, windows or [None] * n_layers, strict=True):
            layer.window = window
        self._most = np.array([[(layer.window or capacity + 1) - 1] for layer in self.layers])  # attended to
        self.lengths = torch.zeros(n_layers, rows, dtype=torch.long)  # on the host: the one truth
        self.device = torch.device(device)
        entry = 2 * n_heads * head_dim * dtype.itemsize
        self._call = _CALL.get(self.device.type, _CALL_ELSEWHERE) // entry  # what a call costs, in entries
        self._steps, self._wasted = 0, 0  # entries that a layer read in vain since rows were last moved

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

    def tail(self, row: int, start: int) -> list[tuple[Tensor, Tensor]]:
        """Copy the keys and values of a row from entry ``start`` on, each [H, m, D], layer by layer.

        Of a sliding-window layer everything: it is never compressed, and its entries are the last ones.
        """
        tail = []
        for layer, end in zip(self.layers, self.lengths[:, row].tolist(), strict=True):
            begin = start if layer.window is None else 0
            tail.append((layer.keys[row, :, begin:end].clone(), layer.values[row, :, begin:end].clone()))
        return tail

    def extend(self, row: int, tail: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Append a tail to a row; that of a sliding-window layer takes the place of what it holds."""
        for index, (layer, (keys, values)) in enumerate(zip(self.layers, tail, strict=True)):
            begin = int(self.lengths[index, row]) if layer.window is None else 0
            end = begin + keys.shape[1]
            layer.keys[row, :, begin:end] = keys
            layer.values[row, :, begin:end] = values
            self.lengths[index, row] = end

    def live(self, n: int) -> NDArray[np.float64]:
        """Return the entries that each row attends to, a mean over layers and heads. [n]"""
        lengths = np.minimum(self.lengths[:, :n].numpy(), self._most)
        total = np.add.reduce(lengths, axis=0, dtype=np.float64)
        for layer in self.layers:
            if layer.dead is not None:
                total -= layer.dead[:n].sum(dim=(1, 2)).cpu().numpy() / layer.dead.shape[1]
        return total / len(self.layers)

    def move(self, source: int, target: int) -> None:
        """Copy row ``source`` over row ``target``."""
        for index, layer in enumerate(self.layers):
            n = int(self.lengths[index, source])
            layer.keys[target, :, :n] = layer.keys[source, :, :n]
            layer.values[target, :, :n] = layer.values[source, :, :n]
            if layer.dead is not None:
                layer.dead[target] = layer.dead[source]
        self.lengths[:, target] = self.lengths[:, source]

    def erase(self, row: int) -> None:
        """Leave nothing in a row: a mask does not keep NaN in its storage from those that come after."""
        for layer in self.layers:
            layer.keys[row] = 0
            layer.values[row] = 0
        self.lengths[:, row] = 0

    def truncate(self, row: int, n_tokens: int) -> None:
        """Rewind a row by its last ``n_tokens`` tokens, in every layer."""
        if n_tokens < 0 or n_tokens > int(self.lengths[:, row].min()):
            raise ValueError(f"row {row} cannot be rewound by {n_tokens} tokens")
        self.lengths[:, row] -= n_tokens
        for index, layer in enumerate(self.layers):
            if layer.dead is not None:
                layer.dead[row, :, int(self.lengths[index, row]) :] = False

    def evict(self, rows: NDArray[np.int64], index: int, keep: Tensor, lengths: NDArray[np.int64]) -> None:
        """Keep only some entries of some rows in one layer.

        Parameters
        ----------
        rows, index
            The rows [R], and the layer.
        keep : Tensor
            [R, H or 1, m] indices of the entries to keep, in their new order; a head may have its own choice.
        lengths : ndarray
            [R], how many of the m count in a row.
        """
        layer = self.layers[index]
        n_heads, capacity = layer.keys.shape[1:3]
        where = torch.from_numpy(rows).to(self.device)
        first = (where[:, None] * n_heads + torch.arange(n_heads, device=self.device)) * capacity  # [R, H]
        flat = first[:, :, None] + keep
        for store in (layer.keys, layer.values):  # whole entries of a flat view: faster than a gather
            picked = store.view(-1, store.shape[-1]).index_select(0, flat.flatten())
            store[where, :, : keep.shape[2]] = picked.view(*flat.shape, -1)
        if layer.dead is not None:
            dead = layer.dead.view(-1)[flat]
            layer.dead[where] = False
            layer.dead[where, :, : keep.shape[2]] = dead
        self.lengths[index, rows] = torch.from_numpy(lengths)

    def arrange(self, n: int) -> NDArray[np.int64] | None:
        """Bring rows of like length together, once their disorder has cost what moving them costs.

        Only rows that would attend among longer or shorter ones are moved.

        Returns
        -------
        ndarray or None
            [n]: row i is now the one that was row ``order[i]``; None if none was moved.
        """
        self._steps += 1
        if self._steps % _CHECKED:
            return None
        lengths = self.lengths[:, :n].sum(dim=0).numpy() // len(self.layers)
        ranked = np.argsort(-lengths, kind="stable")
        ideal = _cut(lengths[ranked].tolist(), self._call)
        wasted = _read(_cut(lengths.tolist(), self._call), self._call) - _read(ideal, self._call)
        self._wasted += _CHECKED * wasted
        here = np.repeat(np.arange(len(ideal)), [last - first for first, last, _ in ideal])  # [n], by place
        wanted = np.empty(n, dtype=np.int64)
        wanted[ranked] = here
        astray = np.flatnonzero(wanted != here)
        if not len(astray) or self._wasted <= 2 * lengths[astray].sum():
            return None
        self._wasted = 0
        order = np.arange(n)
        source = astray[np.argsort(wanted[astray], kind="stable")]
        target = astray[np.argsort(here[astray], kind="stable")]
        order[target] = source
        self._permute(torch.from_numpy(source), torch.from_numpy(target))
        return order

    def _permute(self, source: Tensor, target: Tensor) -> None:
        """Move rows ``source`` to ``target``, the same rows in another order."""
        self.lengths[:, target] = self.lengths[:, source]
        widths = self.lengths[:, target].amax(dim=1).tolist()
        source, target = source.to(self.device), target.to(self.device)
        for layer, width in zip(self.layers, widths, strict=True):
            for store in (layer.keys[:, :, :width], layer.values[:, :, :width]):
                store.index_copy_(0, target, store.index_select(0, source))
            if layer.dead is not None:
                layer.dead[target] = layer.dead[source]

    def begin(self, n: int) -> None:
        """Prepare a step of the first ``n`` rows: where each layer writes, and what it may attend to."""
        self.lay_out(self.layout(n), self.lengths[:, :n].to(self.device, non_blocking=True))

    def layout(self, n: int, room: int = 1) -> Layout:
        """Cut the first ``n`` rows into neighbours that attend together, with room for ``room`` tokens."""
        first: dict[bytes, int] = {}
        like = []
        for index, layer in enumerate(self.layers):
            token = self.lengths[index, :n].numpy().tobytes() + str(layer.window).encode()
            like.append(first.setdefault(token, index))
        most = max(self.layers[0].keys.shape[2], int(self.lengths[:, :n].max()) + 1)
        parts = {
            index: _cut((self.lengths[index, :n] + room).clamp_(max=most).tolist(), self._call)
            for index in first.values()
        }
        return Layout(n, tuple(like), parts, self._masked())

    def fits(self, layout: Layout, n: int) -> bool:
        """Tell whether a layout still serves a step of the first ``n`` rows."""
        lengths = self.lengths[:, :n].numpy()
        for index, parts in layout.parts.items():
            widths = np.repeat([width for *_, width in parts], [last - first for first, last, _ in parts])
            if n > layout.rows or (lengths[index] >= widths[:n]).any():
                return False
        return np.array_equal(lengths, lengths[list(layout.like)]) and layout.masked == self._masked()

    def _masked(self) -> tuple[bool, ...]:
        return tuple(layer.dead is not None for layer in self.layers)

    def lay_out(self, layout: Layout, lengths: Tensor) -> None:
        """Prepare a step of rows that have these lengths [L, rows], which the host does not read."""
        shared: dict[int, tuple[Tensor, Tensor, list[Segment]]] = {}
        for index, (layer, like) in enumerate(zip(self.layers, layout.like, strict=True)):
            if like == index:
                shared[index] = self._plan(layer, lengths[index], layout.parts[index])
            layer.places, mask, layer.segments = shared[like]
            layer.width = mask.shape[3]
            if layer.dead is not None:
                # The entry being written is nobody's yet: what a left row had there masks nothing.
                old = torch.arange(layer.width, device=self.device) < lengths[index][:, None]
                dead = layer.dead[: layout.rows, :, None, : layer.width] & old[:, None, None]
                mask = mask.expand(dead.shape).masked_fill(dead, float("-inf"))
                layer.segments = _segments([segment[:3] for segment in layer.segments], mask)

    def _plan(
        self, layer: RaggedLayer, slots: Tensor, parts: Sequence[tuple[int, int, int]]
    ) -> tuple[Tensor, Tensor, list[Segment]]:
        """Return where rows of lengths ``slots`` write [n * H], their mask [n, 1, 1, W], their segments."""
        n_heads, capacity = layer.keys.shape[1:3]
        heads = torch.arange(len(slots) * n_heads, device=self.device).view(-1, n_heads)
        places = (heads * capacity + slots[:, None]).flatten()
        width = max(width for _, _, width in parts)
        entry = torch.arange(width, device=self.device)
        beyond = entry > slots[:, None]
        if layer.window is not None:
            beyond |= entry <= slots[:, None] - layer.window
        mask = torch.zeros(beyond.shape, dtype=layer.keys.dtype, device=self.device)
        mask = mask.masked_fill_(beyond, float("-inf"))[:, None, None]
        return places, mask, _segments(parts, mask)

    def advance(self, n: int) -> None:
        """Count the token that the step appended to each of the first ``n`` rows."""
        self.lengths[:, :n] += 1


def _cut(lengths: Sequence[int], call: int) -> list[tuple[int, int, int]]:
    """Cut rows into neighbours that attend in one call: (first, last, width) of each.

    A row that would make its segment read more padding than a further ``call`` is worth begins the next one.
    """
    parts, first, width, total = [], 0, 0, 0
    for row, length in enumerate(lengths):
        wider = max(width, length)
        if row > first and wider * (row - first + 1) - total - length > call:
            parts.append((first, row, width))
            first, wider, total = row, length, 0
        width, total = wider, total + length
    return [*parts, (first, len(lengths), width)]


def _segments(parts: Sequence[tuple[int, int, int]], mask: Tensor) -> list[Segment]:
    return [Segment(first, last, width, mask[first:last, :, :, :width]) for first, last, width in parts]


def _read(parts: Sequence[tuple[int, int, int]], call: int) -> int:
    """Return what attending in these parts costs, in entries."""
    return sum((last - first) * width + call for first, last, width in parts)
