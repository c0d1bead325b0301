"""Runs, parameters, metrics, tables and models in MLflow: the only room that talks to it."""

from kvguard.tracking.origin import digest
from kvguard.tracking.place import repository_root, tracking_uri
from kvguard.tracking.runs import Run, Trial, latest_metrics, run

__all__ = ["Run", "Trial", "digest", "latest_metrics", "repository_root", "run", "tracking_uri"]
