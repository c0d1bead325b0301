"""Feature rows of some traces as one float32 matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.catastrophes import NO_ONSET
from kvguard.hazard.labels import hazard_labels
from kvguard.traces import iter_table

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Tokens with their features and labels, in the order of the table: traces are contiguous.

    Attributes
    ----------
    features
        [N, F] float32
    label, pre_onset
        See :func:`kvguard.hazard.labels.hazard_labels`. [N]
    trace_id, t
        [N]
    columns
        Names of the features. [F]
    """

    features: NDArray[np.float32]
    label: Bools
    pre_onset: Bools
    trace_id: NDArray[np.int32]
    t: NDArray[np.int32]
    columns: tuple[str, ...] = ()

    def where(self, chosen: NDArray[Any]) -> "Rows":
        """Return the tokens ``chosen``, a mask or indices."""
        return Rows(
            self.features[chosen],
            self.label[chosen],
            self.pre_onset[chosen],
            self.trace_id[chosen],
            self.t[chosen],
            self.columns,
        )

    def only(self, columns: Sequence[str]) -> "Rows":
        """Return all tokens with the features ``columns``, in that order."""
        if tuple(columns) == self.columns:
            return self
        positions = [self.columns.index(name) for name in columns]
        return replace(self, features=self.features[:, positions], columns=tuple(columns))

    def relabelled(self, traces: pd.DataFrame, horizon: int) -> "Rows":
        """Return the tokens with the labels of another H, from the onsets in the judged ``traces``."""
        onset = pd.Series(traces["onset"].fillna(NO_ONSET).to_numpy(dtype=np.int64), index=traces["trace_id"])
        label, pre_onset = hazard_labels(self.t, onset.reindex(self.trace_id).to_numpy(), horizon)
        return replace(self, label=label, pre_onset=pre_onset)


def load_rows(
    path: Path, columns: Sequence[str], trace_ids: NDArray[np.integer], max_rows: int | None = None
) -> Rows:
    """Load the rows of the traces ``trace_ids`` from a features table, row group by row group.

    Parameters
    ----------
    columns
        The features wanted, in this order.
    max_rows
        If there are more rows, this many are kept, evenly spaced over all of them.
    """
    wanted = np.zeros(int(trace_ids.max(initial=-1)) + 1, dtype=bool)
    wanted[trace_ids] = True
    n_found = sum(
        int(_chosen(group["trace_id"].to_numpy(), wanted).sum())
        for group in iter_table("features", path, ["trace_id"])
    )
    n_kept = n_found if max_rows is None else min(n_found, max_rows)
    rows = Rows(
        np.empty((n_kept, len(columns)), dtype=np.float32),
        np.empty(n_kept, dtype=bool),
        np.empty(n_kept, dtype=bool),
        np.empty(n_kept, dtype=np.int32),
        np.empty(n_kept, dtype=np.int32),
        tuple(columns),
    )
    begin = seen = 0
    for group in iter_table("features", path, ["trace_id", "t", *columns, "label", "pre_onset"]):
        chosen = np.flatnonzero(_chosen(group["trace_id"].to_numpy(), wanted))
        number = np.arange(seen, seen + len(chosen))  # of each row among all that were found
        seen += len(chosen)
        chosen = chosen[(number + 1) * n_kept // n_found > number * n_kept // n_found]
        here = slice(begin, begin + len(chosen))
        for position, name in enumerate(columns):
            rows.features[here, position] = group[name].to_numpy()[chosen]
        for name in ("label", "pre_onset", "trace_id", "t"):
            getattr(rows, name)[here] = group[name].to_numpy()[chosen]
        begin = here.stop
    return rows


def _chosen(trace_id: NDArray[np.int32], wanted: Bools) -> Bools:
    return np.append(wanted, False)[np.minimum(trace_id, len(wanted))]
