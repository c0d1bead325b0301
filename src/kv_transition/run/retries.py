"""Patience: what passes by itself is asked again, with growing waits; what does not, is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)

from kv_transition.engines.base import Passing, Reply, Trouble
from kv_transition.settings import Retries


@dataclass(frozen=True)
class Outcome:
    """What became of a request: a reply, or the trouble of its last attempt; what went before it."""

    reply: Reply | None
    trouble: Trouble | None
    attempts: int
    retries: tuple[str, ...]


def patiently(ask: Callable[[], Reply], settings: Retries, ended: threading.Event) -> Outcome:
    """Ask until there is a reply, a trouble that stays, no attempt left, or all has ``ended``.

    A server's `Retry-After` is a wait's least, up to ``max_wait_s``.
    """
    waits = wait_random_exponential(multiplier=settings.wait_s, max=settings.max_wait_s)
    said: list[str] = []

    def wait(state: RetryCallState) -> float:
        trouble = state.outcome.exception() if state.outcome else None
        asked = getattr(trouble, "retry_after", None) or 0.0
        return min(max(waits(state), asked), settings.max_wait_s)

    retrying = Retrying(
        stop=stop_after_attempt(settings.attempts) | stop_when_event_set(ended),
        sleep=sleep_using_event(ended),
        wait=wait,
        retry=retry_if_exception_type(Passing),
        before_sleep=lambda state: said.append(_said(state)),
        reraise=True,
    )
    try:
        reply = retrying(ask)
    except Trouble as trouble:
        return Outcome(None, trouble, len(said) + 1, tuple(said))
    return Outcome(reply, None, len(said) + 1, tuple(said))


def _said(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return str(error)[:200]
