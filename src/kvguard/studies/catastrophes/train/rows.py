"""Feature rows of some traces as one float32 matrix."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.judging.catastrophes import NO_ONSET
from kvguard.store.tables import ROW_GROUP, iter_table
from kvguard.studies.catastrophes.train.labels import Bools, before_onset, hazard_labels


@dataclass(frozen=True)
class Rows:
    """Tokens with their features, in the order of the table: traces are contiguous.

    Attributes
    ----------
    features
        [N, F] float32
    onset
        Of each token's trace, ``NO_ONSET`` for none. [N]
    trace_id, t
        [N]
    columns
        Names of the features. [F]
    horizon
        The H of the labels, None where no label is asked for.
    """

    features: NDArray[np.float32]
    onset: NDArray[np.int32]
    trace_id: NDArray[np.int32]
    t: NDArray[np.int32]
    columns: tuple[str, ...] = ()
    horizon: int | None = None

    @cached_property
    def label(self) -> Bools:
        """Which tokens have the onset at most H tokens ahead. [N]"""
        assert self.horizon is not None
        return hazard_labels(self.t, self.onset, self.horizon)

    @cached_property
    def pre_onset(self) -> Bools:
        """Which tokens stand before the onset, all of a trace without one. [N]"""
        return before_onset(self.t, self.onset)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield the features of neighbouring tokens, from first to last. [n, F]"""
        for begin in range(0, len(self.features), ROW_GROUP):
            yield self.features[begin : begin + ROW_GROUP]

    def where(self, chosen: NDArray[Any]) -> Self:
        """Return the tokens ``chosen``, a mask or indices."""
        names = ("features", "onset", "trace_id", "t")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def only(self, columns: Sequence[str]) -> Self:
        """Return all tokens with the features ``columns``, in that order."""
        if tuple(columns) == self.columns:
            return self
        positions = [self.columns.index(name) for name in columns]
        return replace(self, features=self.features[:, positions], columns=tuple(columns))

    def labelled(self, horizon: int) -> Self:
        """Return the tokens with the labels of this H."""
        return replace(self, horizon=horizon)


@dataclass(frozen=True, kw_only=True)
class StoredRows(Rows):
    """Tokens whose features stay in their table, and are read again whenever they are asked for.

    Attributes
    ----------
    features
        Empty. [N, 0]
    path
        The features table.
    place
        Row numbers in it, ascending. [N]
    """

    path: Path
    place: NDArray[np.int64]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield the features of neighbouring tokens, from first to last. [n, F]"""
        begin = 0
        for group in iter_table("features", self.path, self.columns):
            first, last = np.searchsorted(self.place, [begin, begin + len(group)])
            if first < last:
                here = self.place[first:last] - begin
                yield np.stack([group[name].to_numpy()[here] for name in self.columns], axis=1)
            begin += len(group)

    def where(self, chosen: NDArray[Any]) -> Self:
        """Return the tokens ``chosen``, a mask or ascending indices."""
        return replace(super().where(chosen), place=self.place[chosen])

    def only(self, columns: Sequence[str]) -> Self:
        """Return all tokens with the features ``columns``, in that order."""
        return replace(self, columns=tuple(columns))


def rows_to_fit(path: Path, columns: Sequence[str], traces: pd.DataFrame, max_tokens: int | None) -> Rows:
    """Return the rows of ``traces``: at most ``max_tokens``, loaded, or all of them, stored.

    Parameters
    ----------
    traces
        trace_id and onset.
    """
    if max_tokens is not None:
        return load_rows(path, columns, traces, max_tokens)
    wanted = _wanted(traces["trace_id"].to_numpy())
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in ("trace_id", "t", "place")}
    begin = 0
    for group in iter_table("features", path, ("trace_id", "t")):
        chosen = np.flatnonzero(_chosen(group["trace_id"].to_numpy(), wanted))
        for name in ("trace_id", "t"):
            found[name].append(group[name].to_numpy()[chosen])
        found["place"].append(begin + chosen)
        begin += len(group)
    whole = {name: np.concatenate(pieces) for name, pieces in found.items()}
    return StoredRows(
        features=np.empty((len(whole["t"]), 0), dtype=np.float32),
        onset=onset_of(traces, whole["trace_id"]),
        trace_id=whole["trace_id"],
        t=whole["t"],
        columns=tuple(columns),
        path=path,
        place=whole["place"],
    )


def load_rows(path: Path, columns: Sequence[str], traces: pd.DataFrame, max_rows: int | None = None) -> Rows:
    """Load the rows of ``traces`` from a features table, row group by row group.

    Parameters
    ----------
    columns
        The features wanted, in this order.
    traces
        trace_id and onset.
    max_rows
        If there are more rows, this many are kept, evenly spaced over all of them.
    """
    wanted = _wanted(traces["trace_id"].to_numpy())
    n_found = sum(
        int(_chosen(group["trace_id"].to_numpy(), wanted).sum())
        for group in iter_table("features", path, ["trace_id"])
    )
    n_kept = n_found if max_rows is None else min(n_found, max_rows)
    features = np.empty((n_kept, len(columns)), dtype=np.float32)
    trace_id, t = np.empty(n_kept, dtype=np.int32), np.empty(n_kept, dtype=np.int32)
    begin = seen = 0
    for group in iter_table("features", path, ["trace_id", "t", *columns]):
        chosen = np.flatnonzero(_chosen(group["trace_id"].to_numpy(), wanted))
        number = np.arange(seen, seen + len(chosen))  # of each row among all that were found
        seen += len(chosen)
        chosen = chosen[(number + 1) * n_kept // n_found > number * n_kept // n_found]
        here = slice(begin, begin + len(chosen))
        for position, name in enumerate(columns):
            features[here, position] = group[name].to_numpy()[chosen]
        trace_id[here], t[here] = (group[name].to_numpy()[chosen] for name in ("trace_id", "t"))
        begin = here.stop
    return Rows(features, onset_of(traces, trace_id), trace_id, t, tuple(columns))


def onset_of(traces: pd.DataFrame, trace_id: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """Return the onset of each token's trace, ``NO_ONSET`` for none. [N]

    Parameters
    ----------
    traces
        trace_id and onset.
    trace_id
        Of each token; all are among ``traces``. [N]
    """
    onset = traces["onset"].fillna(NO_ONSET).to_numpy(dtype=np.int32)
    return onset[pd.Index(traces["trace_id"]).get_indexer(trace_id)]


def _wanted(trace_ids: NDArray[np.integer]) -> Bools:
    """Mark the ids that are listed. [highest id + 1]"""
    wanted = np.zeros(int(trace_ids.max(initial=-1)) + 1, dtype=bool)
    wanted[trace_ids] = True
    return wanted


def _chosen(trace_id: NDArray[np.int32], wanted: Bools) -> Bools:
    return np.append(wanted, False)[np.minimum(trace_id, len(wanted))]
