"""Tables whose rows and columns are made when they are needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def grown(table: NDArray[Any], *shape: int) -> NDArray[Any]:
    """Return ``table``, or a copy with room for ``shape`` in its first dimensions, zero where it is new.

    A dimension that is too small is at least doubled, so that growing costs a copy now and then.
    """
    new = list(table.shape)
    for axis, size in enumerate(shape):
        if size > new[axis]:
            new[axis] = max(size, 2 * new[axis])
    if new == list(table.shape):
        return table
    larger = np.zeros(new, dtype=table.dtype)
    larger[tuple(slice(n) for n in table.shape)] = table
    return larger
