"""What is asked of the scheduler, text by text, and what it tells while that is generated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvguard.engine.presses import Condition
from kvguard.engine.sampling import Sampler, greedy
from kvguard.guard.settings import Action
from kvguard.serve.errors import Rejected
from kvguard.serve.room import NOTHING, Need
from kvguard.serve.trail import Seen

if TYPE_CHECKING:
    from kvpress import BasePress

    from kvguard.engine.stops import StopStrings
    from kvguard.guard.actions import Guarded
    from kvguard.guard.certificate import Certified
    from kvguard.guard.controller import ControllerParams
    from kvguard.serve.drifting import Place
    from kvguard.serve.guarding import Course
    from kvguard.serve.logprobs import Said


@dataclass(frozen=True)
class Guarding:
    """How a text is guarded.

    Attributes
    ----------
    point, params
        The operating point, by name; None: the text's answer does not tell what the guard saw.
    held
        Its newest tokens that a stream does not have yet, since a rewind may still take them back.
    """

    action: Action = Action.NONE
    point: str | None = None
    params: ControllerParams | None = None
    held: int = 0


@dataclass(frozen=True)
class Ask:
    """One text to generate.

    Attributes
    ----------
    press
        Makes its press, which is its own: presses keep state.
    streamed
        Its tokens are told as they come, and once told they stay.
    traced
        With each of them what was seen of it.
    logprobs, prompt_logprobs
        With how many of the likeliest tokens its log-probabilities are told, and those of its prompt; None:
        they are not.
    echo
        What its answer begins with: its prompt, or nothing.
    silent
        It has no tokens, and only its prompt is asked about: the one that is drawn is not told.
    covered
        The certified setting that it is, where the server keeps to a policy.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    condition: Condition
    press: Callable[[], BasePress | None]
    guarding: Guarding
    stops: StopStrings | None
    streamed: bool
    sampler: Sampler = greedy
    traced: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: str = ""
    silent: bool = False
    covered: Certified | None = None

    @property
    def action(self) -> Action:
        """What it does in SAFE."""
        return self.guarding.action

    @property
    def guarded(self) -> bool:
        """Whether its answer tells what the guard saw."""
        return self.guarding.point is not None


@dataclass(frozen=True)
class Tokens:
    """The next tokens of a streamed text, with their log-probabilities and what was seen of each if asked."""

    ids: list[int]
    said: Sequence[Said] = ()
    seen: Sequence[Seen] = ()


@dataclass(frozen=True)
class Done:
    """A text has ended.

    Attributes
    ----------
    kept
        Cache entries that its press left of its prompt, a mean over layers and heads.
    said, seen
        The log-probabilities that have not been told yet, and what was seen of those tokens, if asked.
    """

    found: Guarded
    course: Course
    kept: float
    said: Sequence[Said] = ()
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
    place
        Its place in the order of arrival.
    need
        Cache entries that it may hold.
    preempted
        How often it was taken back, to begin again, since a restore of an older text needed its room.
    sent
        Tokens that its client has from before it was preempted: it comes to them again.
    drift
        Its place among the texts in which a drift is looked for.
    """

    ask: Ask
    number: int
    inbox: asyncio.Queue[tuple[int, Update]]
    arrived: float
    deadline: float
    request_id: str = ""
    cancelled: bool = False
    last_token: float = 0.0
    place: int = 0
    need: Need = NOTHING
    preempted: int = 0
    sent: tuple[int, ...] = ()
    drift: Place | None = None

    @property
    def entries(self) -> float:
        """Cache entries counted for it at first; one that was preempted shall find room for its restore."""
        return self.need.restored if self.preempted else self.need.compressed

    def came_to(self, tokens: Sequence[int]) -> bool:
        """Tell whether it has come again to the tokens that were sent."""
        return tuple(tokens[: len(self.sent)]) == self.sent


def unsaid(found: Guarded) -> Guarded:
    """Return what became of a text without its tokens: that of one that was asked for none."""
    told = {
        name: getattr(found, name)[:0] for name in ("token_ids", "signals", "hazard", "states", "kv_tokens")
    }
    return replace(found, stop_reason="length", **told)
