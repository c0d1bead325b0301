"""Runs, parameters, metrics, tables and models in MLflow: the only module that talks to it.

The store is MLFLOW_TRACKING_URI, else ``mlflow.db`` and ``mlruns/`` at the repository root, whichever folder
a stage runs in: DVC runs queued experiments in copies of the repository and says in DVC_ROOT where it lies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from kvguard.errors import KvguardError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, Metric, Param
    from xgboost import Booster, XGBModel

T = TypeVar("T")
Trial = tuple[str, Mapping[str, Any], Mapping[str, Any]]  # its name, params and metrics

EXPERIMENT = "kvguard"
_SQLITE = "sqlite:///"
_BATCH = 100  # MLflow takes at most this many params and tags, and 1000 metrics, in one call
_LONGEST_PARAM = 6000
_MEND = "make it writable, or set MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Run:
    """A run in progress, as ``run`` yields it."""

    client: MlflowClient
    id: str
    experiment: str
    root: Path
    tags: Mapping[str, str]

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Log numbers under dotted names; nested mappings are flattened, null, NaN and text are left out."""
        for batch in _batches(_metrics(metrics, step)):
            self.client.log_batch(self.id, metrics=batch)

    def log_trials(self, trials: Iterable[Trial]) -> None:
        """Log each trial of a search as a finished child run with this run's stage, model and protocol.

        Three calls a trial: a store's least. SQLite's commits take most of their time, tens of
        milliseconds a trial, so log them after the search and not within it.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        tags = {**self.tags, MLFLOW_PARENT_RUN_ID: self.id}
        for name, params, metrics in trials:
            child = self.client.create_run(self.experiment, tags=tags, run_name=name).info.run_id
            self.client.log_batch(child, metrics=_metrics(metrics), params=_params(params))
            self.client.set_terminated(child)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file, or every file of a directory."""
        log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        log(self.id, str(path), folder)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a matplotlib figure as an image called ``name``."""
        self.client.log_figure(self.id, figure, name)

    def log_table(self, name: str, path: Path, context: str = "input") -> None:
        """Log a Parquet file as an MLflow data set: its name, path, schema and digest."""
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        tag = InputTag(MLFLOW_DATASET_CONTEXT, context)
        self.client.log_inputs(self.id, [DatasetInput(_dataset(name, path), [tag])])

    def log_outputs(self, paths: Iterable[Path]) -> None:
        """Tag the run with the SHA-256 of each output; DVC knows its own hashes only after the stage."""
        self._tag({f"output.{_safe(_relative(path))}": digest(path) for path in paths})

    def log_model(self, model: Booster | XGBModel, example: pd.DataFrame, name: str) -> None:
        """Store an XGBoost model with signature and input example, as a new version of ``name``."""
        import mlflow
        import xgboost
        from mlflow.models import infer_signature

        output = (
            model.predict(xgboost.DMatrix(example))
            if isinstance(model, xgboost.Booster)
            else model.predict(example)
        )
        mlflow.xgboost.log_model(
            model,
            name="model",
            signature=infer_signature(example, output),
            input_example=example,
            registered_model_name=name,
            pip_requirements=[f"xgboost=={xgboost.__version__}"],
            model_format="json",
        )

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(key, value) for key, value in tags.items()]):
            self.client.log_batch(self.id, tags=batch)

    def _log_params(self, params: Mapping[str, Any]) -> None:
        for batch in _batches(_params(params)):
            self.client.log_batch(self.id, params=batch)


@contextmanager
def run(
    stage: str,
    *,
    model: str | None = None,
    protocol: str | None = None,
    params: Mapping[str, Any] | None = None,
    inputs: Iterable[Path] = (),
    start: Path | None = None,
) -> Iterator[Run]:
    """Track the body as one MLflow run; an exception marks it FAILED and goes on.

    Parameters
    ----------
    stage, model, protocol
        Tags, and together the run's name.
    params
        Logged under dotted names; nested mappings are flattened.
    inputs
        Files the stage reads; their DVC hashes become tags.
    start
        A file or folder of the repository; the current folder by default.

    Raises
    ------
    KvguardError
        Before the body runs, if the store cannot be written.
    """
    root = repository_root(start)
    client, experiment = _open(root)
    import mlflow

    subject = {"stage": stage, "model": model, "protocol": protocol}
    tags = {key: value for key, value in subject.items() if value}
    mlflow.set_experiment(experiment_id=experiment)
    # The context manager ends the run FAILED (or KILLED) on its own when the body raises.
    everything = {**_origin(), **_input_hashes(inputs), **tags}
    with mlflow.start_run(run_name=_run_name(tags), tags=everything) as active:
        tracked = Run(client, active.info.run_id, experiment, root, tags)
        tracked._log_params(params or {})
        yield tracked


def latest_metrics(stage: str, model: str, protocol: str, start: Path | None = None) -> dict[str, float]:
    """Return the metrics of the last finished run of a stage, under their dotted names.

    Raises
    ------
    KvguardError
        There is no store, or no such run in it.
    """
    uri = tracking_uri(start)
    again = f"run `dvc repro {stage}` (with --force if DVC finds nothing changed)"
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).is_file():
        raise KvguardError(f"MLflow store {uri}: does not exist, so nothing was tracked yet: {again}")
    client = _client(uri)
    tags = {"stage": stage, "model": model, "protocol": protocol}
    # Trials share their parent's tags, but not its name.
    wanted = {f"tags.{key}": value for key, value in tags.items()} | {
        "attributes.run_name": _run_name(tags),
        "attributes.status": "FINISHED",
    }
    condition = " AND ".join(f"{key} = '{value}'" for key, value in wanted.items())
    try:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        ids = [experiment.experiment_id] if experiment else []
        order = ["attributes.start_time DESC"]
        found = client.search_runs(ids, condition, max_results=1, order_by=order) if ids else []
    except Exception as error:  # the store's drivers raise errors of many libraries
        raise KvguardError(
            f"MLflow store {uri}: {_one_line(error)}: mend it or set MLFLOW_TRACKING_URI"
        ) from error
    if not found:
        raise KvguardError(
            f"MLflow store {uri}: no finished run of {stage} for model {model}, protocol {protocol}: {again}"
        )
    return dict(found[0].data.metrics)


def repository_root(start: Path | None = None) -> Path:
    """Return the real repository root: DVC_ROOT, else the nearest folder above ``start`` with a dvc.yaml."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    return _workspace(start)


