"""What a request took: seconds, kept KV entries, and the memory that the endpoint says it holds meanwhile."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from typing import Any

import httpx

from kv_transition.engines.base import Reply

# Gauges of bytes that endpoints tell at /metrics.
MEMORY_GAUGES = ("kvguard:kv_bytes",)
_EVERY_S = 0.5
_GAUGE = re.compile(
    rf"^({'|'.join(map(re.escape, MEMORY_GAUGES))})(?:\{{.*\}})? ([0-9.eE+-]+)$", re.MULTILINE
)


class MemoryWatch:
    """Reads an endpoint's memory now and then, and as soon as a request has its first token.

    It ends by itself where an endpoint tells none; one that does not answer in time is asked again.
    """

    def __init__(self, client: httpx.Client, base_url: str) -> None:
        self._client, self._url = client, f"{base_url.rstrip('/').removesuffix('/v1')}/metrics"
        self._found: deque[tuple[float, float]] = deque(maxlen=100_000)
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._wake.set()
        self._thread.join(5)

    def look(self) -> None:
        """Read it now: something has begun."""
        self._wake.set()

    def peak(self, start: float, end: float) -> float | None:
        """Return the most bytes read between two times of ``time.monotonic``, None if none were."""
        return max((held for at, held in list(self._found) if start <= at <= end), default=None)

    def _watch(self) -> None:
        while not self._end.is_set():
            at = time.monotonic()
            with contextlib.suppress(httpx.HTTPError):
                held = self._read()
                if held is None:
                    return
                self._found.append((at, held))
            self._wake.wait(_EVERY_S)
            self._wake.clear()

    def _read(self) -> float | None:
        answer = self._client.get(self._url, timeout=5)
        held = [float(value) for _, value in _GAUGE.findall(answer.text)] if answer.is_success else []
        return sum(held) if held else None


def measured(reply: Reply, memory: float | None) -> dict[str, Any]:
    """Return the telemetry of a reply; what nobody told is None.

    Seconds of prefill and decode are the server's own where it tells them, else what lies before and after
    the first piece of text.
    """
    told = reply.told
    timings, kept = told.get("timings") or {}, (told.get("kvguard") or {}).get("kv_tokens") or {}
    prefill, decode = _seconds(timings, "prompt_ms"), _seconds(timings, "predicted_ms")
    if prefill is None and reply.ttft_s is not None:
        prefill, decode = reply.ttft_s, reply.latency_s - reply.ttft_s
    return {
        "latency_s": reply.latency_s,
        "ttft_s": reply.ttft_s,
        "prefill_s": prefill,
        "decode_s": decode,
        "kv_prompt": kept.get("prompt"),
        "kv_kept": kept.get("kept"),
        "kv_peak": kept.get("peak"),
        "memory_bytes": memory,
        "raw": dict(told),
    }


def _seconds(timings: Any, name: str) -> float | None:
    value = timings.get(name) if isinstance(timings, dict) else None
    return value / 1000 if isinstance(value, int | float) else None
