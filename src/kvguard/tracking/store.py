"""The store, opened: it takes writes, has the experiment, and its artifacts lie beside its database."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from kvguard.errors import KvguardError
from kvguard.tracking.entities import one_line
from kvguard.tracking.place import database_of, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

EXPERIMENT = "kvguard"
_FIX = "make it writable, or set MLFLOW_TRACKING_URI"
_ARTIFACTS = "mlruns"
_TAGS = {"project": "kvguard", "mlflow.experimentKind": "custom_model_development"}
_LOCATIONS = (  # where MLflow's tables say where artifacts lie
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def open_store(start: Path | None = None) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id.

    In an SQLite store that was moved or copied with its ``mlruns/``, all artifact locations follow.

    Raises
    ------
    KvguardError
        The store takes no writes.
    """
    uri = tracking_uri(start)
    database = database_of(uri)
    if database is None:
        client, experiment = _connect(uri, None)
        _check_location(experiment.artifact_location, uri)
        return client, experiment.experiment_id
    artifacts = database.resolve().parent / _ARTIFACTS
    location = _location(artifacts)
    _check_writable(database.parent)
    _check_database(database)
    _check_writable(artifacts)
    from filelock import FileLock

    # Two processes that create MLflow's tables at once break each other (3.17).
    with FileLock(artifacts / ".lock"):
        client, experiment = _connect(uri, location)
        if _left_behind(experiment.artifact_location, database.name, artifacts):
            _relocate(database, experiment.artifact_location, location)
        else:
            _check_location(experiment.artifact_location, uri)
    return client, experiment.experiment_id


def client_of(uri: str) -> MlflowClient:
    """Return MLflow's client of a store.

    Raises
    ------
    KvguardError
        MLflow cannot open it.
    """
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    try:
        return MlflowClient(uri)
    except Exception as error:  # the store's drivers raise errors of many libraries
        raise KvguardError(
            f"MLflow store {uri}: {one_line(error)}: fix it or set MLFLOW_TRACKING_URI"
        ) from error


def _connect(uri: str, artifacts: str | None) -> tuple[MlflowClient, Experiment]:
    # Else MLflow prints two lines on every trial that it sends to a server.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    client = client_of(uri)
    mlflow.set_tracking_uri(uri)
    try:
        experiment = _experiment(client, artifacts)
        for key, value in _TAGS.items():
            if experiment.tags.get(key) != value:
                client.set_experiment_tag(experiment.experiment_id, key, value)
    except Exception as error:  # the store's drivers raise errors of many libraries
        raise KvguardError(f"MLflow store {uri}: {one_line(error)}: {_FIX}") from error
    return client, experiment


def _experiment(client: MlflowClient, artifacts: str | None) -> Experiment:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(EXPERIMENT, artifacts))
        except MlflowException:  # another process of the queue may have been first
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    return found


def _location(artifacts: Path) -> str:
    """Return the URI of an artifact folder, from which MLflow finds its way back."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    uri = artifacts.as_uri()
    if local_file_uri_to_path(uri) != str(artifacts):
        raise KvguardError(f"{str(artifacts)!a}: MLflow cannot write to a folder of this name: rename it")
    return uri


def _left_behind(location: str, database: str, artifacts: Path) -> bool:
    """Tell whether artifacts still go to where the store lay before it was moved or copied."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    if not location.startswith("file:"):
        return False
    folder = Path(local_file_uri_to_path(location))
    if folder.name != _ARTIFACTS:
        return False
    if not folder.is_dir():
        return True
    return not folder.samefile(artifacts) and (folder.parent / database).is_file()


def _relocate(database: Path, old: str, new: str) -> None:
    """Let every location under ``old`` in the database begin with ``new``; MLflow itself changes none."""
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
            for table, column in _LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1)"
                    f" WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                    {"old": old, "new": new},
                )
    except sqlite3.Error as error:
        raise KvguardError(f"MLflow database {database}: {error}: {_FIX}") from None
    logging.getLogger("kvguard").warning(
        "MLflow store %s: was moved or copied: its artifacts are now those of %s, not of %s",
        database,
        new,
        old,
    )


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise KvguardError(f"MLflow folder {folder}: {error.strerror}: {_FIX}") from None


def _check_database(database: Path) -> None:
    """Ask SQLite itself: MLflow retries for minutes before it says that it cannot write."""
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        raise KvguardError(f"MLflow database {database}: {error}: {_FIX}") from None


def _check_location(location: str, uri: str) -> None:
    if location.startswith("file:"):
        from mlflow.utils.file_utils import local_file_uri_to_path

        folder = Path(local_file_uri_to_path(location))
        if not folder.is_dir():
            raise KvguardError(
                f"MLflow store {uri}: its artifact folder {folder} is gone: "
                "put it back, or move the store away to begin a new one"
            )
        _check_writable(folder)
