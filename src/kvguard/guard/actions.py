"""The guard at work: watch every token of a batch, and act on the rows whose controller reaches SAFE.

It consumes the loop of :mod:`kvguard.engine.batch`; a row that acts does not stop the others. What a row
does when it reaches SAFE is its action:

``none``
    Nothing: the row is only watched.
``hold``
    Stop evicting while SAFE lasts. Needs a decode-time budget.
``restore``
    Recompute the full cache from the token ids in one prefill, and go on uncompressed.
``rollback``
    Restore, and also throw away the tokens since the hazard rose, so that they are generated again: the row
    keeps those up to the last one whose hazard was below tau_low.
``restart``
    Restore, and generate all tokens again.

A row that has used up its rewinds is restored only.

Once SAFE has been calm, ``GuardParams.resume`` says whether a restored row is compressed again. While ALERT
lasts, thinking tokens are exempt from eviction; that matters only under a decode-time budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvguard.engine.batch import Batch, Generated, Step, decode_steps
from kvguard.engine.sampling import Sampler, greedy
from kvguard.guard.controller import State
from kvguard.guard.features import look_up
from kvguard.guard.settings import GuardParams

if TYPE_CHECKING:
    from kvguard.engine.budget import Budget
    from kvguard.guard.watch import Watch

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

NEVER = -1


class Action(StrEnum):
    """What a row does in SAFE."""

    NONE = "none"
    HOLD = "hold"
    RESTORE = "restore"
    ROLLBACK = "rollback"
    RESTART = "restart"

    @property
    def rewinds(self) -> bool:
        """Whether tokens are thrown away."""
        return self in (Action.ROLLBACK, Action.RESTART)

    @property
    def restores(self) -> bool:
        """Whether the full cache comes back."""
        return self.rewinds or self is Action.RESTORE


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
        [n], NaN and the state before where the logits were no numbers.
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
        [T, 26]
    kv_tokens : ndarray
        Cache entries held when the token was drawn, a mean over layers and heads.
    stop_reason : str
        ``eos``, ``length``, or ``invalid`` (logits that are no numbers).
    kv_saved : float
        The mean of 1 - held / full over all decoding steps, those of rewound tokens included.
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


class GuardedRun:
    """One guarded decoding of a batch.

    Parameters
    ----------
    batch : Batch
        Made with ``restorable`` if the action restores.
    watch : Watch
        Knows a row by its number, and begins with the ratio that the row is compressed at.
    budget : Budget, optional
        The decode-time budget that rows are held to.
    thinking : ndarray, optional
        See :func:`kvguard.guard.features.thinking_mask`: tokens that ALERT protects from the budget. [V]
    """

    def __init__(
        self,
        batch: Batch,
        watch: Watch,
        action: Action,
        params: GuardParams,
        *,
        sampler: Sampler = greedy,
        budget: Budget | None = None,
        thinking: Bools | None = None,
    ) -> None:
        self.batch, self.watch, self.action, self.params = batch, watch, action, params
        self.sampler, self.budget, self.thinking = sampler, budget, thinking
        n_rows, n_tokens = len(batch.rows), batch.max_new_tokens
        self._n_prompt = np.array([row.n_prompt for row in batch.rows])
        self._ratios = watch.ratios.copy()
        self._hazard = np.full((n_rows, n_tokens), np.nan, dtype=np.float32)
        self._states = np.full((n_rows, n_tokens), State.NORMAL, dtype=np.uint8)
        self._held = np.zeros((n_rows, n_tokens), dtype=np.float32)
        self._saved = np.zeros(n_rows)  # 1 - held / full, summed over the steps of rewound tokens
        self._n_rewound, self._n_rewinds = (np.zeros(n_rows, dtype=np.int64) for _ in range(2))
        self._safe_at = np.full(n_rows, NEVER, dtype=np.int64)
        self._safe, self._restored = (np.zeros(n_rows, dtype=bool) for _ in range(2))
        self._events: list[list[Event]] = [[] for _ in range(n_rows)]

    def steps(self) -> Iterator[GuardedStep]:
        """Decode, yielding every step after the guard has acted on it."""
        for step in decode_steps(self.batch, self.sampler):
            tokens = step.tokens.cpu().numpy()
            hazard, states = self._observe(step, tokens)
            safe, before = states == State.SAFE, self._safe[step.row]
            events: dict[int, Event] = {}
            if safe.any() or before.any():
                going = ~step.ended & step.valid
                self._safe[step.row] = safe
                first = np.flatnonzero(safe & (self._safe_at[step.row] == NEVER))
                self._safe_at[step.row[first]] = step.t[first] + self._n_rewound[step.row[first]]
                self._enter(step, np.flatnonzero(self._alarmed(step, safe, before) & going), events)
                self._leave(step, np.flatnonzero(~safe & before & going), events)
            self._evict(step, states)
            for row, event in events.items():
                self._events[row].append(event)
            n = self.batch.n
            left = self.batch.ended[:n] | ~self.batch.valid[:n]
            yield GuardedStep(step.row, step.t, tokens, hazard, states, left, step.valid, events)

    def results(self) -> list[Guarded]:
        """Return what became of each row, once all steps are done."""
        generated = self.batch.generated()
        return [self._result(generated, row) for row in range(len(self.batch.rows))]

    def _observe(self, step: Step, tokens: Ints) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Judge the step's tokens and record what is known of them. [n], [n]"""
        rows, valid, signals = step.row, step.valid, step.signals.cpu().numpy()
        if valid.all():
            hazard, states = self.watch.update(signals, tokens, rows)
        else:
            hazard = np.full(len(rows), np.nan, dtype=np.float32)
            states = np.where(self._safe[rows], np.uint8(State.SAFE), np.uint8(State.NORMAL))
            hazard[valid], states[valid] = self.watch.update(signals[valid], tokens[valid], rows[valid])
        self._hazard[rows, step.t], self._states[rows, step.t] = hazard, states
        self._held[rows, step.t] = self.batch.kv_tokens()
        return hazard, states

    def _alarmed(self, step: Step, safe: Bools, before: Bools) -> Bools:
        """Which rows act now: those that enter SAFE, and rewound ones whose hazard has risen again. [n]"""
        entered = safe & ~before
        if not self.action.rewinds:
            return entered
        again = self.watch.escalated(step.row) & (self._n_rewinds[step.row] < self.params.max_rewinds)
        return entered | (safe & again)

    def _enter(self, step: Step, slots: Ints, events: dict[int, Event]) -> None:
        """Act on rows that have reached SAFE."""
        for slot in slots:
            row, t = int(step.row[slot]), int(step.t[slot])
            if self.action is Action.HOLD:
                events[row] = Event(t, "hold", t + 1)
            elif self.action.rewinds and self._n_rewinds[row] < self.params.max_rewinds:
                kept = self._before_the_rise(row, t) if self.action is Action.ROLLBACK else 0
                self._restore(slot, kept)
                self._n_rewinds[row] += 1
                self._n_rewound[row] += t + 1 - kept
                self._saved[row] += self._saving(row, kept, t + 1)
                self.watch.rewind(row, kept)
                events[row] = Event(t, self.action.value, kept)
            elif self.action.restores and not self._restored[row]:
                self._restore(slot, t + 1)
                events[row] = Event(t, "restore", t + 1)

    def _before_the_rise(self, row: int, t: int) -> int:
        """Return how many tokens stand up to the last one before the hazard rose."""
        calm = self._hazard[row, : t + 1] < self.watch.params.tau_low
        return max(0, int(np.flatnonzero(calm).max(initial=-1)) + 2 - self.watch.span)

    def _saving(self, row: int, start: int, stop: int) -> float:
        """Return 1 - held / full, summed over the tokens ``start`` to ``stop`` of a row."""
        full = self._n_prompt[row] + np.arange(start, stop)
        return float((1 - self._held[row, start:stop] / full).sum())

    def _restore(self, slot: int, kept: int) -> None:
        row = int(self.batch.row[slot])
        self.batch.restore([slot], [kept])
        self._restored[row] = True
        self.watch.set_ratio(row, 0.0)
        if self.budget is not None:
            self.budget.forget(row)

    def _leave(self, step: Step, slots: Ints, events: dict[int, Event]) -> None:
        """Return rows that have become calm to compression."""
        for slot in slots:
            row, t = int(step.row[slot]), int(step.t[slot])
            if self.action is Action.HOLD:
                events[row] = Event(t, "resume", t + 1)
            elif self._restored[row] and self.params.resume:
                self._restored[row] = False
                self.watch.set_ratio(row, float(self._ratios[row]))
                if self.budget is None:
                    self.batch.recompress([slot])
                events[row] = Event(t, "resume", t + 1)

    def _evict(self, step: Step, states: NDArray[np.uint8]) -> None:
        """Hold the rows to their decode-time budget, but for those in SAFE and those restored."""
        if self.budget is None:
            return
        spared = self._restored[step.row]
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
        row = int(step.row[slot])
        fed = self.batch.tokens[row, : step.t[slot]].cpu().numpy()
        return self._n_prompt[row] + np.flatnonzero(look_up(self.thinking, fed))

    def _result(self, generated: Generated, row: int) -> Guarded:
        n, n_rewound = int(generated.lengths[row]), int(self._n_rewound[row])
        drawn = n if generated.valid[row] else n + 1  # a token of logits that are no numbers does not count
        n_steps = drawn + n_rewound
        stop = "eos" if generated.stopped[row] else "length"
        return Guarded(
            token_ids=generated.token_ids[row, :n],
            signals=generated.signals[row, :n],
            hazard=self._hazard[row, :n],
            states=self._states[row, :n],
            kv_tokens=self._held[row, :n],
            stop_reason=stop if generated.valid[row] else "invalid",
            events=tuple(self._events[row]),
            kv_saved=(float(self._saved[row]) + self._saving(row, 0, drawn)) / n_steps,
            n_steps=n_steps,
            n_rewound=n_rewound,
            safe_at=int(self._safe_at[row]),
        )
