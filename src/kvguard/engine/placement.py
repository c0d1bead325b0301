"""Which row stands where: rows of like length share a shelf, which grows and shrinks with them.

Rows are numbered by slot. Each has a shelf and a place on it; a row whose length has changed at once
(restored, evicted from) moves to another shelf.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvguard.engine.shelves import LEAST, Shelf, apart

Ints = NDArray[np.int64]


class Placement:
    """Shelves, and the place of each row on them.

    Parameters
    ----------
    like : sequence of Tensor
        One per layer, [H, 0, D], of the keys' type and on their device.

    Attributes
    ----------
    lengths : Tensor
        [L, n], on the host: the one truth.
    shelf, place : ndarray
        Of each slot, [n].
    storage : int
        Changes whenever a shelf is allocated anew.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._like = like
        self.lengths = torch.zeros(len(like), 0, dtype=torch.long)
        self.shelf, self.place = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self.shelves: list[Shelf] = []
        self.storage = 0

    def of(self, slot: int) -> tuple[Shelf, int]:
        """Return the shelf of a row, and its place there."""
        return self.shelves[self.shelf[slot]], int(self.place[slot])

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.shelf)

    @property
    def nbytes(self) -> int:
        """Bytes that all shelves take."""
        return sum(shelf.nbytes for shelf in self.shelves)

    def on(self, number: int) -> Ints:
        """Return the slots of the rows on one shelf."""
        return np.flatnonzero(self.shelf == number)

    def append(self, lengths: Ints) -> None:
        """Append a slot for a row of these lengths [L]; its shelf has room after :meth:`allocate`."""
        self.lengths = torch.cat([self.lengths, torch.from_numpy(lengths)[:, None]], dim=1)
        shelf, place = self._take(lengths)
        self.shelf, self.place = np.append(self.shelf, shelf), np.append(self.place, place)

    def replace(self, slot: int, lengths: Ints) -> None:
        """Give a row other lengths [L] and a place for them; what it held is lost."""
        self.lengths[:, slot] = torch.from_numpy(lengths)
        self._leave(slot)
        self.shelf[slot], self.place[slot] = self._take(lengths)
        self.allocate()

    def drop(self, slots: Sequence[int]) -> Ints:
        """Let rows go, and return the slots that stay: slot i is now the one that was ``stay[i]``."""
        for slot in slots:
            self._leave(slot)
        stay = np.setdiff1d(np.arange(self.n), slots)
        self._select(stay)
        if len(stay) or not slots:
            self.shrink()
        else:
            self.shelves.clear()
            self.storage += 1
        return stay

    def order(self) -> Ints | None:
        """Bring the slots into the order in which rows stand; see :meth:`RaggedCache.order`."""
        self._settle()
        order = np.lexsort((self.place, self.shelf))
        if (order == np.arange(self.n)).all():
            return None
        self._select(order)
        return order

    def reserve(self, room: int) -> None:
        """Make room for ``room`` more tokens of every row."""
        lengths = self.lengths.numpy()
        for number, shelf in enumerate(self.shelves):
            needed = lengths[:, self.shelf == number].max(axis=1, initial=0) + room
            capacities = shelf.capacities
            if (needed > capacities).any():
                grown = needed + apart(needed)
                self._resize(shelf, shelf.rows, np.where(needed > capacities, grown, capacities))

    def allocate(self) -> None:
        """Give the shelves the places and entries that their rows need."""
        lengths = self.lengths.numpy()
        for number, shelf in enumerate(self.shelves):
            needed = lengths[:, self.on(number)].max(axis=1, initial=0) + 1
            capacities, rows = shelf.capacities, shelf.rows
            if shelf.n > rows:
                rows = max(shelf.n, min(rows, shelf.n) * 9 // 8)
            if (needed > capacities).any():
                capacities = np.maximum(capacities, needed + LEAST - 1)
            self._resize(shelf, rows, capacities)

    def shrink(self) -> None:
        """Take away empty shelves, and places that a quarter of a shelf's rows have left."""
        filled = [number for number, shelf in enumerate(self.shelves) if shelf.n]
        if len(filled) < len(self.shelves):
            self.shelf = np.searchsorted(filled, self.shelf)
            self.shelves = [self.shelves[number] for number in filled]
            self.storage += 1
        for shelf in self.shelves:
            if shelf.n <= shelf.rows * 3 // 4:
                self._resize(shelf, shelf.n, shelf.capacities)

    def _take(self, lengths: Ints) -> tuple[int, int]:
        """Find a shelf for a row of these lengths; return it, and its next free place."""
        best, nearest = len(self.shelves), np.inf
        for number, shelf in enumerate(self.shelves):
            if shelf.n:
                longest = self.lengths.numpy()[:, : self.n][:, self.shelf == number].max(axis=1, initial=0)
                away = np.abs(longest - lengths)
                if (away <= apart(longest)).all() and away.sum() < nearest:
                    best, nearest = number, away.sum()
        if best == len(self.shelves):
            self.shelves.append(Shelf(self._like))
            self.storage += 1
        shelf = self.shelves[best]
        shelf.n += 1
        return best, shelf.n - 1

    def _leave(self, slot: int) -> None:
        """Free a row's place; the last row of its shelf moves there."""
        number, place = self.shelf[slot], self.place[slot]
        shelf = self.shelves[number]
        shelf.n -= 1
        if place != shelf.n:
            last = int(np.flatnonzero((self.shelf == number) & (self.place == shelf.n))[0])
            shelf.copy(int(place), shelf, shelf.n, self.lengths[:, last].tolist())
            self.place[last] = place
        self.shelf[slot] = self.place[slot] = -1

    def _select(self, slots: Ints) -> None:
        self.shelf, self.place = self.shelf[slots], self.place[slots]
        self.lengths = self.lengths[:, torch.from_numpy(slots)]

    def _resize(self, shelf: Shelf, rows: int, capacities: Ints) -> None:
        if shelf.rows != rows or (shelf.capacities != capacities).any():
            shelf.resize(rows, capacities)
            self.storage += 1

    def _settle(self) -> None:
        """Move rows that are much shorter than their shelf to another; cut shelves that are too wide."""
        lengths = self.lengths.numpy()
        moved = False
        for number in range(len(self.shelves)):
            here = self.on(number)
            if not len(here):
                continue
            longest = lengths[:, here].max(axis=1)
            astray = here[((longest[:, None] - lengths[:, here]) > 2 * apart(longest)[:, None]).any(axis=0)]
            for slot in astray.tolist():
                self._move(slot)
                moved = True
            shelf = self.shelves[number]
            longest = lengths[:, self.shelf == number].max(axis=1, initial=0)
            wide = longest + 1 + 2 * apart(longest)
            if (shelf.capacities > wide).any():
                self._resize(shelf, shelf.rows, np.minimum(shelf.capacities, longest + LEAST))
        if moved:
            self.shrink()

    def _move(self, slot: int) -> None:
        """Move a row to a shelf of its own length."""
        lengths, source, place = self.lengths[:, slot].numpy(), self.shelf[slot], self.place[slot]
        target, free = self._take(lengths)
        self.shelf[slot], self.place[slot] = target, free
        self.allocate()
        self.shelves[target].copy(free, self.shelves[source], int(place), lengths.tolist())
        self.shelf[slot], self.place[slot] = source, place
        self._leave(slot)
        self.shelf[slot], self.place[slot] = target, free
