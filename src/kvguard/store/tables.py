"""Atomic, schema-checked writing and reading of the stored tables.

A table is rejected where it breaks its schema, both when written and when read, in one line that names
the file, the column and the row. Files are Parquet with zstd, page checksums and no timestamps: the same
frames give the same bytes. A file is written under a temporary name, synced and renamed, so a path either
holds a complete table or nothing new.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq

from kvguard.engine.columns import LOGPROBS as LOGPROBS
from kvguard.engine.columns import SIGNALS as SIGNALS
from kvguard.errors import KvguardError
from kvguard.guard.columns import FEATURES as FEATURES
from kvguard.store.schemas import TABLES, arrow_schema, check_table, fix
from kvguard.store.schemas import V1_ONLY as V1_ONLY
from kvguard.store.schemas import conform as conform

ROW_GROUP = 1 << 18
_TEMPORARY = ".kvguard-tmp"
_ARROW_KEYS = {b"ARROW:schema", b"pandas"}


def as_stored(kind: str, frame: pd.DataFrame, path: Path, first_row: int = 0) -> arrow.Table:
    """Return ``frame`` as it would be written to ``path``: who is about to make what costs hours asks first.

    Raises
    ------
    KvguardError
        The frame breaks the schema: file, column, row.
    """
    columns = TABLES[kind].columns
    for name in columns:
        if name not in frame.columns:
            raise KvguardError(f"{path} ({kind} table): column {name} is missing")
    check_table(kind, frame, path, first_row)
    try:
        return arrow.Table.from_pandas(frame, arrow_schema(kind, columns), preserve_index=False)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, UnicodeEncodeError) as error:
        reason = " ".join(str(error).split())
        raise KvguardError(f"{path} ({kind} table): {reason[:300]}") from error


class TableWriter:
    """Appends checked frames to a table that is being written; made by :func:`open_table`."""

    def __init__(self, kind: str, path: Path, writer: pq.ParquetWriter) -> None:
        self._kind, self._path, self._writer = kind, path, writer
        self.n_rows = 0

    def write(self, frame: pd.DataFrame) -> None:
        """Check ``frame`` and append its rows, in row groups of at most ``ROW_GROUP``."""
        table = as_stored(self._kind, frame, self._path, self.n_rows)
        self._writer.write_table(table.replace_schema_metadata(self._writer.schema.metadata), ROW_GROUP)
        self.n_rows += len(frame)


@contextmanager
def open_table(kind: str, path: Path, metadata: Mapping[str, str] | None = None) -> Iterator[TableWriter]:
    """Open ``path`` for writing a table of ``kind`` piece by piece; it appears only if the block succeeds.

    Raises
    ------
    KvguardError
        A frame breaks the schema, or the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    schema = arrow_schema(kind, TABLES[kind].columns).with_metadata(dict(metadata or {}))
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            writer = pq.ParquetWriter(
                file, schema, compression="zstd", use_dictionary=False, write_page_checksum=True
            )
            try:
                yield TableWriter(kind, path, writer)
            finally:
                writer.close()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise KvguardError(
            f"cannot write {path}: {reason}; free some space or fix its permissions"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed writer left in ``folder``."""
    for leftover in Path(folder).glob(f"*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def write_table(
    kind: str, frame: pd.DataFrame, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Check ``frame`` against the schema of ``kind`` and write it to ``path`` atomically.

    ``frame`` has exactly the schema's columns, in order and in their dtypes (see :func:`conform`).

    Raises
    ------
    KvguardError
        The frame breaks the schema, or the file cannot be written; nothing is left behind.
    """
    with open_table(kind, path, metadata) as writer:
        writer.write(frame)


@contextmanager
def _opened(kind: str | None, path: Path) -> Iterator[pq.ParquetFile]:
    again = fix(kind) if kind else "make it again"
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError as error:
        raise KvguardError(f"{path} does not exist; {again}") from error
    except (arrow.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise KvguardError(f"{path} is unreadable or truncated ({reason}); {again}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a table was written with."""
    with _opened(None, Path(path)) as file:
        found = file.metadata.metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key not in _ARROW_KEYS}


def count_rows(path: Path) -> int:
    """Return the number of rows of a table, from its footer."""
    with _opened(None, Path(path)) as file:
        return cast(int, file.metadata.num_rows)


def iter_table(kind: str, path: Path, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """Yield a stored table row group by row group; checks as in :func:`read_table`, duplicates per group."""
    path = Path(path)
    first_row = 0
    with _opened(kind, path) as file:
        names = _requested(kind, path, file.schema_arrow, columns)
        for group in range(file.num_row_groups):
            frame = _to_frame(file.read_row_group(group, columns=names), kind)
            check_table(kind, frame, path, first_row)
            first_row += len(frame)
            yield frame


def read_table(kind: str, path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a stored table and check it; its columns may be read-only, so copy before changing values.

    Parameters
    ----------
    columns
        The columns to read, all by default; they come in the schema's order.

    Raises
    ------
    KvguardError
        The file is missing, unreadable or truncated, or breaks the schema: file, column and row.
    """
    path = Path(path)
    with _opened(kind, path) as file:
        names = _requested(kind, path, file.schema_arrow, columns)
        frame = _to_frame(file.read(columns=names), kind)
    check_table(kind, frame, path)
    return frame


def _requested(kind: str, path: Path, schema: arrow.Schema, columns: Sequence[str] | None) -> list[str]:
    known = TABLES[kind].columns
    for name in columns or ():
        if name not in known:
            raise KvguardError(f"{kind} table has no column {name}; it has {', '.join(known)}")
    for name, column in known.items():
        if name not in schema.names:
            raise KvguardError(f"{path} ({kind} table): column {name} is missing; {fix(kind)}")
        if not schema.field(name).type.equals(column.type):
            found = f"type is {schema.field(name).type}, expected {column.type}"
            raise KvguardError(f"{path} ({kind} table): column {name}: {found}; {fix(kind)}")
    for name in schema.names:
        if name not in known:
            raise KvguardError(f"{path} ({kind} table): column {name} is not in the schema; {fix(kind)}")
    return [name for name in known if columns is None or name in columns]


def _to_frame(table: arrow.Table, kind: str) -> pd.DataFrame:
    nullable = {arrow.int32(): pd.Int32Dtype(), arrow.bool_(): pd.BooleanDtype()}
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = TABLES[kind].columns[name]
        values = table.column(name)
        mapper = nullable.get if column.nullable else None
        columns[name] = values.to_pandas(types_mapper=mapper)
    return pd.DataFrame(columns, copy=False)


def read_tokens(generate_dir: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read all ``tokens-*.parquet`` of a folder, ordered by (trace_id, t).

    Parameters
    ----------
    columns
        The columns to read besides trace_id and t, all by default.
    """
    paths = token_paths(generate_dir)
    names = None if columns is None else ["trace_id", "t", *columns]
    frames = [read_table("tokens", path, names) for path in paths]
    trace_id = np.concatenate([frame["trace_id"].to_numpy() for frame in frames]).astype(np.int64)
    t = np.concatenate([frame["t"].to_numpy() for frame in frames])
    order = np.argsort((trace_id << 32) | t, kind="stable")
    # Column by column, so that never more than one column stands in memory twice.
    ordered = {}
    for name in list(frames[0].columns):
        ordered[name] = np.concatenate([frame.pop(name).to_numpy() for frame in frames])[order]
    return pd.DataFrame(ordered, copy=False)


def token_paths(generate_dir: Path) -> list[Path]:
    """Return the token files of a folder in order of name.

    Raises
    ------
    KvguardError
        There is none.
    """
    paths = sorted(Path(generate_dir).glob("tokens-*.parquet"))
    if not paths:
        raise KvguardError(f"{generate_dir} holds no tokens-*.parquet; {fix('tokens')}")
    return paths
