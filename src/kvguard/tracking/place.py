"""Where the repository lies, and its store: MLFLOW_TRACKING_URI, else ``mlflow.db`` at the repository root.

Whichever folder a stage runs in: DVC runs queued experiments in copies of the repository and says in DVC_ROOT
where it lies.
"""

from __future__ import annotations

import os
from pathlib import Path

from kvguard.errors import KvguardError


def repository_root(start: Path | None = None) -> Path:
    """Return the real repository root: DVC_ROOT, else the nearest folder above ``start`` with a dvc.yaml."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    return workspace(start)


def workspace(start: Path | None = None) -> Path:
    """Return the nearest folder at or above ``start`` with a dvc.yaml.

    Raises
    ------
    KvguardError
        There is none.
    """
    here = (start or Path()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise KvguardError(
        f"{here}: no dvc.yaml here or above, so no place for MLflow's store: run in the repository, "
        "or set DVC_ROOT to it"
    )


def tracking_uri(start: Path | None = None) -> str:
    """Return MLFLOW_TRACKING_URI, else the SQLite database at the repository root.

    Raises
    ------
    KvguardError
        MLFLOW_TRACKING_URI names no SQLite file though it begins with sqlite, or no URI leads to the file.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named and not named.startswith("sqlite"):
        return named
    return sqlite_uri(_named_file(named) if named else repository_root(start) / "mlflow.db")


def database_of(uri: str) -> Path | None:
    """Return the file of a store that :func:`tracking_uri` returned; None if it is not SQLite's."""
    from sqlalchemy.engine import make_url

    return Path(str(make_url(uri).database)) if uri.startswith("sqlite") else None


def sqlite_uri(database: Path) -> str:
    """Return the URI that leads MLflow to an absolute path, whatever characters it has.

    Raises
    ------
    KvguardError
        There is none.
    """
    from sqlalchemy.engine import make_url

    path = str(database)
    escaped = path.replace("%", "%25").replace("?", "%3F")
    # The driver is named only with escapes: without it MLflow makes a folder of the escaped name.
    for uri in (f"sqlite:///{path}", f"sqlite+pysqlite:///{escaped}"):
        url = make_url(uri)
        if url.database == path and not url.query:
            return uri
    raise KvguardError(
        f"{path!a}: MLflow can keep no store in a folder of this name: rename it, or set MLFLOW_TRACKING_URI"
    )


def _named_file(uri: str) -> Path:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError:
        url = None
    if url is None or "?" in uri or url.database in (None, "", ":memory:"):
        raise KvguardError(
            f"MLFLOW_TRACKING_URI {uri}: names no SQLite file: write sqlite:////folder/mlflow.db, "
            "a ? in it as %3F and a % as %25"
        )
    return Path(url.database).absolute()
