"""The one thread that owns the model: texts join and leave one batch between its steps.

Between two steps at most one prompt is prefilled and compressed, alone, by a press of its own. What waits
starts in order of arrival, as soon as there is a row and room for all the entries that it may come to hold.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from kvguard.engine.batch import Batch
from kvguard.engine.memory import out_of_memory
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import attention_for
from kvguard.engine.requests import Request
from kvguard.errors import KvguardError
from kvguard.guard.actions import Guarded, GuardedStep
from kvguard.guard.settings import GuardParams
from kvguard.serve.errors import Rejected
from kvguard.serve.guarding import Course, ServedRun
from kvguard.serve.limits import Limits
from kvguard.serve.room import Room
from kvguard.serve.tickets import Done, Ticket, Tokens, Update
from kvguard.serve.trail import Seen, Trail

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvguard.guard.watch import Watch
    from kvguard.serve.metrics import Metrics

_log = logging.getLogger(__name__)

Told = list[tuple[Ticket, Update]]


@dataclass
class _Row:
    """A text under way."""

    ticket: Ticket
    course: Course
    kept: float
    tokens: list[int] = field(default_factory=list)  # of a stream: what it has, sent or not
    trail: Trail | None = None  # of a stream that is traced

    def seen(self, begin: int, end: int | None = None) -> Sequence[Seen]:
        """Return what was seen of some tokens, if they are traced."""
        return self.trail.seen[begin:end] if self.trail is not None else ()


class Scheduler:
    """Generates what tickets ask for.

    Parameters
    ----------
    watch
        Makes the watch of a new batch.
    deliver
        Called in the scheduler's thread with what is new; must not block.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        watch: Callable[[], Watch],
        params: GuardParams,
        limits: Limits,
        metrics: Metrics,
        deliver: Callable[[Told], None],
    ) -> None:
        self._model, self._watch, self._params, self._limits = model, watch, params, limits
        self._metrics, self._deliver = metrics, deliver
        self.room = Room(model, limits.kv_bytes, params.resume)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()  # guarded by _changed; all below is the thread's own
        self._stopping = False
        self._told: Told = []
        self._steps: Iterator[GuardedStep] | None = None
        self._thread = threading.Thread(target=self._serve, name="kvguard-scheduler", daemon=True)
        self._begin()

    def _begin(self) -> None:
        """Start with an empty batch."""
        self._batch = Batch(self._model, self._limits.rows)
        self._run = ServedRun(self._batch, self._watch(), self._params)
        self._end_steps()
        self._rows: dict[int, _Row] = {}
        self.room.taken = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was submitted, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Let texts wait for their turn, all of them or none.

        Raises
        ------
        Rejected
            The queue is full, a text could never have room, or the server stops.
        """
        for ticket in tickets:
            ask = ticket.ask
            ticket.entries = self.room.entries(len(ask.ids), ask.max_new_tokens, ask.press(), ask.action)
            if ticket.entries > self.room.limit:
                raise Rejected(
                    f"this request may hold {ticket.entries:.0f} cache entries, and the server has room for "
                    f"{self.room.limit:.0f}: shorten the prompt, or ask for fewer tokens",
                    param="max_tokens",
                    code="context_length_exceeded",
                )
        with self._changed:
            if self._stopping:
                raise _stopped()
            if len(self._waiting) + len(tickets) > self._limits.queue:
                message = f"{len(self._waiting)} texts wait already: try again later, or with fewer prompts"
                raise Rejected(message, status=429, code="queue_full", retry_after=1)
            self._waiting.extend(tickets)
            self._changed.notify()

    def _serve(self) -> None:
        try:
            while self._wait():
                try:
                    with torch.inference_mode():
                        self._turn()
                except Exception as error:
                    self._collapse(error)
                self._metrics.load(len(self._rows), self._n_waiting(), self.room, self._bytes())
                self._hand_over()
        finally:  # with something left only where not even an empty batch could be begun again
            with self._changed:
                self._stopping = True
                self._told += [(ticket, _stopped()) for ticket in self._waiting]
                self._waiting.clear()
            self._hand_over()

    def _wait(self) -> bool:
        """Wait for something to do; tell whether there is any, or the end has come."""
        with self._changed:
            while not (self._waiting or self._rows or self._stopping):
                self._changed.wait()
            return bool(self._waiting or self._rows)

    def _n_waiting(self) -> int:
        with self._changed:
            return len(self._waiting)

    def _hand_over(self) -> None:
        told, self._told = self._told, []
        self._deliver(told)

    def _turn(self) -> None:
        """Let one text in, if it may, and draw one token of every row."""
        self._admit()
        if not self._rows:
            return
        self._steps = self._steps or self._run.steps()
        self._tell(next(self._steps))
        self._end_rows()
        self._batch.clear()  # now, so that their room is free and their end is told before the next step
        for row, found in self._run.collect().items():
            self._finish(row, found)
        if not self._rows:
            self._end_steps()

    def _end_steps(self) -> None:
        """Let go of the loop, and so put the model's own attention back."""
        if isinstance(self._steps, Generator):
            self._steps.close()
        self._steps = None

    def _admit(self) -> None:
        """Prefill the next text that waits, if there is a row and room for it."""
        now = time.monotonic()
        with self._changed:
            late = [ticket for ticket in self._waiting if ticket.deadline <= now]
            gone = {*late, *(ticket for ticket in self._waiting if ticket.cancelled)}
            if gone:
                self._waiting = deque(ticket for ticket in self._waiting if ticket not in gone)
            ticket = self._waiting[0] if self._waiting else None
            if ticket is not None and self._has_room(ticket.entries):
                self._waiting.popleft()
            else:
                ticket = None
        self._told += [(each, _late(self._limits)) for each in late]
        if ticket is None:
            return
        try:
            self._add(ticket)
        except KvguardError as error:
            self._told.append((ticket, Rejected(str(error), param="prompt")))
        except Exception as error:
            _log.exception("a prompt of %d tokens could not be prefilled", len(ticket.ask.ids))
            self._told.append((ticket, _broken(error)))

    def _has_room(self, entries: float) -> bool:
        return len(self._rows) < self._limits.rows and self.room.taken + entries <= self.room.limit

    def _add(self, ticket: Ticket) -> None:
        """Prefill and compress a prompt, and let it join the batch at the next step."""
        ask, press = ticket.ask, ticket.ask.press()
        prompt = torch.tensor(ask.ids, device=self._model.device)
        done = prefill(self._model, prompt, {ask.condition: press}, attention_for(press))
        cache = done.kept[ask.condition]
        request = Request(
            prompt,
            ask.max_new_tokens,
            ask.eos_ids,
            done.logits,
            cache,
            stop=ask.stops.start() if ask.stops is not None else None,
            sampler=ask.sampler,
            key=0,  # chance is a matter of the sampler's seed alone
            keep_cache=self._params.resume,
        )
        course = Course(ask.action, ask.condition.ratio if press is not None else 0.0)
        row = self._run.add(request, course)
        trail = Trail(ask.guarded) if ask.traced else None
        self._rows[row] = _Row(ticket, course, cache.n_kept, trail=trail)
        self.room.taken += ticket.entries

    def _tell(self, step: GuardedStep) -> None:
        """Send the step's tokens of the streams, but for those that a rewind may take back."""
        now = time.monotonic()
        self._metrics.step(step.hazard, self._run, self.room.bytes_per_entry)
        for slot, number in enumerate(step.row.tolist()):
            row = self._rows[number]
            if step.valid[slot]:
                self._metrics.token(row.ticket, now)
            if not row.ticket.ask.streamed or not step.valid[slot]:
                continue
            row.tokens.append(int(step.token[slot]))
            event = step.events.get(number)
            if event is not None:
                del row.tokens[event.kept :]
            if row.trail is not None:
                hazard, held = float(step.hazard[slot]), float(self._run.held[slot])
                row.trail.add(hazard, int(step.state[slot]), held, row.course.alarms, event)
            if not step.left[slot]:
                held = self._limits.hold_back if row.course.action.rewinds else 0
                safe = max(row.course.sent, len(row.tokens) - held)
                if safe > row.course.sent:
                    fresh = Tokens(row.tokens[row.course.sent : safe], row.seen(row.course.sent, safe))
                    self._told.append((row.ticket, fresh))
                row.course.sent = safe

    def _end_rows(self) -> None:
        """End the rows that nobody waits for, and those that are late."""
        now = time.monotonic()
        for number, row in self._rows.items():
            if row.ticket.deadline <= now and not row.ticket.cancelled:
                self._told.append((row.ticket, _late(self._limits)))
                row.ticket.cancelled = True
            if row.ticket.cancelled:
                self._batch.cancel(number)

    def _finish(self, number: int, found: Guarded) -> None:
        row = self._rows.pop(number)
        self.room.taken = self.room.taken - row.ticket.entries if self._rows else 0.0
        self._metrics.finished(row.ticket, found, row.course)
        if found.stop_reason == "invalid":
            message = f"the model's logits after {len(found.token_ids)} tokens are NaN"
            self._told.append((row.ticket, Rejected(message, status=500, code="invalid_logits")))
        elif found.stop_reason != "cancelled":
            done = Done(found, row.course, row.kept, row.seen(row.course.sent))
            self._told.append((row.ticket, done))

    def _collapse(self, error: Exception) -> None:
        """Fail all rows, and go on with an empty batch."""
        _log.exception("a step of %d rows failed", len(self._rows))
        self._told += [(row.ticket, _broken(error)) for row in self._rows.values()]
        self._begin()

    def _bytes(self) -> int:
        return self._batch.cache.nbytes if self._rows and hasattr(self._batch, "cache") else 0


def _stopped() -> Rejected:
    return Rejected("the server is stopping", status=503, retry_after=5)


def _late(limits: Limits) -> Rejected:
    return Rejected(
        f"not done within {limits.timeout:g} seconds: ask for fewer tokens, or try again later",
        status=504,
        code="timeout",
    )


def _broken(error: Exception) -> Rejected:
    if isinstance(error, RuntimeError) and out_of_memory(error):
        return Rejected("the server's memory ran out", status=503, code="out_of_memory", retry_after=5)
    return Rejected("the server failed; its log says why", status=500, code="internal_error")