def tracking_uri(start: Path | None = None) -> str:
    """Return MLFLOW_TRACKING_URI, else the SQLite database at the repository root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{repository_root(start) / 'mlflow.db'}"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a directory."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def _workspace(start: Path | None = None) -> Path:
    here = (start or Path()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise KvguardError(
        f"{here}: no dvc.yaml here or above, so no place for MLflow's store: run in the repository, "
        "or set DVC_ROOT to it"
    )


def _open(root: Path) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id, having checked that the store takes writes."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{root / 'mlflow.db'}"
    if not uri.startswith(_SQLITE):
        return _connect(uri, None)
    database = Path(uri.removeprefix(_SQLITE)).absolute()
    artifacts = database.parent / "mlruns"
    _check_writable(database.parent)
    _check_writable(artifacts)
    from filelock import FileLock

    # Two processes that create MLflow's tables at once break each other (3.17).
    with FileLock(artifacts / ".lock"):
        _check_database(database)
        return _connect(uri, artifacts.as_uri())


def _connect(uri: str, artifacts: str | None) -> tuple[MlflowClient, str]:
    # Else MLflow prints two lines on every trial that it sends to a server.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    mlflow.set_tracking_uri(uri)
    client = _client(uri)
    try:
        experiment = _experiment(client, artifacts)
        client.set_experiment_tag(experiment, "project", "kvguard")
        location = client.get_experiment(experiment).artifact_location
    except Exception as error:  # the store's drivers raise errors of many libraries
        raise KvguardError(f"MLflow store {uri}: {_one_line(error)}: {_MEND}") from error
    _check_location(location, uri)
    return client, experiment


def _client(uri: str) -> MlflowClient:
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _run_name(tags: Mapping[str, str]) -> str:
    return "-".join(tags.values())


def _experiment(client: MlflowClient, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return client.create_experiment(EXPERIMENT, artifacts)
        except MlflowException:  # another process of the queue may have been first
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    return str(found.experiment_id)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise KvguardError(f"MLflow folder {folder}: {error.strerror}: {_MEND}") from None


def _check_database(database: Path) -> None:
    """Ask SQLite itself: MLflow retries for minutes before it says that it cannot write."""
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        raise KvguardError(f"MLflow database {database}: {error}: {_MEND}") from None


def _check_location(location: str, uri: str) -> None:
    if location.startswith("file:"):
        from mlflow.utils.file_utils import local_file_uri_to_path

        folder = Path(local_file_uri_to_path(location))
        if not folder.is_dir():
            raise KvguardError(
                f"MLflow store {uri}: its artifact folder {folder} is gone (was the repository moved?): "
                "put it back, or move mlflow.db away to begin a new store"
            )
        _check_writable(folder)


def _origin() -> dict[str, str]:
    """Say where a run comes from: git revision, DVC stage and experiment."""
    revision, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    tags = {"git.revision": revision, "git.dirty": "" if revision is None else str(bool(status)).lower()}
    for key in ("DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        tags[key.lower().replace("_", ".", 1)] = os.environ.get(key)
    return {key: value for key, value in tags.items() if value}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _input_hashes(inputs: Iterable[Path]) -> dict[str, str]:
    """Look up what dvc.lock of this workspace recorded for each input, or for the folder it lies in."""
    inputs = list(inputs)
    if not inputs:
        return {}
    try:
        lock = _workspace() / "dvc.lock"
        recorded = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].values()
    except (KvguardError, OSError, KeyError, TypeError, yaml.YAMLError):
        return {}
    hashes = {out["path"]: str(out.get("md5", "")) for stage in recorded for out in stage.get("outs", [])}
    tags = {}
    for path in map(_relative, inputs):
        for candidate in (path, *map(str, Path(path).parents)):
            if candidate in hashes:
                tags[f"input.{_safe(candidate)}"] = hashes[candidate]
                break
    return tags


def _dataset(name: str, path: Path) -> Dataset:
    import pyarrow.parquet as pq
    from mlflow.entities import Dataset
    from pyarrow import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            n_rows, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, ArrowException) as error:
        raise KvguardError(
            f"{path} is missing, unreadable or truncated ({_one_line(error)}); make it again with `dvc repro`"
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


def _metrics(metrics: Mapping[str, Any], step: int = 0) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    numbers = {key: float(value) for key, value in _flat(metrics).items() if isinstance(value, Real)}
    return [Metric(_safe(key), value, now, step) for key, value in numbers.items() if math.isfinite(value)]


def _params(params: Mapping[str, Any]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(_safe(key), str(value)[:_LONGEST_PARAM]) for key, value in _flat(params).items()]


def _batches(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _relative(path: Path) -> str:
    absolute, here = path.absolute(), Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else absolute.as_posix()


def _safe(key: str) -> str:
    """Return ``key`` in the characters MLflow allows in names."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in key)[:250]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
