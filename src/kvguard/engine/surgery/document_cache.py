"""The cache of one document: keys and values that know their positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DocumentCache:
    """What is kept of a text that was read.

    Parameters
    ----------
    keys, values : tuple of Tensor
        One per layer, [H, n, D]; layers may hold different numbers of entries.
    positions : tuple of Tensor
        One per layer, [H, n] int64: the position that each key is rotated to.
    end : int
        The position of the token that comes next; not a count of entries where a press removed some.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]
    end: int

    @property
    def lengths(self) -> list[int]:
        """Entries per layer."""
        return [keys.shape[1] for keys in self.keys]

    @property
    def n_entries(self) -> float:
        """Mean number of entries that are seen, over layers and heads."""
        raise NotImplementedError
