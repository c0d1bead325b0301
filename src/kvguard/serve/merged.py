"""The metrics of all replicas as those of one server: each with the label ``replica``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from kvguard.serve.replicas import Replica


def merged(replicas: Sequence[Replica], texts: Mapping[int, str]) -> bytes:
    """Return what Prometheus scrapes.

    Parameters
    ----------
    replicas
        Whose states are told, too.
    texts
        What the replicas that are up say, by their numbers.
    """
    registry = CollectorRegistry()
    registry.register(_Given([*_states(replicas), *_labelled(texts)]))
    return generate_latest(registry)


class _Given(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _states(replicas: Sequence[Replica]) -> Iterator[Metric]:
    up = GaugeMetricFamily("kvguard:replica_up", "Whether a replica answers.", labels=["replica"])
    starts = CounterMetricFamily("kvguard:replica_starts", "Starts of its process.", labels=["replica"])
    busy = GaugeMetricFamily("kvguard:replica_requests", "Requests it was given.", labels=["replica"])
    for one in replicas:
        label = [str(one.number)]
        up.add_metric(label, float(one.up))
        starts.add_metric(label, one.starts)
        busy.add_metric(label, one.under_way)
    yield from (up, starts, busy)


def _labelled(texts: Mapping[int, str]) -> Iterable[Metric]:
    families: dict[str, Metric] = {}
    for number, text in texts.items():
        for family in text_string_to_metric_families(text):
            kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {"replica": str(number), **sample.labels}
                kept.add_sample(sample.name, labels, sample.value)
    return families.values()
