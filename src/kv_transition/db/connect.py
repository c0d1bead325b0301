"""Opening the database of record: WAL, foreign keys, its schema brought up to date, one harness at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kv_transition.db import migrations
from kv_transition.paths import Paths
from kvguard.errors import KvguardError


@contextlib.contextmanager
def held(paths: Paths) -> Iterator[sqlite3.Connection]:
    """Open the database of a group for writing, and make it where there is none; nobody else may meanwhile.

    Raises
    ------
    KvguardError
        Another harness works on it, it is no database, or a newer version of this package made it.
    """
    paths.database.parent.mkdir(parents=True, exist_ok=True)
    with _locked(paths), contextlib.closing(connect(paths.database, make=True)) as connection:
        migrations.migrate(connection)
        yield connection


def connect(path: Path, make: bool = False) -> sqlite3.Connection:
    """Open a database; without ``make`` for reading alone.

    Raises
    ------
    KvguardError
        It is not there, is no database, or a newer version of this package made it.
    """
    if not make and not path.is_file():
        raise KvguardError(f"{path}: no such database: run `kv-transition prepare` first")
    where = str(path) if make else f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(where, uri=not make, timeout=60)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        if make:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # what is committed survives a power cut too
        found = migrations.version(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise KvguardError(f"{path}: {error}: move it away, or name another file in db.path") from None
    if found > migrations.NEWEST:
        connection.close()
        raise KvguardError(
            f"{path}: its schema is of version {found}, this package knows {migrations.NEWEST}: update the "
            "package"
        )
    if not make and found < migrations.NEWEST:
        connection.close()
        raise KvguardError(
            f"{path}: its schema is of version {found}: `kv-transition analyze` brings it to "
            f"{migrations.NEWEST}"
        )
    connection.row_factory = sqlite3.Row
    return connection


@contextlib.contextmanager
def _locked(paths: Paths) -> Iterator[None]:
    """Hold the lock of a database; the kernel lets go of it however the process ends."""
    with paths.lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise KvguardError(
                f"{paths.database}: {_named(file.read())} works on it: wait for its end, or stop it"
            ) from None
        file.truncate(0)
        command = " ".join(["kv-transition", *sys.argv[1:]])
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        json.dump({**holder, "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        file.flush()
        yield


def _named(content: str) -> str:
    """Say who holds a lock, from what stands in it."""
    try:
        holder = json.loads(content)
        return "`{command}` (process {pid} on {host}, since {since})".format(**holder)
    except (ValueError, KeyError, TypeError):
        return "another harness"
