"""Results on disk, one by one: a file of JSON lines that is only ever appended to.

The first line says of what run. A block of examples and arms is announced before it begins, and each of its
results is on disk before the next is asked for. A run that was killed at any point reads the file, drops a
last line that is not whole, and makes those blocks again that are not; what they already hold stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kvguard.errors import KvguardError

Key = tuple[str, str]  # example and arm
Block = tuple[Key, ...]

NAME = "results.jsonl"
_FIX = "go on with the settings of then, or name another folder with --out"


class Journal:
    """The results of a run, in a folder.

    Parameters
    ----------
    folder : Path
    settings : mapping
        What all results depend on, as JSON: a journal of other settings is rejected.

    Attributes
    ----------
    rows : dict
        The results so far, by example and arm.
    notes : list of dict
        What each run so far said about itself last.

    Raises
    ------
    KvguardError
        Another run is writing to the folder, or its journal is damaged or of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise KvguardError(
                f"{folder}: another run writes there: wait for it, or name another folder with --out"
            ) from None
        try:
            self._blocks: list[Block] = []
            self.rows: dict[Key, dict[str, Any]] = {}
            self.notes: list[dict[str, Any]] = []
            wanted = json.loads(json.dumps(settings))
            found = self._read()
            if found is not None:
                _check_same(self.path, found, wanted)
            self._file = self.path.open("a", encoding="utf-8")
            if found is None:
                self._write({"settings": wanted})
            self._number = len(self.notes)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.release()

    @property
    def unfinished(self) -> list[Block]:
        """Blocks that were begun, and of which a result is missing."""
        return [block for block in self._blocks if any(key not in self.rows for key in block)]

    def begin(self, block: Sequence[Key]) -> None:
        """Announce a block."""
        if tuple(block) not in self._blocks:
            self._blocks.append(tuple(block))
            self._write({"block": list(block)})

    def add(self, row: Mapping[str, Any]) -> None:
        """Store a result; it is on disk when this returns."""
        key = row["key"], row["arm"]
        if key in self.rows:
            raise ValueError(f"{key}: stored twice")
        self.rows[key] = dict(row)
        self._write(row)

    def note(self, said: Mapping[str, Any]) -> None:
        """Store what this run says about itself, in place of what it said before."""
        self.notes[self._number :] = [dict(said)]
        self._write({"note": said, "run": self._number})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> dict[str, Any] | None:
        """Read what is there, and cut off what a killed run left unfinished; return its settings."""
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        settings, self._blocks, self.rows, self.notes = parse(self.path, whole)
        return settings


Parsed = tuple[dict[str, Any] | None, list[Block], dict[Key, dict[str, Any]], list[dict[str, Any]]]


def parse(path: Path, content: bytes) -> Parsed:
    """Return a journal's settings, blocks, results and notes.

    Raises
    ------
    KvguardError
        A line of it is none of a journal's.
    """
    settings, blocks, rows = None, list[Block](), dict[Key, dict[str, Any]]()
    notes: list[dict[str, Any]] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            if "settings" in entry:
                settings = entry["settings"]
            elif "block" in entry:
                blocks.append(tuple((key, arm) for key, arm in entry["block"]))
            elif "note" in entry:
                notes[entry["run"] :] = [entry["note"]]
            else:
                rows[entry["key"], entry["arm"]] = entry
        except (ValueError, KeyError, TypeError):
            raise KvguardError(
                f"{path}: line {number} is damaged: delete it and all that follow, and run again"
            ) from None
    if rows and settings is None:
        raise KvguardError(f"{path}: it does not say of what run it is: name another folder with --out")
    return settings, blocks, rows, notes


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the settings, the results and the notes of a run, whether it has ended or not.

    Raises
    ------
    KvguardError
        There are none, or they are damaged.
    """
    path = folder / NAME
    if not path.is_file():
        raise KvguardError(
            f"{folder} holds no results of kvguard instructions: run it with --out {folder} first"
        )
    content = path.read_bytes()
    settings, _, rows, notes = parse(path, content[: content.rfind(b"\n") + 1])
    if settings is None:
        raise KvguardError(f"{path}: no result yet: run it again")
    return settings, list(rows.values()), notes


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise KvguardError(
                f"{path}: was made with {name} {_short(found.get(name))}, not {_short(wanted.get(name))}: "
                f"{_FIX}"
            )


def _short(value: Any) -> str:
    said = json.dumps(value)
    return said if len(said) < 60 else f"{said[:56]}...{said[-1]}"
