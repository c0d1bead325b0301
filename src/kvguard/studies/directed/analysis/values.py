"""One metric of a data set's examples under each condition, with the weights that resample it.

Values are turned so that higher is better, whatever the metric. Examples of one document are no independent
samples, so resamples draw documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.stats.bootstrap import Floats, resample_weights
from kvguard.studies.directed.params import Better
from kvguard.studies.directed.tracks import Cell


@dataclass(frozen=True)
class Values:
    """Values [N, K] of examples in cells; NaN where there is none.

    Attributes
    ----------
    documents
        The number of each example's document. [N]
    sign
        What turned them: 1, or -1 where lower is better.
    """

    cells: tuple[Cell, ...]
    matrix: Floats
    documents: NDArray[np.integer[Any]]
    sign: int

    @classmethod
    def of(cls, table: pd.DataFrame, cells: Sequence[Cell], metric: str, better: Better) -> Values:
        """Return a metric of one data set's ``directed`` table; examples keep their order."""
        examples = list(table["example"].drop_duplicates())
        found = table[table["metric"] == metric]
        wide = found.pivot(index="example", columns=["condition", "setting"], values="value")
        columns = pd.MultiIndex.from_tuples([(cell.condition, cell.setting) for cell in cells])
        matrix = wide.reindex(index=examples, columns=columns).to_numpy(dtype=np.float64)
        documents = table.drop_duplicates("example").set_index("example").loc[examples, "document"]
        sign = -1 if better == "lower" else 1
        return cls(tuple(cells), sign * matrix, np.unique(documents, return_inverse=True)[1], sign)

    def column(self, cell: Cell) -> Floats:
        """Return the values of one cell. [N]"""
        return self.matrix[:, self.cells.index(cell)]

    def some(self, chosen: NDArray[np.bool_]) -> Values:
        """Return the values of some examples."""
        return replace(self, matrix=self.matrix[chosen], documents=self.documents[chosen])

    def weights(self, n_resamples: int, seed: int) -> Floats:
        """Return how often each example is drawn, the sample first. [1 + n, N]"""
        documents = np.unique(self.documents, return_inverse=True)[1]
        by_document = resample_weights(int(documents.max(initial=-1)) + 1, n_resamples, seed)
        return by_document[:, documents]
