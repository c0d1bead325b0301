"""What the server counts, in Prometheus' format; the names are vLLM's under a prefix of our own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kvguard.serve.drifting import Drifts
from kvguard.serve.histogram import ArrayHistogram

if TYPE_CHECKING:
    from kvguard.guard.actions import Guarded
    from kvguard.serve.guarding import Course, ServedRun
    from kvguard.serve.room import Room
    from kvguard.serve.tickets import Ticket

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SHARES = tuple(step / 10 for step in range(1, 11))
_RISKS = (0.01, 0.02, 0.05, *_SHARES)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server; may be used from any thread."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._drifts = Drifts()
        self._model = model
        self._running = self._make(Gauge, "num_requests_running", "Texts under way.")
        self._waiting = self._make(Gauge, "num_requests_waiting", "Texts that wait.")
        self._usage = self._make(
            Gauge, "kv_cache_usage_perc", "Entries counted for rows, of the limit (1 = full)."
        )
        self._taken = self._make(Gauge, "kv_bytes", "Bytes that the cache takes.")
        self._held = self._make(Gauge, "kv_bytes_held", "Bytes of the cache entries that texts hold.")
        self._spared = self._make(
            Gauge, "kv_bytes_saved", "Bytes that their full caches would hold beyond that."
        )
        self._first = self._make(
            Histogram, "time_to_first_token_seconds", "Arrival to first token.", _SECONDS
        )
        self._next = self._make(Histogram, "inter_token_latency_seconds", "Token to token.", _SECONDS)
        self._whole = self._make(Histogram, "e2e_request_latency_seconds", "Arrival to end.", _SECONDS)
        self._prompt = self._make(Counter, "prompt_tokens", "Tokens of prompts, once for every text.")
        self._generated = self._make(Counter, "generation_tokens", "Tokens drawn, those rewound too.")
        self._alarms = self._make(Counter, "alarms", "Texts reached SAFE.")
        self._restores = self._make(Counter, "restores", "Full caches brought back without a rewind.")
        self._rewinds = self._make(Counter, "rewinds", "Texts rewound.")
        self._preempted = self._make(
            Counter, "num_preemptions", "Texts taken back to make room for a restore."
        )
        self._saved = self._make(
            Histogram, "kv_saved", "Share of KV memory saved, a mean over a text.", _SHARES
        )
        self._hazard = self._make(Histogram, "hazard_max", "Highest hazard of a text.", _SHARES)
        self._hazards = ArrayHistogram(
            "kvguard:token_hazard", "Hazard of each token.", _RISKS, ("model_name", model), self._registry
        )
        self._drift = {
            name: Gauge(f"kvguard:drift_{name}", about, ["model_name", "setting"], registry=self._registry)
            for name, about in {
                "texts": "Texts of a certified setting that were compared with its calibration.",
                "log10_wealth": "What a gambler against their likeness has won, in powers of ten.",
                "told": "1 once he has won enough: the texts do not look like the calibration's.",
            }.items()
        }
        self._success = Counter(
            "kvguard:request_success",
            "Texts that ended.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )

    def _make(self, kind: type, name: str, about: str, buckets: tuple[float, ...] | None = None) -> Any:
        how: dict[str, Any] = {} if buckets is None else {"buckets": buckets}
        metric = kind(f"kvguard:{name}", about, ["model_name"], registry=self._registry, **how)
        return metric.labels(self._model)

    def load(self, running: int, waiting: int, room: Room, nbytes: int) -> None:
        """Say what is under way."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._usage.set(room.taken / room.limit)
        self._taken.set(nbytes)
        if not running:
            self._held.set(0)
            self._spared.set(0)

    def step(self, hazard: NDArray[np.float32], run: ServedRun, bytes_per_entry: float) -> None:
        """Count a step: the hazards of its tokens, and what its rows hold."""
        self._hazards.observe(hazard)
        held, full = float(run.held.sum()), float(run.full.sum())
        self._held.set(held * bytes_per_entry)
        self._spared.set((full - held) * bytes_per_entry)

    def token(self, ticket: Ticket, now: float) -> None:
        """Count a token that was drawn now, by ``time.monotonic``."""
        if ticket.last_token:
            self._next.observe(now - ticket.last_token)
        else:
            self._first.observe(now - ticket.arrived)
            self._prompt.inc(len(ticket.ask.ids))
        ticket.last_token = now
        self._generated.inc()

    def began(self, ticket: Ticket) -> None:
        """Give a text that begins its place among those of its certified setting."""
        ticket.drift = ticket.drift or self._drifts.begin(ticket.ask.covered)

    def lost(self, tickets: Iterable[Ticket]) -> None:
        """Forget texts that will never end."""
        for ticket in tickets:
            self._drifts.end(ticket.drift, None)

    def preempted(self) -> None:
        """Count a text that was taken back."""
        self._preempted.inc()

    def finished(self, ticket: Ticket, found: Guarded, course: Course) -> None:
        """Count a text that has ended, for whatever reason."""
        self._whole.observe(time.monotonic() - ticket.arrived)
        self._success.labels(self._model, found.stop_reason).inc()
        self._alarms.inc(course.alarms)
        self._restores.inc(sum(event.what == "restore" for event in found.events))
        self._rewinds.inc(sum(event.what in ("rollback", "restart") for event in found.events))
        self._saved.observe(found.kv_saved)
        known = found.hazard[~np.isnan(found.hazard)]
        if len(known):
            self._hazard.observe(float(known.max()))
        self._drifts.end(ticket.drift, found)
        self._tell_drifts()

    def _tell_drifts(self) -> None:
        """Say how likely it is that texts no longer look like those that certified their setting."""
        for setting, drift in self._drifts.found.items():
            log10 = drift.log_wealth / math.log(10)
            for name, value in {
                "texts": drift.n,
                "log10_wealth": log10,
                "told": float(drift.drifted),
            }.items():
                self._drift[name].labels(self._model, setting).set(value)

    def text(self) -> bytes:
        """Return all of them, as Prometheus scrapes them."""
        return generate_latest(self._registry)
