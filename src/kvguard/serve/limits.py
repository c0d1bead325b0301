"""What one server lets its clients do."""

from __future__ import annotations

from dataclasses import dataclass

from kvguard.guard.settings import Action

ACTIONS = (Action.NONE, Action.RESTORE, Action.ROLLBACK, Action.RESTART)  # those that a server can take


@dataclass(frozen=True)
class Limits:
    """Bounds on requests and on what is under way.

    Attributes
    ----------
    kv_bytes
        Of cache entries that rows may come to hold; None: no bound.
    rows, queue
        Texts generated together, and those that wait for it.
    timeout
        Seconds that a request may take from its arrival.
    body, n, prompts
        Bytes of a request, its ``n``, and its prompts times ``n``.
    per_key
        Requests under way that generate, of one key; None: no bound.
    piece
        Tokens of a prompt that are prefilled between two steps, where its press allows pieces.
    hold_back
        Tokens of a stream that are kept from its client while a rewind may still take them back; None: as
        many as its guard needs to be sure of an alarm.
    choosing
        Requests may name compressor, ratio, guard, action and operating point of their own.
    """

    kv_bytes: int | None = None
    rows: int = 32
    queue: int = 256
    timeout: float = 600.0
    body: int = 4 << 20
    n: int = 8
    per_key: int | None = None
    piece: int = 512
    hold_back: int | None = None
    choosing: bool = False
