"""A Prometheus histogram that takes many values at once: one call for a step, however many rows it has."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry


class ArrayHistogram(Collector):
    """Counts of values up to each of some bounds; NaN is not counted.

    Parameters
    ----------
    bounds
        Ascending; one without end is added.
    label
        A name and its value.
    """

    def __init__(
        self,
        name: str,
        about: str,
        bounds: Sequence[float],
        label: tuple[str, str],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._about, self._label = name, about, label
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._counts, self._sum = np.zeros(len(bounds) + 1, dtype=np.int64), 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: NDArray[np.floating]) -> None:
        """Count some values. [n]"""
        known = values[~np.isnan(values)]
        if not len(known):
            return
        places = np.searchsorted(self._bounds, known)  # the first bound that is not below: le
        counts = np.bincount(places, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(known.sum(dtype=np.float64))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield it as it stands, for a scrape."""
        with self._lock:
            counts, total = np.cumsum(self._counts).tolist(), self._sum
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        name, value = self._label
        family = HistogramMetricFamily(self._name, self._about, labels=[name])
        family.add_metric([value], list(zip(bounds, counts, strict=True)), total)
        yield family
