"""Rows that go on from a recording, at the token after which a guard would have acted.

All policies of a prompt and condition are the same text until their first alarm. So the text without a guard
is generated once, recorded, and shown to each policy's watch; only from the alarm on a policy generates for
itself. Restoring recomputes a row from its token ids, so the branch is the row that would have acted there.
Chance is not carried over: what is sampled rather than greedy differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvguard.engine.requests import Reason, Request
from kvguard.engine.signals import N_SIGNALS
from kvguard.guard.actions import NEVER, Event, Guarded, GuardedRun, Ints, saved
from kvguard.guard.controller import State
from kvguard.guard.settings import Action

if TYPE_CHECKING:
    from kvguard.guard.answers import Answers
    from kvguard.guard.watch import Watch


@dataclass(frozen=True)
class Watched:
    """A recorded row as a watch saw it; its arrays end with the token that led it to SAFE, if one did.

    Attributes
    ----------
    row : Guarded
        What it would have been had it not acted.
    seat : int
        Where the watch keeps what it knows of it.
    acts : bool
        Whether it would have acted: a row that ends with that token does not.
    """

    row: Guarded
    seat: int
    acts: bool


def replay(
    watch: Watch, recorded: Sequence[Guarded], ratios: Sequence[float], max_new_tokens: int, first_seat: int
) -> list[Watched]:
    """Show recorded rows to a watch, all of them token by token, each until it reaches SAFE.

    Parameters
    ----------
    recorded
        Rows that nothing acted on. [R]
    ratios
        Compression ratio of each. [R]
    first_seat
        The watch gets seats from here on, one a row.
    """
    lengths = np.array([len(row.token_ids) for row in recorded], dtype=np.int64)
    shape = len(recorded), int(lengths.max(initial=0))
    tokens, signals = np.zeros(shape, dtype=np.int32), np.zeros((*shape, N_SIGNALS), dtype=np.float32)
    for r, (row, ratio) in enumerate(zip(recorded, ratios, strict=True)):
        tokens[r, : lengths[r]], signals[r, : lengths[r]] = row.token_ids, row.signals
        watch.open(first_seat + r, float(ratio), max_new_tokens)
    hazard, states = np.full(shape, np.nan, dtype=np.float32), np.zeros(shape, dtype=np.uint8)
    safe_at = np.full(len(recorded), NEVER)
    for t in range(shape[1]):
        rows: Ints = np.flatnonzero((lengths > t) & (safe_at == NEVER))
        if not len(rows):
            break
        hazard[rows, t], states[rows, t] = watch.update(signals[rows, t], tokens[rows, t], first_seat + rows)
        safe_at[rows[states[rows, t] == State.SAFE]] = t
    return [
        _watched(row, hazard[r], states[r], int(safe_at[r]), first_seat + r) for r, row in enumerate(recorded)
    ]


def _watched(
    row: Guarded, hazard: NDArray[np.float32], states: NDArray[np.uint8], safe_at: int, seat: int
) -> Watched:
    n = len(row.token_ids) if safe_at == NEVER else safe_at + 1
    goes_on = n < len(row.token_ids) or row.stop_reason == Reason.INVALID.word  # more was drawn, if only NaN
    seen = replace(row, hazard=hazard[:n].copy(), states=states[:n].copy(), safe_at=safe_at)
    return Watched(seen, seat, safe_at != NEVER and goes_on)


class BranchedRun(GuardedRun):
    """A guarded run of rows that begin with their first act; see :class:`~kvguard.guard.actions.GuardedRun`.

    Its watch is the one that the recordings were shown to, at seats beyond the batch's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pasts: dict[int, tuple[Watched, Event]] = {}  # by row, with its act

    def branch(self, request: Request, past: Watched) -> int:
        """Add a row that begins with the act of ``past``, and may end with it; return its number.

        Parameters
        ----------
        request : Request
            As the row was asked, without a prefix. Its cache is only what it may be compressed to again: what
            it goes on from is computed when it starts.
        """
        tokens = past.row.token_ids[: len(past.row.hazard)].tolist()
        what, kept = self.answer(self.action, past.seat, past.row.hazard, tokens, 0)
        act = Event(len(tokens) - 1, what.value, kept)
        row = self.batch.add(replace(request, logits=None, prefix=tuple(tokens[:kept])))
        if what is Action.STOP:
            self.batch.cancel(row)  # nothing is left to generate
            self._done[row] = _stopped(past.row, act, request.n_prompt, self._windows)
        else:
            self._pasts[row] = past, act
        return row

    def open(self, seat: int, row: int, request: Request) -> None:
        """Begin a row where its past has led it, and account for its act, which the batch has done."""
        super().open(seat, row, replace(request, prefix=()))
        past, act = self._pasts.pop(row)
        n = len(past.row.hazard)
        self._room(0, n)
        self._hazard[seat, :n], self._states[seat, :n] = past.row.hazard, past.row.states
        self._held[seat, :n] = past.row.kv_tokens[:n]
        state = self._seats[seat]
        state["t"], state["safe_at"], state["safe"] = n, n - 1, True
        self.watch.copy(past.seat, seat)
        self.restored(seat)
        if act.kept < n:
            self.rewind(seat, act.kept)
        self._events[seat].append(act)


def stop_at_answer(row: Guarded, n_prompt: int, answers: Answers, windows: Sequence[int | None]) -> Guarded:
    """Return what a recorded row would be, ended at its first complete answer: a stop string, no guard."""
    ends = answers.ends(row.token_ids.tolist())
    if not ends or ends[0] >= len(row.token_ids):
        return row
    act = Event(ends[0], Action.STOP.value, ends[0])  # the token after it tells that it is whole
    return replace(_stopped(row, act, n_prompt, windows), safe_at=ends[0])


def _stopped(row: Guarded, act: Event, n_prompt: int, windows: Sequence[int | None]) -> Guarded:
    """Return what is left of a row that ``act`` ends."""
    n, kept = act.t + 1, act.kept
    return replace(
        row,
        token_ids=row.token_ids[:kept],
        signals=row.signals[:kept],
        hazard=row.hazard[:kept],
        states=row.states[:kept],
        kv_tokens=row.kv_tokens[:kept],
        stop_reason=Reason.GUARD.word,
        events=(act,),
        kv_saved=saved(row.kv_tokens, n_prompt, 0, n, windows) / n,
        n_steps=n,
        n_rewound=n - kept,
    )
