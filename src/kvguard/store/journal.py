"""Records that are added while a run goes on: what it had added when it was killed is found again.

A file of JSON Lines. Records are added in one write and synced; a line that a kill cut short is taken away
when the file is opened again. One process adds to a file at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvguard.errors import KvguardError


class Journal:
    """The records of a file, and those added since it was opened; made by :func:`open_journal`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = list(_whole(path))

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records, all of them or, where the process is killed meanwhile, the first."""
        lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        with self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records += map(dict, records)


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open a journal, or begin one.

    Raises
    ------
    KvguardError
        Another process adds to it, or it holds what is no record.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise KvguardError(f"{path}: another run adds to it: wait for it, or give another folder") from None
    try:
        yield Journal(path)
    finally:
        lock.release()


def _whole(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, and take away an end that is no whole line."""
    if not path.exists():
        path.touch()
    data = path.read_bytes()
    kept = data.rfind(b"\n") + 1
    if kept < len(data):
        with path.open("r+b") as file:
            file.truncate(kept)
    for number, line in enumerate(data[:kept].splitlines(), start=1):
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError):
            raise KvguardError(
                f"{path}, line {number}: no record: take the line out, or the file away"
            ) from None
