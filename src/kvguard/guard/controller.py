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

from kvguard.config import ControllerParams


class State(IntEnum):
    """What a row's controller holds to be true."""

    NORMAL = 0
    ALERT = 1
    SAFE = 2


class Controller:
    """The state machine over many rows, stepping one token at a time."""

    def __init__(self, n_rows: int, params: ControllerParams) -> None:
        self._params = params
        self.states = np.full(n_rows, State.NORMAL, dtype=np.uint8)
        self._low = np.zeros(n_rows, dtype=np.int32)
        self._high = np.zeros(n_rows, dtype=np.int32)
        self._calm = np.zeros(n_rows, dtype=np.int32)

    def update(
        self, hazard: NDArray[np.floating], rows: NDArray[np.int64] | slice = slice(None)
    ) -> NDArray[np.uint8]:
        """Take the hazard of the next token of each of ``rows`` and return their states. [R] -> [R]"""
        params = self._params
        low = _run(self._low, rows, hazard >= params.tau_low)
        high = _run(self._high, rows, hazard >= params.tau_high)
        calm = _run(self._calm, rows, hazard < params.tau_low)
        states = self.states[rows]
        to_safe = high >= params.k_escalate
        to_alert = ~to_safe & (states == State.NORMAL) & (low >= params.k_escalate)
        to_normal = calm >= params.j_deescalate  # excludes the others: a calm run ends every other run
        states = np.where(to_safe, np.uint8(State.SAFE), states)
        states = np.where(to_alert, np.uint8(State.ALERT), states)
        states = np.where(to_normal, np.uint8(State.NORMAL), states)
        self.states[rows] = states
        return states


def _run(
    counter: NDArray[np.int32], rows: NDArray[np.int64] | slice, goes_on: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Lengthen the runs that go on, end the others, and return them."""
    run = (counter[rows] + 1) * goes_on
    counter[rows] = run
    return run


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
