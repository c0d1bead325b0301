"""A KV cache whose rows have their own lengths, per layer, and take no more than they hold.

Rows of like length stand together on a *shelf*: in every layer keys and values of one shape, so that they
attend in one call. A shelf grows with its rows and shrinks when they leave; a row whose length has changed at
once (restored, evicted from) moves to another shelf.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache

from kvguard.engine.kept import KeptCache
from kvguard.engine.shelves import LEAST, Layout, RaggedLayer, Shelf, apart

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
    lengths : Tensor
        [L, n], on the host: the one truth.
    storage : int
        Changes whenever a shelf is allocated anew.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment]

    def __init__(self, like: Sequence[Tensor], windows: Sequence[int | None] | None = None) -> None:
        super().__init__(layers=[RaggedLayer(w, like[0].dtype) for w in windows or [None] * len(like)])
        self._like = [keys[:, :0].clone() for keys in like]
        self.device, self.n_heads = like[0].device, like[0].shape[0]
        self._most = np.array([[(layer.window or 1 << 62) - 1] for layer in self.layers])  # attended to
        self.lengths = torch.zeros(len(like), 0, dtype=torch.long)
        self.shelves: list[Shelf] = []
        self.storage = 0
        self._shelf, self._place = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)  # of each slot

    @staticmethod
    def bytes_per_row(n_layers: int, capacity: int, n_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Memory that one row of ``capacity`` tokens takes, in bytes."""
        return 2 * n_layers * capacity * n_heads * head_dim * dtype.itemsize

    @property
    def n(self) -> int:
        """Rows."""
        return len(self._shelf)

    @property
    def none(self) -> list[Tensor]:
        """Keys of no entry, one per layer, [H, 0, D]."""
        return self._like

    @property
    def nbytes(self) -> int:
        """Bytes that all shelves take."""
        return sum(shelf.nbytes for shelf in self.shelves)

    def add(self, rows: Sequence[KeptCache]) -> None:
        """Add rows, at the end of the slots, that hold what conditions kept of their prompts."""
        for kept in rows:  # first all their places, so that a shelf is allocated once
            self._seat(np.array(kept.lengths))
        self._allocate()
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
        self.lengths[:, slot] = torch.from_numpy(lengths)
        self._leave(slot)
        self._shelf[slot], self._place[slot] = self._take(lengths)
        self._allocate()
        self._fill(slot, kept)
        for index, (keys, values) in enumerate(tail or []):
            shelf, place = self.shelves[self._shelf[slot]], self._place[slot]
            end = int(lengths[index])
            shelf.keys[index][place, :, end - keys.shape[1] : end] = keys
            shelf.values[index][place, :, end - keys.shape[1] : end] = values
        self._shrink()

    def read(self, index: int, slot: int) -> tuple[Tensor, Tensor]:
        """Return views of a row's keys and values in one layer, each [H, n, D]."""
        shelf, place, n = self.shelves[self._shelf[slot]], self._place[slot], int(self.lengths[index, slot])
        return shelf.keys[index][place, :, :n], shelf.values[index][place, :, :n]

    def gather(self, index: int, slots: Ints, length: int) -> tuple[Tensor, Tensor]:
        """Copy the first ``length`` entries of rows in one layer: keys and values, each [R, H, length, D]."""
        return _stacked([[store[:, :length] for store in self.read(index, slot)] for slot in slots.tolist()])

    def dead(self, index: int, slot: int) -> Tensor | None:
        """Return which entries of a row a press masks in one layer, [H, n] bool, if any can be."""
        shelf, place = self.shelves[self._shelf[slot]], self._place[slot]
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
        for number, shelf in enumerate(self.shelves):
            for dead in shelf.dead:
                if dead is not None:
                    here = np.flatnonzero(self._shelf == number)
                    masked = dead[: shelf.n].sum(dim=(1, 2)).cpu().numpy() / dead.shape[1]
                    total[here] -= masked[self._place[here]]
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
            shelf, place = self.shelves[self._shelf[slot]], self._place[slot]
            for store in (*shelf.keys, *shelf.values):
                store[place] = 0
        for slot in slots:
            self._leave(slot)
        stay = np.setdiff1d(np.arange(self.n), slots)
        self._select(stay)
        if len(stay) or not slots:
            self._shrink()
        else:
            self.shelves.clear()
            self.storage += 1
        return stay

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
        for number in np.unique(self._shelf[slots]).tolist():
            here = np.flatnonzero(self._shelf[slots] == number)
            shelf, places = self.shelves[number], torch.from_numpy(self._place[slots[here]]).to(self.device)
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
        self._settle()
        order = np.lexsort((self._place, self._shelf))
        if (order == np.arange(self.n)).all():
            return None
        self._select(order)
        return order

    def begin(self) -> None:
        """Prepare a step of all rows, in order: where each layer writes, and what it may attend to."""
        self.lay_out(self.layout(), self.lengths.to(self.device, non_blocking=True))

    def layout(self, room: int = 1) -> Layout:
        """Return how all rows attend, with room for ``room`` tokens."""
        self.reserve(room)
        lengths = self.lengths.numpy()
        firsts = np.concatenate([[0], np.cumsum([shelf.n for shelf in self.shelves])])
        capacities = np.array([shelf.capacities for shelf in self.shelves])  # [S, L]
        widths = np.minimum(np.maximum.reduceat(lengths, firsts[:-1], axis=1).T + room, capacities)
        seen: dict[bytes, int] = {}
        like = []
        for index, layer in enumerate(self.layers):
            token = lengths[index].tobytes() + capacities[:, index].tobytes() + str(layer.window).encode()
            token += bytes(shelf.dead[index] is not None for shelf in self.shelves)
            like.append(seen.setdefault(token, index))
        heads = np.arange(self.n_heads)
        begins = {
            index: torch.from_numpy(
                (self._place[:, None] * self.n_heads + heads) * capacities[self._shelf, index, None]
            ).to(self.device)
            for index in seen.values()
        }
        return Layout(tuple(firsts.tolist()), widths, tuple(like), begins, self._masked(), self.storage)

    def fits(self, layout: Layout) -> bool:
        """Tell whether a layout still serves a step of all rows."""
        if layout.storage != self.storage or layout.masked != self._masked():
            return False
        room = np.diff(layout.first)
        if any(shelf.n > rows for shelf, rows in zip(self.shelves, room, strict=True)):
            return False
        lengths = self.lengths.numpy()
        return bool((layout.widths[self._shelf] > lengths.T).all()) and np.array_equal(
            lengths, lengths[list(layout.like)]
        )

    def _masked(self) -> tuple[bool, ...]:
        return tuple(dead is not None for shelf in self.shelves for dead in shelf.dead)

    def rows_of(self, layout: Layout) -> Ints:
        """Return the row of a layout that each slot is. [n]"""
        return np.array(layout.first)[self._shelf] + self._place

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
                    zip(self.shelves, layout.widths[:, index], strict=True)
                )
            ]

    def advance(self) -> None:
        """Count the token that the step appended to each row."""
        self.lengths += 1

    def reserve(self, room: int) -> None:
        """Make room for ``room`` more tokens of every row."""
        lengths = self.lengths.numpy()
        for number, shelf in enumerate(self.shelves):
            needed = lengths[:, self._shelf == number].max(axis=1, initial=0) + room
            capacities = shelf.capacities
            if (needed > capacities).any():
                grown = needed + apart(needed)
                self._resize(shelf, shelf.rows, np.where(needed > capacities, grown, capacities))

    def _seat(self, lengths: Ints) -> None:
        """Append a slot for a row of these lengths [L], on a shelf that it will have a place on."""
        self.lengths = torch.cat([self.lengths, torch.from_numpy(lengths)[:, None]], dim=1)
        shelf, place = self._take(lengths)
        self._shelf, self._place = np.append(self._shelf, shelf), np.append(self._place, place)

    def _take(self, lengths: Ints) -> tuple[int, int]:
        """Find a shelf for a row of these lengths; return it, and its next free place."""
        best, nearest = len(self.shelves), np.inf
        for number, shelf in enumerate(self.shelves):
            if shelf.n:
                longest = self.lengths.numpy()[:, : self.n][:, self._shelf == number].max(axis=1, initial=0)
                away = np.abs(longest - lengths)
                if (away <= apart(longest)).all() and away.sum() < nearest:
                    best, nearest = number, away.sum()
        if best == len(self.shelves):
            self.shelves.append(Shelf(self._like))
            self.storage += 1
        shelf = self.shelves[best]
        shelf.n += 1
        return best, shelf.n - 1

    def _allocate(self) -> None:
        """Give the shelves the places and entries that their rows need."""
        lengths = self.lengths.numpy()
        for number, shelf in enumerate(self.shelves):
            here = np.flatnonzero(self._shelf == number)
            needed = lengths[:, here].max(axis=1, initial=0) + 1
            capacities, rows = shelf.capacities, shelf.rows
            if shelf.n > rows:
                rows = max(shelf.n, min(rows, shelf.n) * 9 // 8)
            if (needed > capacities).any():
                capacities = np.maximum(capacities, needed + LEAST - 1)
            self._resize(shelf, rows, capacities)

    def _resize(self, shelf: Shelf, rows: int, capacities: Ints) -> None:
        if shelf.rows != rows or (shelf.capacities != capacities).any():
            shelf.resize(rows, capacities)
            self.storage += 1

    def _fill(self, slot: int, kept: KeptCache) -> None:
        shelf, place = self.shelves[self._shelf[slot]], int(self._place[slot])
        for index in range(len(self.layers)):
            keys, values = kept.layer(index)
            n = keys.shape[1]
            shelf.keys[index][place, :, :n] = keys
            shelf.values[index][place, :, :n] = values
            shelf.mask(index, place, kept.dead[index] if kept.dead is not None else None)

    def _leave(self, slot: int) -> None:
        """Free a row's place; the last row of its shelf moves there."""
        number, place = self._shelf[slot], self._place[slot]
        shelf = self.shelves[number]
        shelf.n -= 1
        if place != shelf.n:
            last = int(np.flatnonzero((self._shelf == number) & (self._place == shelf.n))[0])
            shelf.copy(int(place), shelf, shelf.n, self.lengths[:, last].tolist())
            self._place[last] = place
        self._shelf[slot] = self._place[slot] = -1

    def _select(self, slots: Ints) -> None:
        self._shelf, self._place = self._shelf[slots], self._place[slots]
        self.lengths = self.lengths[:, torch.from_numpy(slots)]

    def _shrink(self) -> None:
        """Take away empty shelves, and places that a quarter of a shelf's rows have left."""
        filled = [number for number, shelf in enumerate(self.shelves) if shelf.n]
        if len(filled) < len(self.shelves):
            self._shelf = np.searchsorted(filled, self._shelf)
            self.shelves = [self.shelves[number] for number in filled]
            self.storage += 1
        for shelf in self.shelves:
            if shelf.n <= shelf.rows * 3 // 4:
                self._resize(shelf, shelf.n, shelf.capacities)

    def _settle(self) -> None:
        """Move rows that are much shorter than their shelf to another; cut shelves that are too wide."""
        lengths = self.lengths.numpy()
        moved = False
        for number in range(len(self.shelves)):
            here = np.flatnonzero(self._shelf == number)
            if not len(here):
                continue
            longest = lengths[:, here].max(axis=1)
            astray = here[((longest[:, None] - lengths[:, here]) > 2 * apart(longest)[:, None]).any(axis=0)]
            for slot in astray.tolist():
                self._move(slot)
                moved = True
            shelf = self.shelves[number]
            longest = lengths[:, self._shelf == number].max(axis=1, initial=0)
            wide = longest + 1 + 2 * apart(longest)
            if (shelf.capacities > wide).any():
                self._resize(shelf, shelf.rows, np.minimum(shelf.capacities, longest + LEAST))
        if moved:
            self._shrink()

    def _move(self, slot: int) -> None:
        """Move a row to a shelf of its own length."""
        lengths, source, place = self.lengths[:, slot].numpy(), self._shelf[slot], self._place[slot]
        target, free = self._take(lengths)
        self._shelf[slot], self._place[slot] = target, free
        self._allocate()
        self.shelves[target].copy(free, self.shelves[source], int(place), lengths.tolist())
        self._shelf[slot], self._place[slot] = source, place
        self._leave(slot)
        self._shelf[slot], self._place[slot] = target, free


def _stacked(pairs: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([keys for keys, _ in pairs]), torch.stack([values for _, values in pairs])
