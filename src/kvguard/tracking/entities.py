"""Values as MLflow takes them: flat names in its characters, finite numbers, texts that are not too long."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param

T = TypeVar("T")

_BATCH = 100  # MLflow takes at most this many params and tags, and 1000 metrics, in one call
_LONGEST_PARAM = 6000


def metric_list(values: Mapping[str, Any], step: int = 0) -> list[Metric]:
    """Return the finite numbers among nested values."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    numbers = {key: float(value) for key, value in _flat(values).items() if isinstance(value, Real)}
    return [Metric(safe(key), value, now, step) for key, value in numbers.items() if math.isfinite(value)]


def param_list(values: Mapping[str, Any]) -> list[Param]:
    """Return nested values as texts."""
    from mlflow.entities import Param

    return [Param(safe(key), str(value)[:_LONGEST_PARAM]) for key, value in _flat(values).items()]


def in_batches(items: list[T]) -> Iterator[list[T]]:
    """Cut what is logged into as much as one call takes."""
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def safe(key: str) -> str:
    """Return ``key`` in the characters MLflow allows in names."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in key)[:250]


def one_line(error: Exception) -> str:
    """Return what an error says, short and in one line."""
    return " ".join(str(error).split())[:200]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
