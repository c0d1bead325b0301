"""Feature rows of some traces as one float32 matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvguard.traces import iter_table

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Tokens with their features and labels, in the order of the table: traces are contiguous.

    Attributes
    ----------
    features
        Columns as asked for. [N, F] float32
    label, pre_onset
        See :func:`kvguard.hazard.labels.hazard_labels`. [N]
    trace_id, t
        [N]
    """

    features: NDArray[np.float32]
    label: Bools
    pre_onset: Bools
    trace_id: NDArray[np.int32]
    t: NDArray[np.int32]


def load_rows(path: Path, columns: Sequence[str], trace_ids: NDArray[np.integer]) -> Rows:
    """Load the rows of the traces ``trace_ids`` from a features table, row group by row group."""
    wanted = np.zeros(int(trace_ids.max(initial=-1)) + 1, dtype=bool)
    wanted[trace_ids] = True
    n_rows = sum(
        int(_chosen(group["trace_id"].to_numpy(), wanted).sum())
        for group in iter_table("features", path, ["trace_id"])
    )
    rows = Rows(
        np.empty((n_rows, len(columns)), dtype=np.float32),
        np.empty(n_rows, dtype=bool),
        np.empty(n_rows, dtype=bool),
        np.empty(n_rows, dtype=np.int32),
        np.empty(n_rows, dtype=np.int32),
    )
    begin = 0
    for group in iter_table("features", path, ["trace_id", "t", *columns, "label", "pre_onset"]):
        chosen = _chosen(group["trace_id"].to_numpy(), wanted)
        here = slice(begin, begin + int(chosen.sum()))
        for position, name in enumerate(columns):
            rows.features[here, position] = group[name].to_numpy()[chosen]
        for name in ("label", "pre_onset", "trace_id", "t"):
            getattr(rows, name)[here] = group[name].to_numpy()[chosen]
        begin = here.stop
    return rows


def _chosen(trace_id: NDArray[np.int32], wanted: Bools) -> Bools:
    return np.append(wanted, False)[np.minimum(trace_id, len(wanted))]
