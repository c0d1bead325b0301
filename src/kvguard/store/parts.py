"""Closed sets of rows that are made, stored and found again on their own: what makes a stage resumable.

A part is decoded as batches of its own, so its bytes do not depend on which other parts were already there;
its fingerprint names all that its bytes depend on. A part is whole when all of its files are there, each
written atomically and carrying the fingerprint.

The batch size is planned, and halved for a part that runs out of memory. So a part's files say with how many
rows it was really decoded, and their fingerprint covers that too: such a part is told from one that was
decoded as planned, and a resumed run keeps it.
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
from kvguard.store.tables import read_metadata, read_table, remove_temporaries, write_table

if TYPE_CHECKING:
    import pandas as pd

_LIBRARIES = ("kvpress", "numba", "tokenizers", "torch", "transformers")
_KEY = "kvguard.fingerprint"
_BATCH = "kvguard.batch_size"
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
    unit : str
        Parts of one unit are made together: one prefill serves them.
    fingerprint : str
        Names all that the part's bytes depend on as planned; see :func:`fingerprint`.
    """

    name: str
    trace_ids: tuple[int, ...]
    unit: str
    fingerprint: str

    # The kinds of table that hold a part, in the order they are written, and how their files' names begin.
    kinds: ClassVar[Mapping[str, str]]

    @property
    def n_traces(self) -> int:
        """Traces in the part."""
        return len(self.trace_ids)

    def path(self, kind: str, folder: Path) -> Path:
        """File of one of the part's tables."""
        return folder / f"{self.kinds[kind]}-{self.name}.parquet"

    def write(self, kind: str, frame: pd.DataFrame, folder: Path, batch_size: int) -> None:
        """Store one of the part's tables, whose rows were decoded ``batch_size`` at a time."""
        metadata = {
            _KEY: self._decoded_with(batch_size),
            _BATCH: str(batch_size),
            _IDS: digest(self.trace_ids),
        }
        write_table(kind, frame, self.path(kind, folder), metadata)

    def is_made(self, folder: Path) -> bool:
        """Tell whether all files are there, whole, of this fingerprint and decoded alike."""
        try:
            found = {
                (metadata.get(_KEY), metadata.get(_BATCH))
                for metadata in (read_metadata(self.path(kind, folder)) for kind in self.kinds)
            }
        except KvguardError:
            return False
        (key, batch_size), *others = found
        return not others and batch_size is not None and key == self._decoded_with(int(batch_size))

    def number_anew(self, folder: Path) -> None:
        """Give the stored rows the trace ids of the present plan, which other rows may have joined."""
        for kind in self.kinds:
            path = self.path(kind, folder)
            metadata = read_metadata(path)
            if metadata[_IDS] != digest(self.trace_ids):
                frame = read_table(kind, path)
                nth = np.cumsum(np.diff(frame["trace_id"], prepend=frame["trace_id"].iloc[:1]) != 0)
                frame["trace_id"] = np.array(self.trace_ids, dtype=np.int32)[nth]
                self.write(kind, frame, folder, int(metadata[_BATCH]))

    def _decoded_with(self, batch_size: int) -> str:
        return digest([self.fingerprint, batch_size])


P = TypeVar("P", bound=Part)


def slices(n: int, size: int) -> list[tuple[int, int]]:
    """Cut the positions 0 .. n - 1 into slices of ``size``: (start, stop) of each."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def fingerprint(made_of: Mapping[str, Any]) -> str:
    """Digest what a part's bytes depend on, with the engine's version and the libraries that make tokens."""
    libraries = {name: version(name) for name in _LIBRARIES}
    return digest({**made_of, "engine": VERSION, "libraries": libraries})


def keep_made(folder: Path, parts: Sequence[P]) -> list[P]:
    """Clear ``folder`` of all but the plan's finished parts, and return the parts that are missing.

    Kept parts get the trace ids of the present plan.
    """
    remove_temporaries(folder)
    _discard_strangers(folder, parts)
    missing = []
    for part in parts:
        if part.is_made(folder):
            part.number_anew(folder)
        else:
            missing.append(part)
    return missing


def _discard_strangers(folder: Path, parts: Sequence[Part]) -> None:
    """Delete the files of parts that are not in the plan, and what a killed write left behind."""
    planned = {part.path(kind, folder) for part in parts for kind in part.kinds}
    for prefix in {prefix for part in parts for prefix in part.kinds.values()}:
        for path in folder.glob(f"{prefix}-*"):
            if path not in planned:
                path.unlink(missing_ok=True)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value as JSON."""

    def plain(other: Any) -> Any:
        return other.tolist() if isinstance(other, np.ndarray) else str(other)  # str would cut a long array

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain).encode()).hexdigest()
