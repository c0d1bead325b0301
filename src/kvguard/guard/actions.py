"""The guard at work: watch every token of a batch, and act on the rows whose controller reaches SAFE.

It consumes the loop of :mod:`kvguard.engine.loop`; a row that acts does not stop the others. What a row
does when it reaches SAFE is its action:

``none``
    Nothing: the row is only watched.
``hold``
    Stop evicting while SAFE lasts. Needs a decode-time budget.
``restore``
    Recompute the full cache from the token ids in one prefill, and go on uncompressed.
``rollback``
    Restore, and also throw away the tokens that the trigger accuses, so that they are generated again: the
    row keeps those up to the last one whose hazard was below ``rewind_below`` (and below tau_low), up to its
    first complete answer where that is known, and up to the repetition that it is in, whichever is least.
``restart``
    Restore, and generate all tokens again.
``stop``
    End the text at its last complete answer: nothing is restored and nothing generated again. A text
    without one is rolled back.

A row that has used up its rewinds is restored only.

Once SAFE has been calm, ``GuardParams.resume`` says whether a restored row is compressed again. While ALERT
lasts, thinking tokens are exempt from eviction; that matters only under a decode-time budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvguard.engine.batch import Batch, Step
from kvguard.engine.growth import grown
from kvguard.engine.layers import full_entries, sliding_windows
from kvguard.engine.loop import decode_steps
from kvguard.engine.requests import Finished, Follower, Reason, Request
from kvguard.engine.signals import N_SIGNALS
from kvguard.guard.controller import State
from kvguard.guard.features import look_up
from kvguard.guard.settings import Action, GuardParams

if TYPE_CHECKING:
    from kvguard.engine.budget import Budget
    from kvguard.guard.answers import Answers
    from kvguard.guard.watch import Watch

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

NEVER = -1
_TOKENS = 64  # of every row: room for what is recorded of them at first


@dataclass(frozen=True)
class Event:
    """Something the guard did to a row after the token with index ``t``.

    ``what`` is an action, or ``resume`` when compression begins again; ``kept`` is how many generated tokens
    the row has afterwards.
    """

    t: int
    what: str
    kept: int


@dataclass(frozen=True)
class GuardedStep:
    """One token of every row under way, as :class:`~kvguard.engine.batch.Step` has them, judged.

    Attributes
    ----------
    row, t, token : ndarray
        [n]
    hazard, state : ndarray
        [n], NaN and the state before where the logits were NaN.
    left : ndarray
        [n] bool: this token is the row's last.
    valid : ndarray
        [n] bool
    events : dict
        {row: what was done to it after this token}.
    """

    row: Ints
    t: Ints
    token: Ints
    hazard: NDArray[np.float32]
    state: NDArray[np.uint8]
    left: Bools
    valid: Bools
    events: dict[int, Event]


@dataclass(frozen=True)
class Guarded:
    """What became of one row; arrays run over the tokens it ended with. [T]

    Attributes
    ----------
    signals : ndarray
        [T, 26]; NaN where the row began with a prefix.
    kv_tokens : ndarray
        Cache entries held when the token was drawn, a mean over layers and heads.
    stop_reason : str
        ``eos``, ``stop``, ``length``, ``guard``, ``cancelled``, or ``invalid`` (logits that are NaN).
    kv_saved : float
        The mean of 1 - held / full over all decoding steps, those of rewound tokens included; full is what
        the uncompressed model would hold.
    n_steps, n_rewound : int
        Tokens drawn, and those of them thrown away.
    safe_at : int
        How many tokens had been drawn before the one that first led to SAFE; ``NEVER`` if none did.
    """

    token_ids: NDArray[np.int32]
    signals: NDArray[np.float32]
    hazard: NDArray[np.float32]
    states: NDArray[np.uint8]
    kv_tokens: NDArray[np.float32]
    stop_reason: str
    events: tuple[Event, ...]
    kv_saved: float
    n_steps: int
    n_rewound: int
    safe_at: int


def saved(
    held: NDArray[np.float32], n_prompt: int, start: int, stop: int, windows: Sequence[int | None]
) -> float:
    """Return 1 - held / full, summed over the tokens ``start`` to ``stop`` of a row.

    Parameters
    ----------
    held
        Cache entries held when each token was drawn. [T]
    windows
        Of the model's layers: what slides out of them by itself is not saved.
    """
    full = full_entries(windows, n_prompt + np.arange(start, stop))
    return float((1 - held[start:stop] / full).sum())


_SEAT = np.dtype(
    [
        *((name, np.int64) for name in ("n_prompt", "n_prefix", "t", "n_rewound", "n_rewinds", "safe_at")),
        *((name, np.float64) for name in ("ratio", "saved")),
        *((name, np.bool_) for name in ("safe", "restored", "repeats")),
    ]
)


class GuardedRun(Follower):
    """One guarded decoding of a batch.

    Parameters
    ----------
    batch : Batch
        Rows are added with ``keep_cache`` if restored rows are to be compressed again.
    watch : Watch
        Knows a row by its seat.
    ratios : mapping or sequence of float
        The compression ratio of each row, by its number; read when the row starts.
    budget : Budget, optional
        The decode-time budget that rows are held to.
    thinking : ndarray, optional
        See :func:`kvguard.guard.features.thinking_mask`: tokens that ALERT protects from the budget. [V]
    answers : Answers, optional
        Finds complete answers for ``rollback``, and for ``stop``, which needs it; asked only when a row acts.

    Raises
    ------
    ValueError
        ``stop`` without ``answers``.
    """

    def __init__(
        self,
        batch: Batch,
        watch: Watch,
        action: Action,
        params: GuardParams,
        ratios: Mapping[int, float] | Sequence[float] | Floats,
        *,
        budget: Budget | None = None,
        thinking: Bools | None = None,
        answers: Answers | None = None,
    ) -> None:
        if action is Action.STOP and answers is None:
            raise ValueError("action stop: pass answers")
        self.batch, self.watch, self.action, self.params = batch, watch, action, params
        self.budget, self.thinking, self.answers, self._ratios = budget, thinking, answers, ratios
        self._windows = sliding_windows(batch.model)
        self._seats = np.zeros(0, dtype=_SEAT)
        self._hazard = np.zeros((0, _TOKENS), dtype=np.float32)  # these by seat and token
        self._states = np.zeros((0, _TOKENS), dtype=np.uint8)
        self._held = np.zeros((0, _TOKENS), dtype=np.float32)
        self._events: dict[int, list[Event]] = {}  # by seat
        self._done: dict[int, Guarded] = {}  # by row
        batch.follow(self)
        if budget is not None:
            budget.attach(batch)

    def steps(self) -> Iterator[GuardedStep]:
        """Decode, yielding every step after the guard has acted on it."""
        for step in decode_steps(self.batch):
            tokens = step.tokens.cpu().numpy()
            hazard, states = self._observe(step, tokens)
            safe, before = states == State.SAFE, self._seats["safe"][step.seat]
            events: dict[int, Event] = {}
            if safe.any() or before.any():
                going = ~step.ended & step.valid
                self._seats["safe"][step.seat] = safe
                first = step.seat[safe & (self._seats["safe_at"][step.seat] == NEVER)]
                self._seats["safe_at"][first] = (self._seats["t"] - 1 + self._seats["n_rewound"])[first]
                self._enter(step, np.flatnonzero(self._alarmed(step, safe, before) & going), events)
                self._leave(step, np.flatnonzero(~safe & before & going), events)
            self._evict(step, states)
            for row, event in events.items():
                self._events[int(step.seat[step.row == row][0])].append(event)
            left = self.batch.leaving.copy()
            yield GuardedStep(step.row, step.t, tokens, hazard, states, left, step.valid, events)

    def collect(self) -> dict[int, Guarded]:
        """Return what became of the rows that have left since the last call, by their numbers."""
        done, self._done = self._done, {}
        self.batch.collect()
        return done

    def open(self, seat: int, row: int, request: Request) -> None:
        """Begin a row; the tokens of its prefix have no known signals."""
        self._seats = grown(self._seats, seat + 1)
        state = self._seats[seat : seat + 1]
        state[:] = 0
        state["n_prompt"], state["n_prefix"] = request.n_prompt, len(request.prefix)
        state["t"], state["safe_at"], state["ratio"] = len(request.prefix), NEVER, self._ratios[row]
        state["repeats"] = self.action_of(seat).repeats
        self._room(len(self._seats), len(request.prefix))
        self._hazard[seat], self._states[seat], self._held[seat] = np.nan, State.NORMAL, 0
        self._events[seat] = []
        self.watch.open(seat, float(self._ratios[row]), request.max_new_tokens)
        unknown = np.full((1, N_SIGNALS), np.nan, dtype=np.float32)
        for token in request.prefix:
            self.watch.update(unknown, np.array([token]), np.array([seat]))

    def restored(self, seat: int) -> None:
        """Learn that a row has its full cache back."""
        self._seats["restored"][seat] = True
        self.watch.set_ratio(seat, 0.0)

    def rewind(self, seat: int, n_tokens: int) -> None:
        """Forget all but the first tokens of a row, and count those forgotten."""
        state = self._seats[seat]
        begin, end = max(n_tokens, int(state["n_prefix"])), int(state["t"])
        state["saved"] += self._saving(seat, begin, end)
        state["n_rewound"] += end - begin
        state["n_rewinds"] += 1
        state["t"] = n_tokens
        self._hazard[seat, n_tokens:] = np.nan
        self._states[seat, n_tokens:] = State.NORMAL
        self.watch.rewind(seat, n_tokens)

    def close(self, seat: int, done: Finished) -> None:
        """Keep what became of a row."""
        state, n = self._seats[seat], len(done.token_ids)
        begin, end = int(state["n_prefix"]), int(state["t"])  # a token of logits that are NaN does not count
        n_steps = end - begin + int(state["n_rewound"])
        saved = float(state["saved"]) + self._saving(seat, begin, end)
        self._done[done.row] = Guarded(
            token_ids=done.token_ids,
            signals=done.signals,
            hazard=self._hazard[seat, :n].copy(),
            states=self._states[seat, :n].copy(),
            kv_tokens=self._held[seat, :n].copy(),
            stop_reason=done.stop_reason,
            events=tuple(self._events.pop(seat)),
            kv_saved=saved / max(n_steps, 1),
            n_steps=n_steps,
            n_rewound=int(state["n_rewound"]),
            safe_at=int(state["safe_at"]),
        )

    def _room(self, seats: int, n_tokens: int) -> None:
        """Make room for so many seats, and for one more token than ``n_tokens``."""
        self._hazard = grown(self._hazard, seats, n_tokens + 1)
        self._states = grown(self._states, seats, n_tokens + 1)
        self._held = grown(self._held, seats, n_tokens + 1)

    def _observe(self, step: Step, tokens: Ints) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Judge the step's tokens and record what is known of them. [n], [n]"""
        seats, valid, signals = step.seat, step.valid, step.signals.cpu().numpy()
        if valid.all():
            hazard, states = self.watch.update(signals, tokens, seats)
        else:
            hazard = np.full(len(seats), np.nan, dtype=np.float32)
            states = np.where(self._seats["safe"][seats], np.uint8(State.SAFE), np.uint8(State.NORMAL))
            hazard[valid], states[valid] = self.watch.update(signals[valid], tokens[valid], seats[valid])
        self._room(0, int(step.t.max()))
        self._hazard[seats, step.t], self._states[seats, step.t] = hazard, states
        self._held[seats, step.t] = self.batch.kv_tokens()
        self._seats["t"][seats] = step.t + 1
        return hazard, states

    def _alarmed(self, step: Step, safe: Bools, before: Bools) -> Bools:
        """Which rows act now: those that enter SAFE, and rewound ones whose hazard has risen again. [n]"""
        seats = self._seats[step.seat]
        again = safe & before & seats["repeats"] & (seats["n_rewinds"] < self.params.max_rewinds)
        if again.any():
            again &= self.watch.escalated(step.seat)
        alarmed: Bools = (safe & ~before) | again
        return alarmed

    def _enter(self, step: Step, slots: Ints, events: dict[int, Event]) -> None:
        """Act on rows that have reached SAFE."""
        for slot in slots.tolist():
            row, seat, t = int(step.row[slot]), int(step.seat[slot]), int(step.t[slot])
            tokens, n_rewinds = self.batch.token_ids(slot).tolist(), int(self._seats["n_rewinds"][seat])
            what, kept = self.answer(
                self.action_of(seat), seat, self._hazard[seat, : t + 1], tokens, n_rewinds
            )
            if what is Action.STOP:
                self.batch.finish(slot, kept, Reason.GUARD)
            elif what.rewinds or (what.restores and not self._seats["restored"][seat]):
                if not self._restore(slot, kept):
                    continue
            elif what is not Action.HOLD:
                continue
            events[row] = Event(t, what.value, kept)

    def _restore(self, slot: int, kept: int) -> bool:
        """Give a row its full cache back, with ``kept`` of its generated tokens; tell whether it has it."""
        self.batch.restore([slot], [kept])
        return True

    def action_of(self, seat: int) -> Action:
        """Return what the row in a seat of the batch does when it reaches SAFE."""
        return self.action

    def answer(
        self,
        action: Action,
        seat: int,
        hazard: NDArray[np.float32],
        tokens: Sequence[int],
        n_rewinds: int,
    ) -> tuple[Action, int]:
        """Return what a row does that reaches SAFE, and how many of its tokens it keeps.

        Parameters
        ----------
        action
            What it is to do, if it can.
        seat
            Where the watch keeps what it knows of the row.
        hazard, tokens
            Of all its tokens. [T], [T]
        """
        ends: list[int] = []
        if self.answers is not None and action in (Action.ROLLBACK, Action.STOP):
            ends = self.answers.ends(tokens)
        if action is Action.STOP:
            if ends:
                return action, ends[-1]
            action = Action.ROLLBACK
        if not action.rewinds:
            return action, len(hazard)
        if n_rewinds >= self.params.max_rewinds:
            return Action.RESTORE, len(hazard)
        if action is Action.RESTART:
            return action, 0
        return action, min([self.watch.accused(seat, hazard, self.params.rewind_below), *ends])

    def _saving(self, seat: int, start: int, stop: int) -> float:
        return saved(self._held[seat], int(self._seats["n_prompt"][seat]), start, stop, self._windows)

    def _leave(self, step: Step, slots: Ints, events: dict[int, Event]) -> None:
        """Return rows that have become calm to compression."""
        for slot in slots.tolist():
            row, seat, t = int(step.row[slot]), int(step.seat[slot]), int(step.t[slot])
            if self.action_of(seat) is Action.HOLD:
                events[row] = Event(t, "resume", t + 1)
            elif self._seats["restored"][seat] and self.params.resume:
                self._seats["restored"][seat] = False
                self.watch.set_ratio(seat, float(self._seats["ratio"][seat]))
                if self.budget is None:
                    self.batch.recompress([slot])
                events[row] = Event(t, "resume", t + 1)

    def _evict(self, step: Step, states: NDArray[np.uint8]) -> None:
        """Hold the rows to their decode-time budget, but for those in SAFE and those restored."""
        if self.budget is None:
            return
        spared = self._seats["restored"][step.seat]
        if self.action is not Action.NONE:
            spared |= states == State.SAFE
        slots = np.flatnonzero(~spared & ~step.ended & step.valid)
        protected = None
        if self.thinking is not None and self.action is not Action.NONE:
            alert = states[slots] == State.ALERT
            protected = [
                self._thinking_positions(step, slot) if on else None
                for slot, on in zip(slots.tolist(), alert, strict=True)
            ]
        self.budget.enforce(self.batch, slots, protected)

    def _thinking_positions(self, step: Step, slot: int) -> Ints:
        """Return the logical positions of the thinking tokens among those that a row has been fed."""
        assert self.thinking is not None
        fed = self.batch.token_ids(slot)[: step.t[slot]].cpu().numpy()
        return self.batch.n_prompt[slot] + np.flatnonzero(look_up(self.thinking, fed))
