"""The one thread that owns the model: texts join and leave one batch between its steps.

Between two steps a piece of one prompt is prefilled, or prompts that are whole in one; each is compressed
alone, by its own press.
What waits starts in order of arrival, as soon as there is a row, and room for the entries that it may come
to hold compressed. A restore that finds no room takes it from the youngest texts: they begin again later, and
come to the same tokens.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from kvguard.engine.batch import Batch
from kvguard.engine.prefill import Prefill, Prefilling
from kvguard.engine.presses import attention_for
from kvguard.engine.requests import Request
from kvguard.errors import KvguardError
from kvguard.guard.actions import Guarded, GuardedStep
from kvguard.guard.settings import GuardParams
from kvguard.serve.drafts import Draft
from kvguard.serve.errors import Rejected, broken, diverged, late
from kvguard.serve.guarding import Course, ServedRun, unwatched
from kvguard.serve.limits import Limits
from kvguard.serve.logprobs import PromptReader, Said, read_some
from kvguard.serve.room import Room
from kvguard.serve.tickets import Done, Ticket, Tokens, Update, unsaid
from kvguard.serve.waiting import Waiting, stopped

if TYPE_CHECKING:
    from kvpress import BasePress
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
    entries: float  # counted for it
    draft: Draft
    preempted: bool = False


@dataclass
class _Filling:
    """A prompt that is being prefilled."""

    ticket: Ticket
    press: BasePress | None
    prompt: torch.Tensor
    work: Prefilling
    reader: PromptReader | None
    entries: float


class Scheduler:
    """Generates what tickets ask for.

    Parameters
    ----------
    watch
        Makes the watch of a new batch; None: nothing is watched.
    deliver
        Called in the scheduler's thread with what is new; must not block.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        watch: Callable[[], Watch] | None,
        params: GuardParams,
        limits: Limits,
        metrics: Metrics,
        deliver: Callable[[Told], None],
    ) -> None:
        self._model, self._watch, self._params, self._limits = model, watch, params, limits
        self._metrics, self._deliver = metrics, deliver
        self.room = Room(model, limits.kv_bytes, params.resume)
        self._waiting = Waiting(limits.queue)
        self._told: Told = []  # this and all below is the thread's own
        self._steps: Iterator[GuardedStep] | None = None
        self._thread = threading.Thread(target=self._serve, name="kvguard-scheduler", daemon=True)
        self._begin()

    def _begin(self) -> None:
        """Start with an empty batch."""
        self._batch = Batch(self._model, self._limits.rows, reads=self._watch is not None)
        watch = self._watch() if self._watch is not None else unwatched()
        self._run = ServedRun(self._batch, watch, self._params, self._claim)
        self._end_steps()
        self._rows: dict[int, _Row] = {}
        self._filling: _Filling | None = None
        self.room.taken = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was submitted, and end."""
        self._waiting.stop()
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
            ticket.need = self.room.need(len(ask.ids), ask.max_new_tokens, ask.press(), ask.action)
            if ticket.need.restored > self.room.limit:
                raise Rejected(
                    f"this request may hold {ticket.need.restored:.0f} cache entries, and the server has "
                    f"room for {self.room.limit:.0f}: shorten the prompt, or ask for fewer tokens",
                    param="max_tokens",
                    code="context_length_exceeded",
                )
        self._waiting.add(tickets)

    def _serve(self) -> None:
        try:
            while self._waiting.wait(bool(self._rows or self._filling)):
                try:
                    with torch.inference_mode():
                        self._turn()
                except Exception as error:
                    self._collapse(error)
                self._metrics.load(len(self._rows), len(self._waiting), self.room, self._bytes())
                self._hand_over()
        finally:  # with something left only where not even an empty batch could be begun again
            self._told += [(ticket, stopped()) for ticket in self._waiting.empty()]
            self._hand_over()

    def _hand_over(self) -> None:
        told, self._told = self._told, []
        self._deliver(told)

    def _turn(self) -> None:
        """Prefill of what may come in, and draw one token of every row."""
        self._drop()
        self._prefill()
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

    def _drop(self) -> None:
        """Let go of what waits, or is prefilled, for nobody or for too long."""
        now = time.monotonic()
        overdue = self._waiting.sort_out(now)
        filling = self._filling
        if filling is not None and (filling.ticket.cancelled or filling.ticket.deadline <= now):
            overdue += [filling.ticket] * (not filling.ticket.cancelled)
            self._let_go(filling)
        self._told += [(each, late(self._limits.timeout)) for each in overdue]

    def _let_go(self, filling: _Filling) -> None:
        self._filling = None
        self._give_up(filling.entries)

    def _give_up(self, entries: float) -> None:
        """Count no longer what a text would have held."""
        self.room.taken = self.room.taken - entries if self._rows or self._filling else 0.0

    def _prefill(self) -> None:
        """Prefill one piece, or as many prompts as are whole in one."""
        left = self._limits.piece
        self._filling = self._filling or self._next()
        while (filling := self._filling) is not None:
            self._fill(filling)
            if self._filling is not None:
                return
            left -= len(filling.ticket.ask.ids)
            self._filling = self._next(left)

    def _next(self, longest: float = math.inf) -> _Filling | None:
        """Begin the prefill of the next text that waits, if there is a row and room for it.

        A prompt of more tokens than ``longest`` waits for the next turn.
        """
        if len(self._rows) >= self._limits.rows:
            return None
        ticket = self._waiting.take(
            lambda ticket: ticket.entries <= self.room.left and len(ticket.ask.ids) <= longest
        )
        if ticket is None:
            return None
        ask, press = ticket.ask, ticket.ask.press()
        prompt = torch.tensor(ask.ids, device=self._model.device)
        try:
            how = {ask.condition: press}
            work = Prefilling(self._model, prompt, how, attention_for(press), self._limits.piece)
        except Exception as error:
            self._fail(ticket, error)
            return None
        n_top, entries = ask.prompt_logprobs, ticket.entries
        reader = PromptReader(self._model, prompt, n_top) if n_top is not None else None
        self.room.taken += entries
        return _Filling(ticket, press, prompt, work, reader, entries)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        """Tell that a prompt could not be prefilled."""
        if isinstance(error, KvguardError):
            self._told.append((ticket, Rejected(str(error), param="prompt")))
        else:
            _log.error("a prompt of %d tokens could not be prefilled", len(ticket.ask.ids), exc_info=error)
            self._told.append((ticket, broken(error)))

    def _fill(self, filling: _Filling) -> None:
        """Prefill one piece; after the last one the text joins the batch at the next step."""
        joining = [filling]
        try:
            with filling.reader or nullcontext():
                done = filling.work.step()
            if done is None:
                return
            self._filling = None
            joining += self._twins(filling)
            while joining:
                self._add(joining[0], done)
                del joining[0]
        except Exception as error:
            self._filling = None
            for each in joining:
                self._give_up(each.entries)
                self._fail(each.ticket, error)

    def _twins(self, filling: _Filling) -> list[_Filling]:
        """Take the other texts of a prompt that wait next and find room: one prefill serves them all."""
        ticket, twins = filling.ticket, list[_Filling]()
        while len(self._rows) + 1 + len(twins) < self._limits.rows:
            twin = self._waiting.take(
                lambda other: other.ask.ids is ticket.ask.ids and other.entries <= self.room.left
            )
            if twin is None:
                break
            self.room.taken += twin.entries
            twins.append(replace(filling, ticket=twin, entries=twin.entries))
        return twins

    def _add(self, filling: _Filling, done: Prefill) -> None:
        """Let a text join the batch at the next step."""
        ticket, ask = filling.ticket, filling.ticket.ask
        cache = done.kept[ask.condition]
        request = Request(
            filling.prompt,
            ask.max_new_tokens,
            ask.eos_ids,
            done.logits,
            cache,
            stop=ask.stops.start() if ask.stops is not None else None,
            sampler=ask.sampler,
            key=0,  # chance is a matter of the sampler's seed alone
            keep_cache=self._params.resume and ask.action.restores,
        )
        ratio = ask.condition.ratio if filling.press is not None else 0.0
        course = Course(ask.action, ratio, ask.guarding.params)
        draft = Draft(ask, filling.reader.said if filling.reader else ())
        row = self._run.add(request, course)
        self._metrics.began(ticket)
        self._rows[row] = _Row(ticket, course, cache.n_kept, filling.entries, draft)

    def _claim(self, number: int) -> bool:
        """Count what a row will hold once it is restored; where there is no room the youngest make it.

        Rows that leave after this step have made theirs.
        """
        if number in self._leaving():
            return False
        row = self._rows[number]
        more = row.ticket.need.restored - row.entries
        while more > self.room.left + sum(self._rows[left].entries for left in self._leaving()):
            going = self._rows.keys() - self._leaving()
            youngest = max(going, key=lambda each: self._rows[each].ticket.place)
            self._rows[youngest].preempted = True
            self._batch.cancel(youngest)
            if youngest == number:
                return False
        row.entries += more
        self.room.taken += more
        return True

    def _leaving(self) -> set[int]:
        return set(self._batch.row[self._batch.leaving].tolist())

    def _tell(self, step: GuardedStep) -> None:
        """Send the step's tokens of the streams, but for those that a rewind may take back."""
        now, said = time.monotonic(), self._read(step)
        self._metrics.step(step.hazard, self._run, self.room.bytes_per_entry)
        for slot, number in enumerate(step.row.tolist()):
            if not step.valid[slot]:
                continue
            row, event = self._rows[number], step.events.get(number)
            self._metrics.token(row.ticket, now)
            if not row.ticket.ask.streamed and slot not in said:
                continue
            row.draft.add(int(step.token[slot]), said.get(slot))
            if row.draft.trail is not None:
                hazard, held = float(step.hazard[slot]), float(self._run.held[slot])
                row.draft.trail.add(hazard, int(step.state[slot]), held, row.course.alarms, event)
            if event is not None:
                row.draft.rewind(event.kept)
            if row.ticket.ask.streamed and not step.left[slot]:
                self._send(row)

    def _read(self, step: GuardedStep) -> dict[int, Said]:
        """Return the log-probabilities of the step's tokens, by slot, where they are asked for."""
        asked = {
            slot: most
            for slot, number in enumerate(step.row.tolist())
            if step.valid[slot] and (most := self._rows[number].ticket.ask.logprobs) is not None
        }
        return read_some(self._batch.logits, step.token, asked) if asked else {}

    def _send(self, row: _Row) -> None:
        """Send what of a stream is safe, and new to its client."""
        ticket, draft, course = row.ticket, row.draft, row.course
        safe = max(course.sent, len(draft.tokens) - ticket.ask.guarding.held)
        first, course.sent = max(course.sent, len(ticket.sent)), safe
        if safe <= first or ticket.cancelled:
            return
        if ticket.came_to(draft.tokens):
            fresh = Tokens(draft.tokens[first:safe], draft.said(first, safe), draft.seen(first, safe))
            self._told.append((ticket, fresh))
        else:
            ticket.cancelled = True
            self._told.append((ticket, diverged()))

    def _end_rows(self) -> None:
        """End the rows that nobody waits for, and those that are late."""
        now = time.monotonic()
        for number, row in self._rows.items():
            if row.ticket.deadline <= now and not row.ticket.cancelled:
                self._told.append((row.ticket, late(self._limits.timeout)))
                row.ticket.cancelled = True
            if row.ticket.cancelled:
                self._batch.cancel(number)

    def _finish(self, number: int, found: Guarded) -> None:
        row = self._rows.pop(number)
        ticket = row.ticket
        self._give_up(row.entries)
        if row.preempted and not ticket.cancelled:
            self._take_back(row)
            return
        self._metrics.finished(ticket, found, row.course)
        if found.stop_reason == "invalid":
            message = f"the model's logits after {len(found.token_ids)} tokens are NaN"
            self._told.append((ticket, Rejected(message, status=500, code="invalid_logits")))
        elif not ticket.cancelled and not ticket.came_to(found.token_ids.tolist()):
            self._told.append((ticket, diverged()))
        elif found.stop_reason != "cancelled":
            found = unsaid(found) if ticket.ask.silent else found
            begin = max(row.course.sent, len(ticket.sent))
            said, seen = row.draft.said(begin), row.draft.seen(begin, len(found.token_ids))
            self._told.append((ticket, Done(found, row.course, row.kept, said, seen)))

    def _take_back(self, row: _Row) -> None:
        """Let a text that was preempted wait again, before all that came after it."""
        ticket = row.ticket
        ticket.preempted += 1
        ticket.sent = max(ticket.sent, tuple(row.draft.tokens[: row.course.sent]), key=len)
        self._metrics.preempted()
        self._waiting.put_back(ticket)

    def _collapse(self, error: Exception) -> None:
        """Fail all rows, and go on with an empty batch."""
        _log.exception("a step of %d rows failed", len(self._rows))
        self._told += [(row.ticket, broken(error)) for row in self._rows.values()]
        self._metrics.lost(row.ticket for row in self._rows.values())
        if self._filling is not None:
            self._told.append((self._filling.ticket, broken(error)))
        self._begin()

    def _bytes(self) -> int:
        return self._batch.cache.nbytes if self._rows and hasattr(self._batch, "cache") else 0
