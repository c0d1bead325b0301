"""What is told of a stream's tokens one by one: hazard, state, cache entries, and what the guard did."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from kvguard.guard.actions import Event
from kvguard.guard.controller import State

ALARM = "alarm"  # what happened to a token that brought an alarm to which nothing was done


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one token.

    Attributes
    ----------
    hazard, state
        None where nothing is watched, or the hazard is unknown.
    kv_tokens
        Cache entries held when it was drawn, a mean over layers and heads.
    events
        What its alarm brought, and the rewinds after which it was drawn.
    """

    hazard: float | None
    state: str | None
    kv_tokens: float
    events: tuple[Event, ...]

    def told(self) -> dict[str, Any]:
        """Return it as clients get it; ``events`` only where there are any."""
        found = {"hazard": self.hazard, "state": self.state, "kv_tokens": self.kv_tokens}
        return found | ({"events": [asdict(event) for event in self.events]} if self.events else {})


class Trail:
    """The tokens of one stream as far as they stand; a rewind takes some back and is told with the next."""

    def __init__(self, guarded: bool) -> None:
        self.seen: list[Seen] = []
        self._guarded, self._alarms, self._pending = guarded, 0, list[Event]()

    def add(self, hazard: float, state: int, held: float, alarms: int, event: Event | None) -> None:
        """Take the next token.

        Parameters
        ----------
        alarms
            Those of its text so far.
        event
            What was done after this token.
        """
        t, events, self._pending = len(self.seen), self._pending, []
        if not self._guarded:
            self.seen.append(Seen(None, None, round(held, 2), ()))
            return
        if event is not None:
            events.append(event)
        elif alarms > self._alarms:
            events.append(Event(t, ALARM, t + 1))
        self._alarms = alarms
        risk = None if math.isnan(hazard) else round(hazard, 4)
        self.seen.append(Seen(risk, State(state).name.lower(), round(held, 2), tuple(events)))
        if event is not None and event.kept <= t:
            gone = self.seen[event.kept :]
            del self.seen[event.kept :]
            self._pending = [each for token in gone for each in token.events]

    def told(self, begin: int, end: int) -> list[Seen]:
        """Return what was seen of the tokens from ``begin`` to ``end``; nothing if they are not traced."""
        return self.seen[begin:end]
