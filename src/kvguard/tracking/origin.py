"""Where a run comes from: revision and stage, the hashes of what it read and wrote."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kvguard.errors import KvguardError
from kvguard.tracking.entities import one_line, safe
from kvguard.tracking.place import workspace

if TYPE_CHECKING:
    from mlflow.entities import Dataset


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a directory."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def origin() -> dict[str, str]:
    """Say where a run comes from: git revision, DVC stage and experiment."""
    revision, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    tags = {"git.revision": revision, "git.dirty": "" if revision is None else str(bool(status)).lower()}
    for key in ("DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        tags[key.lower().replace("_", ".", 1)] = os.environ.get(key)
    return {key: value for key, value in tags.items() if value}


def input_hashes(inputs: Iterable[Path]) -> dict[str, str]:
    """Look up what dvc.lock of this workspace recorded for each input, or for the folder it lies in."""
    inputs = list(inputs)
    if not inputs:
        return {}
    try:
        lock = workspace() / "dvc.lock"
        recorded = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].values()
    except (KvguardError, OSError, KeyError, TypeError, yaml.YAMLError):
        return {}
    hashes = {out["path"]: str(out.get("md5", "")) for stage in recorded for out in stage.get("outs", [])}
    tags = {}
    for path in map(relative, inputs):
        for candidate in (path, *map(str, Path(path).parents)):
            if candidate in hashes:
                tags[f"input.{safe(candidate)}"] = hashes[candidate]
                break
    return tags


def relative(path: Path) -> str:
    """Return a path as seen from the current folder, where it lies in it."""
    absolute, here = path.absolute(), Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else absolute.as_posix()


def dataset(name: str, path: Path) -> Dataset:
    """Describe a Parquet file: its path, schema, rows and digest."""
    import pyarrow.parquet as pq
    from mlflow.entities import Dataset
    from pyarrow import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            n_rows, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, ArrowException) as error:
        raise KvguardError(
            f"{path} is missing, unreadable or truncated ({one_line(error)}); make it again with `dvc repro`"
        ) from error
    columns = [{"name": field.name, "type": str(field.type)} for field in schema]
    return Dataset(
        name=name,
        digest=digest(path)[:32],
        source_type="local",
        source=json.dumps({"uri": str(path.absolute())}),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps({"num_rows": n_rows}),
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
