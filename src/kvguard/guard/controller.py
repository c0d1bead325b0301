"""The guard's state machine: NORMAL, ALERT, SAFE, with hysteresis.

Three counters per row are runs of the hazard itself, whatever the state: ``low`` counts successive tokens
with hazard >= tau_low, ``high`` those with hazard >= tau_high, ``calm`` those with hazard < tau_low. After
each token the first row of the table that applies decides; otherwise the state stays.

====== ========= =============== ======
state  counter   reaches         next
====== ========= =============== ======
NORMAL high      k_escalate      SAFE
NORMAL low       k_escalate      ALERT
ALERT  high      k_escalate      SAFE
ALERT  calm      j_deescalate    NORMAL
SAFE   calm      j_deescalate    NORMAL
====== ========= =============== ======

So a row reaches SAFE exactly when its hazard has been at or above tau_high for k_escalate tokens, and no
two escalations of a row are closer than j_deescalate + k_escalate tokens. A hazard that is not a number
breaks every run and moves nothing.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from kvguard.config import Count, Section, Share
from kvguard.engine.growth import grown


class ControllerParams(Section):
    """An operating point: thresholds on the hazard, and hysteresis in tokens."""

    tau_low: Share
    tau_high: Share
    k_escalate: Count
    j_deescalate: Count

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> "ControllerParams":
        if self.tau_low > self.tau_high:
            raise ValueError(f"tau_low {self.tau_low:g} is above tau_high {self.tau_high:g}: swap them")
        return self


class State(IntEnum):
    """What a row's controller holds to be true."""

    NORMAL = 0
    ALERT = 1
    SAFE = 2


_NORMAL, _ALERT, _SAFE = (np.uint8(state) for state in State)


class Controller:
    """The state machine over many rows, stepping one token at a time.

    Parameters
    ----------
    params
        Of every row that :meth:`set_point` gives no others.
    """

    def __init__(self, n_rows: int, params: ControllerParams) -> None:
        self.params = params
        self.states = np.full(n_rows, State.NORMAL, dtype=np.uint8)
        self._taus = np.zeros((2, n_rows))  # tau_low, tau_high
        self._spans = np.zeros((2, n_rows), dtype=np.int64)  # k_escalate, j_deescalate
        self.set_point(slice(None), params)
        self._runs = np.zeros((3, n_rows), dtype=np.int32)  # low, high, calm

    def update(
        self, hazard: NDArray[np.floating], rows: NDArray[np.int64] | slice = slice(None)
    ) -> NDArray[np.uint8]:
        """Take the hazard of the next token of each of ``rows`` and return their states. [R] -> [R]"""
        tau_low, tau_high = self._taus[:, rows].astype(hazard.dtype)
        k_escalate, j_deescalate = self._spans[:, rows]
        goes_on = np.empty((3, len(hazard)), dtype=bool)
        np.greater_equal(hazard, tau_low, out=goes_on[0])
        np.greater_equal(hazard, tau_high, out=goes_on[1])
        np.less(hazard, tau_low, out=goes_on[2])
        runs = (self._runs[:, rows] + 1) * goes_on
        self._runs[:, rows] = runs
        low, high, calm = runs
        states = self.states[rows].copy()
        np.copyto(states, _ALERT, where=(low >= k_escalate) & (states == _NORMAL))
        np.copyto(states, _SAFE, where=high >= k_escalate)
        np.copyto(states, _NORMAL, where=calm >= j_deescalate)  # a calm run ends the others
        self.states[rows] = states
        return states

    def escalated(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell of each row whether its run of hazards >= tau_high is long enough for SAFE. [R]"""
        reached: NDArray[np.bool_] = self._runs[1, rows] >= self._spans[0, rows]
        return reached

    def tau_low(self, row: int) -> float:
        """Return the lower threshold of ``row``."""
        return float(self._taus[0, row])

    def set_point(self, rows: int | slice, params: ControllerParams) -> None:
        """Let ``rows`` follow ``params`` from their next token on."""
        self._taus.T[rows] = params.tau_low, params.tau_high
        self._spans.T[rows] = params.k_escalate, params.j_deescalate

    def open(self, row: int) -> None:
        """Begin ``row`` in NORMAL, a new one or one that was another sequence."""
        self.states = grown(self.states, row + 1)
        if row >= self._runs.shape[1]:
            n_rows = len(self.states)
            self._runs = grown(self._runs, 3, n_rows)
            self._taus, self._spans = grown(self._taus, 2, n_rows), grown(self._spans, 2, n_rows)
        self.states[row] = State.NORMAL
        self._runs[:, row] = 0
        self.set_point(row, self.params)

    def copy(self, source: int, row: int) -> None:
        """Let ``row``, an open one, stand where ``source`` stands."""
        self.states[row] = self.states[source]
        for values in (self._taus, self._spans):
            values[:, row] = values[:, source]
        self._runs[:, row] = self._runs[:, source]

    def clear(self, row: int) -> None:
        """End the runs of ``row``; its state stays."""
        self._runs[:, row] = 0


def run_controller(hazard: NDArray[np.floating], params: ControllerParams) -> NDArray[np.uint8]:
    """Return the state after every token of many traces at once. [T, L] -> [T, L]

    Parameters
    ----------
    hazard
        One row per trace, NaN past its end: there the last state stays.
    """
    controller = Controller(len(hazard), params)
    columns = np.ascontiguousarray(hazard.T)
    states = np.empty(columns.shape, dtype=np.uint8)
    for t, column in enumerate(columns):
        states[t] = controller.update(column)
    return states.T


def states_of(
    hazard: NDArray[np.floating], lengths: NDArray[np.integer], params: ControllerParams
) -> NDArray[np.uint8]:
    """Return the state after every token of whole traces. [N]

    Parameters
    ----------
    hazard
        Traces one after another. [N]
    lengths
        Their tokens. [T]
    """
    inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
    matrix = np.full(inside.shape, np.nan, dtype=hazard.dtype)
    matrix[inside] = hazard
    return run_controller(matrix, params)[inside]
