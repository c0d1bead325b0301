"""Runs: what a stage logs, and the numbers that an earlier one logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvguard.errors import KvguardError
from kvguard.tracking.entities import in_batches, metric_list, one_line, param_list, safe
from kvguard.tracking.origin import dataset, digest, input_hashes, origin, relative
from kvguard.tracking.place import database_of, repository_root, tracking_uri
from kvguard.tracking.store import EXPERIMENT, client_of, open_store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from xgboost import Booster, XGBModel

Trial = tuple[str, Mapping[str, Any], Mapping[str, Any]]  # its name, params and metrics


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
        for batch in in_batches(metric_list(metrics, step)):
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
            self.client.log_batch(child, metrics=metric_list(metrics), params=param_list(params))
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
        self.client.log_inputs(self.id, [DatasetInput(dataset(name, path), [tag])])

    def log_outputs(self, paths: Iterable[Path]) -> None:
        """Tag the run with the SHA-256 of each output; DVC knows its own hashes only after the stage."""
        self._tag({f"output.{safe(relative(path))}": digest(path) for path in paths})

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

        for batch in in_batches([RunTag(key, value) for key, value in tags.items()]):
            self.client.log_batch(self.id, tags=batch)

    def _log_params(self, params: Mapping[str, Any]) -> None:
        for batch in in_batches(param_list(params)):
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
    client, experiment = open_store(root)
    import mlflow

    subject = {"stage": stage, "model": model, "protocol": protocol}
    tags = {key: value for key, value in subject.items() if value}
    mlflow.set_experiment(experiment_id=experiment)
    # The context manager ends the run FAILED (or KILLED) on its own when the body raises.
    everything = {**origin(), **input_hashes(inputs), **tags}
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
    database = database_of(uri)
    if database is not None and not database.is_file():
        raise KvguardError(f"MLflow store {uri}: does not exist, so nothing was tracked yet: {again}")
    client = client_of(uri)
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
            f"MLflow store {uri}: {one_line(error)}: fix it or set MLFLOW_TRACKING_URI"
        ) from error
    if not found:
        raise KvguardError(
            f"MLflow store {uri}: no finished run of {stage} for model {model}, protocol {protocol}: {again}"
        )
    return dict(found[0].data.metrics)


def _run_name(tags: Mapping[str, str]) -> str:
    return "-".join(tags.values())
