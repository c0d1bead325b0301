"""Closed sets of rows that are made, stored and found again on their own: what makes a stage resumable.

A part is decoded as a batch of its own, so its bytes do not depend on which other parts were already there;
its fingerprint names all that its bytes depend on. A part is whole when all of its files are there, each
written atomically and carrying the fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from kvguard.engine import VERSION
from kvguard.errors import KvguardError
from kvguard.store.tables import read_metadata, read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

_LIBRARIES = ("kvpress", "numba", "tokenizers", "torch", "transformers")
_KEY = "kvguard.fingerprint"
_IDS = "kvguard.trace_ids"


@dataclass(frozen=True)
class Part:
    """A closed set of rows.

    Parameters
    ----------
    name : str
        What the part's files are called by.
    trace_ids : tuple of int
        One per row of the part, in order.
    fingerprint : str
        Names all that the part's bytes depend on; see :func:`fingerprint`.
    """

    name: str
    trace_ids: tuple[int, ...]
    fingerprint: str

    # The kinds of table that hold a part, in the order they are written, and how their files' names begin.
    kinds: ClassVar[Mapping[str, str]]

    @property
    def n_traces(self) -> int:
        """Traces in the part."""
        return len(self.trace_ids)

    @property
    def metadata(self) -> dict[str, str]:
        """What the part's files carry in their Parquet metadata."""
        return {_KEY: self.fingerprint, _IDS: digest(self.trace_ids)}

    def path(self, kind: str, folder: Path) -> Path:
        """File of one of the part's tables."""
        return folder / f"{self.kinds[kind]}-{self.name}.parquet"

    def write(self, kind: str, frame: pd.DataFrame, folder: Path) -> None:
        """Store one of the part's tables."""
        write_table(kind, frame, self.path(kind, folder), self.metadata)

    def is_made(self, folder: Path) -> bool:
        """Tell whether all files are there, whole, and of this fingerprint."""
        try:
            return all(
                read_metadata(self.path(kind, folder)).get(_KEY) == self.fingerprint for kind in self.kinds
            )
        except KvguardError:
            return False


P = TypeVar("P", bound=Part)


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """Cut the positions 0 .. n - 1 into blocks of ``size``: (start, stop) of each."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def fingerprint(made_of: Mapping[str, Any]) -> str:
    """Digest what a part's bytes depend on, with the engine's version and the libraries that make tokens."""
    libraries = {name: version(name) for name in _LIBRARIES}
    return digest({**made_of, "engine": VERSION, "libraries": libraries})


def keep_made(folder: Path, parts: Sequence[P]) -> list[P]:
    """Clear ``folder`` of all but the plan's finished parts, and return the parts that are missing.

    Kept parts get the trace ids of the present plan, which other rows may have joined.
    """
    _discard_strangers(folder, parts)
    missing = [part for part in parts if not part.is_made(folder)]
    for part in parts:
        if part not in missing:
            _number_anew(folder, part)
    return missing


def _discard_strangers(folder: Path, parts: Sequence[Part]) -> None:
    """Delete the files of parts that are not in the plan, and what a killed write left behind."""
    planned = {part.path(kind, folder) for part in parts for kind in part.kinds}
    for prefix in {prefix for part in parts for prefix in part.kinds.values()}:
        for path in folder.glob(f"{prefix}-*"):
            if path not in planned:
                path.unlink(missing_ok=True)


def _number_anew(folder: Path, part: Part) -> None:
    for kind in part.kinds:
        path = part.path(kind, folder)
        if read_metadata(path).get(_IDS) != part.metadata[_IDS]:
            frame = read_table(kind, path)
            nth = np.cumsum(np.diff(frame["trace_id"], prepend=frame["trace_id"].iloc[:1]) != 0)
            frame["trace_id"] = np.array(part.trace_ids, dtype=np.int32)[nth]
            part.write(kind, frame, folder)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value as JSON."""

    def plain(other: Any) -> Any:
        return other.tolist() if isinstance(other, np.ndarray) else str(other)  # str would cut a long array

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain).encode()).hexdigest()
