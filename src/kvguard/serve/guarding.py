"""A guarded run whose rows each have an action of their own, and tokens that a client has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvguard.engine.growth import grown
from kvguard.engine.layers import full_entries
from kvguard.guard.actions import GuardedRun
from kvguard.guard.controller import ControllerParams
from kvguard.guard.settings import Action, GuardParams
from kvguard.guard.watch import Watch

if TYPE_CHECKING:
    from kvguard.engine.batch import Batch
    from kvguard.engine.records import Bools, Ints, Step
    from kvguard.engine.requests import Finished, Request


@dataclass
class Course:
    """How a row is guarded, and what has come of it so far.

    Attributes
    ----------
    point
        The operating point that its controller follows; None: the watch's own.
    sent
        Its first tokens, which its client has and no rewind may take back.
    alarms, withheld
        How often it reached SAFE (or acted since its hazard rose again there), and how often it was restored
        in place of a rewind because that would have reached what was sent.
    peak
        The most cache entries it held, a mean over layers and heads.
    """

    action: Action
    ratio: float
    point: ControllerParams | None = None
    sent: int = 0
    alarms: int = 0
    withheld: int = 0
    peak: float = 0.0


class Blind:
    """A trigger that knows no risk, for a server without a guard."""

    def open(self, row: int, ratio: float, max_new_tokens: int) -> None:
        """Do nothing."""

    def update(self, signals: NDArray[Any], token_ids: NDArray[Any], rows: Ints) -> NDArray[np.float32]:
        """Return NaN for every row. [R]"""
        return np.full(len(rows), np.nan, dtype=np.float32)

    def accused(self, row: int, risen: int) -> int:
        """Return ``risen``."""
        return risen

    def copy(self, source: int, row: int) -> None:
        """Do nothing."""

    def rewind(self, row: int, n_tokens: int) -> None:
        """Do nothing."""

    def set_ratio(self, row: int, ratio: float) -> None:
        """Do nothing."""


def unwatched() -> Watch:
    """Return a watch that never alarms."""
    return Watch(Blind(), ControllerParams(tau_low=1.0, tau_high=1.0, k_escalate=1, j_deescalate=1))


class ServedRun(GuardedRun):
    """A guarded run in which every row follows its own course; the actions are those of ``limits.ACTIONS``.

    A row does what its course says, but for a rewind that would reach tokens that were sent: it is restored.

    Parameters
    ----------
    claim
        Told a row that is to have its full cache back; says whether there is room. A row that it denies has
        been cancelled.

    Attributes
    ----------
    held, full : ndarray
        Cache entries of each row of the last step, and those of a full cache. [n]
    """

    def __init__(self, batch: Batch, watch: Watch, params: GuardParams, claim: Callable[[int], bool]) -> None:
        self._claim = claim
        self._row_ratios: dict[int, float] = {}
        self._coming: dict[int, Course] = {}  # by row
        self._courses: dict[int, Course] = {}  # by seat, as the next
        self._peak = np.zeros(0, dtype=np.float32)
        self._entered: set[int] = set()  # seats that entered SAFE in this step
        self.held, self.full = np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float64)
        super().__init__(batch, watch, Action.NONE, params, self._row_ratios)

    def add(self, request: Request, course: Course) -> int:
        """Let a row wait for its start; return its number."""
        row = self.batch.add(request)
        self._row_ratios[row], self._coming[row] = course.ratio, course
        return row

    def open(self, seat: int, row: int, request: Request) -> None:
        """Begin a row."""
        self._courses[seat] = self._coming.pop(row)
        super().open(seat, row, request)
        del self._row_ratios[row]
        point = self._courses[seat].point
        if point is not None:
            self.watch.set_point(seat, point)
        self._peak = grown(self._peak, seat + 1)
        self._peak[seat] = 0

    def close(self, seat: int, done: Finished) -> None:
        """Keep what became of a row."""
        super().close(seat, done)
        self._courses[seat].peak = float(self._peak[seat])

    def action_of(self, seat: int) -> Action:
        """Return what the row in a seat does when it reaches SAFE."""
        return self._courses[seat].action

    def answer(
        self,
        action: Action,
        seat: int,
        hazard: NDArray[np.float32],
        tokens: Sequence[int],
        n_rewinds: int,
    ) -> tuple[Action, int]:
        """Return what a row does that reaches SAFE, and how many of its tokens it keeps."""
        course = self._courses[seat]
        what, kept = super().answer(action, seat, hazard, tokens, n_rewinds)
        if kept >= course.sent:
            return what, kept
        course.withheld += not self._seats["restored"][seat]
        return Action.RESTORE, len(hazard)

    def _restore(self, slot: int, kept: int) -> bool:
        seat = int(self.batch.seat[slot])
        self._courses[seat].alarms += seat not in self._entered
        return self._claim(int(self.batch.row[slot])) and super()._restore(slot, kept)

    def _alarmed(self, step: Step, safe: Bools, before: Bools) -> Bools:
        """Which rows act now, and count those that enter SAFE; others count if something is done. [n]"""
        self._entered = set(step.seat[safe & ~before].tolist())
        for seat in self._entered:
            self._courses[seat].alarms += 1
        return super()._alarmed(step, safe, before)

    def _observe(self, step: Step, tokens: Ints) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Judge the step's tokens, and see how much the rows hold. [n], [n]"""
        found = super()._observe(step, tokens)
        self.held = self._held[step.seat, step.t]
        self.full = full_entries(self._windows, self._seats["n_prompt"][step.seat] + step.t)
        self._peak[step.seat] = np.maximum(self._peak[step.seat], self.held)
        return found
