"""Shelves: rows of like length stand together, attend in one call and take no more than they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

Ints = NDArray[np.int64]

LEAST = 32  # tokens: a shelf grows by no fewer, and rows no further apart share one
_SHARE = 8  # a shelf grows by this part of itself


class Segment(NamedTuple):
    """A shelf's rows in a step: ``first`` to ``last``, which attend to their first ``width`` entries.

    ``keys`` and ``values`` are the shelf's, [rows, H, capacity, D]; ``places`` [(last - first) * H] are the
    entries that the step writes; the mask is additive, [last - first, 1 or H, 1, width].
    """

    first: int
    last: int
    width: int
    mask: Tensor
    places: Tensor
    keys: Tensor
    values: Tensor


class Layout(NamedTuple):
    """How the rows of a step attend, in numbers of the host: what a recorded step cannot change.

    Parameters
    ----------
    first : tuple of int
        The first row of each shelf in the step, and at last the number of rows.
    widths : ndarray
        [shelves, L], entries that a shelf's rows attend to.
    like : tuple of int
        For each layer the first one with the same lengths, window and shape: they share places and mask.
    begins : dict
        For those first layers where in the flat storage each row's heads begin, [rows, H].
    masked : tuple of bool
        For each shelf and layer whether a press masks heads in it.
    storage : int
        The storage it was made for, see :attr:`Placement.storage`.
    """

    first: tuple[int, ...]
    widths: Ints
    like: tuple[int, ...]
    begins: dict[int, Tensor]
    masked: tuple[bool, ...]
    storage: int

    @property
    def rows(self) -> int:
        """Rows of the step."""
        return self.first[-1]


class Shelf:
    """Rows of like length: in every layer keys and values [rows, H, capacity, D], filled from the left.

    Attributes
    ----------
    n : int
        Rows held, in the first places.
    dead : list of (Tensor or None)
        [rows, H, capacity] bool per layer, only where a press masks heads.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.n = 0
        self.keys = [t.new_empty((0, t.shape[0], 0, t.shape[2])) for t in like]
        self.values = [t.new_empty((0, t.shape[0], 0, t.shape[2])) for t in like]
        self.dead: list[Tensor | None] = [None] * len(like)

    @property
    def rows(self) -> int:
        """Places."""
        return len(self.keys[0])

    @property
    def capacities(self) -> Ints:
        """Entries that a row has room for, per layer. [L]"""
        return np.array([keys.shape[2] for keys in self.keys], dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and masks."""
        stores = [*self.keys, *self.values, *(dead for dead in self.dead if dead is not None)]
        return sum(store.nbytes for store in stores)

    def resize(self, rows: int, capacities: Ints) -> None:
        """Give the shelf that many places and entries; one layer at a time, so that little stands twice."""
        for index, capacity in enumerate(capacities.tolist()):
            for stores in (self.keys, self.values, self.dead):
                old = stores[index]
                if old is not None and (len(old), old.shape[2]) != (rows, capacity):
                    n, held = min(self.n, rows, len(old)), min(old.shape[2], capacity)
                    stores[index] = new = old.new_zeros((rows, old.shape[1], capacity, *old.shape[3:]))
                    new[:n, :, :held] = old[:n, :, :held]

    def copy(self, target: int, source: Shelf, place: int, lengths: Sequence[int]) -> None:
        """Copy a row of ``source`` over the row ``target``."""
        for index, n in enumerate(lengths):
            self.keys[index][target, :, :n] = source.keys[index][place, :, :n]
            self.values[index][target, :, :n] = source.values[index][place, :, :n]
            masked = source.dead[index]
            self.mask(index, target, None if masked is None else masked[place, :, :n])

    def mask(self, index: int, place: int, dead: Tensor | None) -> None:
        """Mask the entries ``dead`` [H, n] of a row in one layer, and no others."""
        store = self.dead[index]
        if store is None and dead is not None and dead.any():
            keys = self.keys[index]
            store = self.dead[index] = torch.zeros(keys.shape[:3], dtype=torch.bool, device=keys.device)
        if store is not None:
            store[place] = False
            if dead is not None:
                store[place, :, : dead.shape[1]] = dead

    def segment(
        self,
        index: int,
        rows: tuple[int, ...],
        width: int,
        mask: Tensor,
        places: Tensor,
        lengths: Tensor,
    ) -> Segment:
        """Return the segment of a layer, from the mask, places and lengths of the rows of all shelves."""
        (first, last), n_heads, width = rows, self.keys[index].shape[1], int(width)
        mask, dead = mask[first:last, :, :, :width], self.dead[index]
        if dead is not None:
            # The entry being written is nobody's yet: what a left row had there masks nothing.
            old = torch.arange(width, device=dead.device) < lengths[first:last, None]
            hidden = dead[: last - first, :, None, :width] & old[:, None, None]
            mask = mask.expand(hidden.shape).masked_fill(hidden, float("-inf"))
        written = places[first * n_heads : last * n_heads]
        return Segment(first, last, width, mask, written, self.keys[index], self.values[index])


class RaggedLayer(CacheLayerMixin):
    """One layer of a :class:`RaggedCache` as the model sees it during a step."""

    is_compileable = False

    def __init__(self, window: int | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_initialized, self.dtype = True, dtype
        self.window = window  # tokens that a sliding-window layer attends to, the newest included
        self.segments: list[Segment] = []  # of the step under way

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the shelves are allocated as rows come."""

    def update(
        self, key_states: Tensor, value_states: Tensor, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Append one token per row: key and value [n, H, 1, D]; the attention reads the segments."""
        dim = key_states.shape[3]
        for first, last, _, _, places, keys, values in self.segments:
            keys.view(-1, dim).index_copy_(0, places, key_states[first:last].reshape(-1, dim))
            values.view(-1, dim).index_copy_(0, places, value_states[first:last].reshape(-1, dim))
        return key_states, value_states

    def get_mask_sizes(self, cache_position: Tensor) -> tuple[int, int]:
        """Width and offset of the keys attended to (unused: the masks come from the cache)."""
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        """Longest row of the step under way."""
        return max((segment.width for segment in self.segments), default=0)

    def get_max_cache_shape(self) -> int:
        """No bound."""
        return -1

    def mask(self, lengths: Tensor, width: int) -> Tensor:
        """Return the additive mask of rows that write one entry more, [rows, 1, 1, width]."""
        entry = torch.arange(width, device=lengths.device)
        beyond = entry > lengths[:, None]
        if self.window is not None:
            beyond |= entry <= lengths[:, None] - self.window
        mask = torch.zeros(beyond.shape, dtype=self.dtype, device=lengths.device)
        return mask.masked_fill_(beyond, float("-inf"))[:, None, None]


def apart(longest: Ints) -> Ints:
    """Return how far apart the lengths of rows on one shelf may be, and by how much it grows."""
    return np.maximum(LEAST, longest // _SHARE)
