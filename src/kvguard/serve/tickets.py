"""What is asked of the scheduler, text by text, and what it tells while that is generated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvguard.engine.presses import Condition
from kvguard.engine.sampling import Sampler
from kvguard.guard.settings import Action
from kvguard.serve.errors import Rejected
from kvguard.serve.trail import Seen

if TYPE_CHECKING:
    from kvpress import BasePress

    from kvguard.engine.stops import StopStrings
    from kvguard.guard.actions import Guarded
    from kvguard.serve.guarding import Course


@dataclass(frozen=True)
class Ask:
    """One text to generate.

    Attributes
    ----------
    press
        Makes its press, which is its own: presses keep state.
    action, guarded
        What it does in SAFE; and whether its answer tells what the guard saw.
    streamed
        Its tokens are told as they come, and once told they stay.
    traced
        With each of them what was seen of it.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    condition: Condition
    press: Callable[[], BasePress | None]
    action: Action
    guarded: bool
    sampler: Sampler
    stops: StopStrings | None
    streamed: bool
    traced: bool = False


@dataclass(frozen=True)
class Tokens:
    """The next tokens of a streamed text, and what was seen of each if that is traced."""

    ids: list[int]
    seen: Sequence[Seen] = ()


@dataclass(frozen=True)
class Done:
    """A text has ended.

    Attributes
    ----------
    kept
        Cache entries that its press left of its prompt, a mean over layers and heads.
    seen
        Of the tokens that have not been told yet, if they are traced.
    """

    found: Guarded
    course: Course
    kept: float
    seen: Sequence[Seen] = ()


Update = Tokens | Done | Rejected


@dataclass(eq=False)
class Ticket:
    """An ask on its way; its updates come to ``inbox`` with its number, the last one Done or Rejected.

    Attributes
    ----------
    arrived, deadline
        By ``time.monotonic``.
    request_id
        Of the request that it belongs to.
    cancelled
        Nobody waits for it any more; may be set from any thread.
    entries
        Cache entries counted for it, see :class:`~kvguard.serve.room.Room`.
    """

    ask: Ask
    number: int
    inbox: asyncio.Queue[tuple[int, Update]]
    arrived: float
    deadline: float
    request_id: str = ""
    cancelled: bool = False
    entries: float = 0.0
    last_token: float = 0.0
