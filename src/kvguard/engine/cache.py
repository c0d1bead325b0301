"""A KV cache whose rows have their own lengths, per layer, and take no more than they hold.

Rows of like length stand together on a *shelf*: in every layer keys and values of one shape, so that they
attend in one call. Which row stands on which is a matter of :mod:`kvguard.engine.placement`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache

from kvguard.engine.kept import KeptCache
from kvguard.engine.placement import Placement
from kvguard.engine.shelves import Layout, RaggedLayer

Ints = NDArray[np.int64]


class RaggedCache(Cache):
    """Keys and values of rows under way; every (layer, row) has a length of its own.

    Rows are numbered by slot, 0 to n - 1. They are added, dropped, loaded and evicted from independently. A
    step is ``order()`` (slots as rows stand on the shelves), ``begin()``, one model forward, ``advance()``.

    Parameters
    ----------
    like : sequence of Tensor
        One per layer, [H, any, D], of the keys' type and on their device.

    Attributes
    ----------
    placement : Placement
        Where each row stands.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment]

    def __init__(self, like: Sequence[Tensor], windows: Sequence[int | None] | None = None) -> None:
        super().__init__(layers=[RaggedLayer(w, like[0].dtype) for w in windows or [None] * len(like)])
        self._like = [keys[:, :0].clone() for keys in like]
        self.device, self.n_heads = like[0].device, like[0].shape[0]
        self._most = np.array([[(layer.window or 1 << 62) - 1] for layer in self.layers])  # attended to
        self.placement = Placement(self._like)

    @staticmethod
    def bytes_per_row(n_layers: int, capacity: int, n_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Memory that one row of ``capacity`` tokens takes, in bytes."""
        return 2 * n_layers * capacity * n_heads * head_dim * dtype.itemsize

    @property
    def n(self) -> int:
        """Rows."""
        return self.placement.n

    @property
    def lengths(self) -> Tensor:
        """Entries of each row in each layer, [L, n], on the host."""
        return self.placement.lengths

    @property
    def none(self) -> list[Tensor]:
        """Keys of no entry, one per layer, [H, 0, D]."""
        return self._like

    @property
    def nbytes(self) -> int:
        """Bytes that all shelves take."""
        return self.placement.nbytes

    def add(self, rows: Sequence[KeptCache]) -> None:
        """Add rows, at the end of the slots, that hold what conditions kept of their prompts."""
        for kept in rows:  # first all their places, so that a shelf is allocated once
            self.placement.append(np.array(kept.lengths))
        self.placement.allocate()
        for slot, kept in enumerate(rows, start=self.n - len(rows)):
            self._fill(slot, kept)

    def load(self, slot: int, kept: KeptCache, tail: Sequence[tuple[Tensor, Tensor]] | None = None) -> None:
        """Replace a row by what a condition kept of a prompt, and a tail of it.

        A tail's keys and values are [H, m, D] per layer; that of a sliding-window layer replaces it whole.
        """
        lengths = np.array(kept.lengths)
        for index, (keys, _) in enumerate(tail or []):
            whole = self.layers[index].window is not None
            lengths[index] = keys.shape[1] + (0 if whole else lengths[index])
        self.placement.replace(slot, lengths)
        self._fill(slot, kept)
        shelf, place = self.placement.of(slot)
        for index, (keys, values) in enumerate(tail or []):
            end = int(lengths[index])
            shelf.keys[index][place, :, end - keys.shape[1] : end] = keys
            shelf.values[index][place, :, end - keys.shape[1] : end] = values
        self.placement.shrink()

    def read(self, index: int, slot: int) -> tuple[Tensor, Tensor]:
        """Return views of a row's keys and values in one layer, each [H, n, D]."""
        (shelf, place), n = self.placement.of(slot), int(self.lengths[index, slot])
        return shelf.keys[index][place, :, :n], shelf.values[index][place, :, :n]

    def gather(self, index: int, slots: Ints, length: int) -> tuple[Tensor, Tensor]:
        """Copy the first ``length`` entries of rows in one layer: keys and values, each [R, H, length, D]."""
        return _stacked([[store[:, :length] for store in self.read(index, slot)] for slot in slots.tolist()])

    def dead(self, index: int, slot: int) -> Tensor | None:
        """Return which entries of a row a press masks in one layer, [H, n] bool, if any can be."""
        shelf, place = self.placement.of(slot)
        store = shelf.dead[index]
        return None if store is None else store[place, :, : int(self.lengths[index, slot])]

    def tail(self, slot: int, start: int) -> list[tuple[Tensor, Tensor]]:
        """Copy the keys and values of a row from entry ``start`` on, each [H, m, D], layer by layer.

        Of a sliding-window layer everything: it is never compressed, and its entries are the last ones.
        """
        tail = []
        for index, layer in enumerate(self.layers):
            begin = start if layer.window is None else 0
            keys, values = self.read(index, slot)
            tail.append((keys[:, begin:].clone(), values[:, begin:].clone()))
        return tail

    def live(self) -> NDArray[np.float64]:
        """Return the entries that each row attends to, a mean over layers and heads. [n]"""
        lengths = np.minimum(self.lengths.numpy(), self._most)
        total = np.add.reduce(lengths, axis=0, dtype=np.float64)
        for number, shelf in enumerate(self.placement.shelves):
            for dead in shelf.dead:
                if dead is not None:
                    here = self.placement.on(number)
                    masked = dead[: shelf.n].sum(dim=(1, 2)).cpu().numpy() / dead.shape[1]
                    total[here] -= masked[self.placement.place[here]]
        return total / len(self.layers)

    def drop(self, slots: Sequence[int], *, erase: Sequence[int] = ()) -> Ints:
        """Let rows go, and give back what room they leave.

        Parameters
        ----------
        erase : sequence of int
            Those whose storage is to be zeroed: a mask does not keep NaN in it from those that come after.

        Returns
        -------
        ndarray
            The slots that stay, [n]: slot i is now the one that was ``stay[i]``.
        """
        for slot in erase:
            shelf, place = self.placement.of(slot)
            for store in (*shelf.keys, *shelf.values):
                store[place] = 0
        return self.placement.drop(slots)

    def evict(self, slots: Ints, index: int, keep: Tensor, lengths: Ints) -> None:
        """Keep only some entries of some rows in one layer.

        Parameters
        ----------
        slots, index
            The rows [R], and the layer.
        keep : Tensor
            [R, H or 1, m] indices of the entries to keep, in their new order; a head may have its own choice.
        lengths : ndarray
            [R], how many of the m count in a row.
        """
        for number in np.unique(self.placement.shelf[slots]).tolist():
            here = np.flatnonzero(self.placement.shelf[slots] == number)
            shelf = self.placement.shelves[number]
            places = torch.from_numpy(self.placement.place[slots[here]]).to(self.device)
            chosen = keep[torch.from_numpy(here).to(keep.device)] if len(here) < len(slots) else keep
            chosen = chosen[:, :, : int(lengths[here].max())]
            n_heads, capacity = shelf.keys[index].shape[1:3]
            first = (places[:, None] * n_heads + torch.arange(n_heads, device=self.device)) * capacity
            flat = first[:, :, None] + chosen.clamp(max=capacity - 1)  # [R, H, m]
            width = chosen.shape[2]
            for store in (shelf.keys[index], shelf.values[index]):  # whole entries of a flat view: faster
                picked = store.view(-1, store.shape[-1]).index_select(0, flat.flatten())
                store[places, :, :width] = picked.view(*flat.shape, -1)
            dead = shelf.dead[index]
            if dead is not None:
                stays = dead.view(-1)[flat]
                dead[places] = False
                dead[places, :, :width] = stays
        self.lengths[index, slots] = torch.from_numpy(lengths)

    def order(self) -> Ints | None:
        """Bring the slots into the order in which rows stand on the shelves.

        Rows that have become much shorter than their shelf move to another one first.

        Returns
        -------
        ndarray or None
            [n]: slot i is now the one that was ``order[i]``; None if none has changed.
        """
        return self.placement.order()

    def begin(self) -> None:
        """Prepare a step of all rows, in order: where each layer writes, and what it may attend to."""
        self.lay_out(self.layout(), self.lengths.to(self.device, non_blocking=True))

    def layout(self, room: int = 1) -> Layout:
        """Return how all rows attend, with room for ``room`` tokens."""
        self.placement.reserve(room)
        lengths = self.lengths.numpy()
        firsts = np.concatenate([[0], np.cumsum([shelf.n for shelf in self.placement.shelves])])
        capacities = np.array([shelf.capacities for shelf in self.placement.shelves])  # [S, L]
        widths = np.minimum(np.maximum.reduceat(lengths, firsts[:-1], axis=1).T + room, capacities)
        seen: dict[bytes, int] = {}
        like = []
        for index, layer in enumerate(self.layers):
            token = lengths[index].tobytes() + capacities[:, index].tobytes() + str(layer.window).encode()
            token += bytes(shelf.dead[index] is not None for shelf in self.placement.shelves)
            like.append(seen.setdefault(token, index))
        heads = np.arange(self.n_heads)
        begins = {
            index: torch.from_numpy(
                (self.placement.place[:, None] * self.n_heads + heads)
                * capacities[self.placement.shelf, index, None]
            ).to(self.device)
            for index in seen.values()
        }
        return Layout(
            tuple(firsts.tolist()), widths, tuple(like), begins, self._masked(), self.placement.storage
        )

    def fits(self, layout: Layout) -> bool:
        """Tell whether a layout still serves a step of all rows."""
        if layout.storage != self.placement.storage or layout.masked != self._masked():
            return False
        room = np.diff(layout.first)
        if any(shelf.n > rows for shelf, rows in zip(self.placement.shelves, room, strict=True)):
            return False
        lengths = self.lengths.numpy()
        return bool((layout.widths[self.placement.shelf] > lengths.T).all()) and np.array_equal(
            lengths, lengths[list(layout.like)]
        )

    def _masked(self) -> tuple[bool, ...]:
        return tuple(dead is not None for shelf in self.placement.shelves for dead in shelf.dead)

    def rows_of(self, layout: Layout) -> Ints:
        """Return the row of a layout that each slot is. [n]"""
        return np.array(layout.first)[self.placement.shelf] + self.placement.place

    def lay_out(self, layout: Layout, lengths: Tensor) -> None:
        """Prepare a step of rows that have these lengths [L, rows], which the host does not read."""
        shared: dict[int, tuple[Tensor, Tensor]] = {}
        for index, (layer, like) in enumerate(zip(self.layers, layout.like, strict=True)):
            if like == index:
                places = (layout.begins[index] + lengths[index][:, None]).flatten()
                shared[index] = layer.mask(lengths[index], int(layout.widths[:, index].max())), places
            layer.segments = [
                shelf.segment(index, layout.first[number : number + 2], width, *shared[like], lengths[index])
                for number, (shelf, width) in enumerate(
                    zip(self.placement.shelves, layout.widths[:, index], strict=True)
                )
            ]

    def advance(self) -> None:
        """Count the token that the step appended to each row."""
        self.placement.lengths += 1

    def _fill(self, slot: int, kept: KeptCache) -> None:
        shelf, place = self.placement.of(slot)
        for index in range(len(self.layers)):
            keys, values = kept.layer(index)
            n = keys.shape[1]
            shelf.keys[index][place, :, :n] = keys
            shelf.values[index][place, :, :n] = values
            shelf.mask(index, place, kept.dead[index] if kept.dead is not None else None)


def _stacked(pairs: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([keys for keys, _ in pairs]), torch.stack([values for _, values in pairs])
