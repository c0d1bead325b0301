"""What watches rows while they are generated: a trigger turns tokens into risks, the controller into states.

Everything works on row numbers, which are the seats of a batch: a step may hold any subset of the rows, each
at a token of its own, and a row that has ended makes place for another.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvguard.engine.columns import SIGNALS
from kvguard.engine.growth import grown
from kvguard.engine.repetition import Ints, RepeatCounter
from kvguard.errors import KvguardError
from kvguard.guard.columns import FEATURES
from kvguard.guard.controller import Controller, ControllerParams
from kvguard.guard.features import REPEAT_WINDOW, Bools, FeatureState, Floats
from kvguard.guard.hazard_model import HazardModel, LiveHazard

_ENTROPY = SIGNALS.index("entropy")


class Trigger(Protocol):
    """Turns the tokens of many rows into risks."""

    def open(self, row: int, ratio: float, max_new_tokens: int) -> None:
        """Begin ``row``, a new one or one that was another sequence."""

    def update(self, signals: Floats, token_ids: NDArray[Any], rows: Ints) -> Floats:
        """Take the next token of each of ``rows`` and return its risk.

        Parameters
        ----------
        signals
            In the order of ``SIGNALS``. [R, 26]
        token_ids, rows
            [R], [R]

        Returns
        -------
        Floats
            In [0, 1]; NaN where it is unknown. [R]
        """

    def accused(self, row: int, risen: int) -> int:
        """Return the first token that the risks of ``row`` accuse which follow its token ``risen - 1``."""

    def copy(self, source: int, row: int) -> None:
        """Let ``row``, an open one, stand where ``source`` stands."""

    def rewind(self, row: int, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens of ``row``."""

    def set_ratio(self, row: int, ratio: float) -> None:
        """Let the compression ratio of ``row`` be ``ratio`` from its next token on."""


class HazardTrigger:
    """The risk is the hazard: the probability of an onset within H tokens.

    Parameters
    ----------
    mask
        See :func:`~kvguard.guard.features.thinking_mask`. [V]

    Raises
    ------
    KvguardError
        The model reads a feature that is not known while a row is generated.
    """

    def __init__(self, model: HazardModel, mask: Bools) -> None:
        for name in model.features:
            if name not in FEATURES:
                raise KvguardError(
                    f"hazard model: it reads {name}, which no token has while it is generated; "
                    "take a model of protocol v2 or later"
                )
        self._columns = [FEATURES.index(name) for name in model.features]
        self._hazard = LiveHazard(model)
        self._features = FeatureState(np.zeros(0), mask, 0)

    def open(self, row: int, ratio: float, max_new_tokens: int) -> None:
        """Begin ``row``, a new one or one that was another sequence."""
        self._features.open(row, ratio, max_new_tokens)

    def update(self, signals: Floats, token_ids: NDArray[Any], rows: Ints) -> Floats:
        """Return the hazards; NaN for a row one of whose last signals was no number. [R]"""
        features = self._features.update(signals, token_ids, rows)
        hazard = self._hazard.predict(features.take(self._columns, axis=1))
        finite = np.isfinite(features)
        if not finite.all():
            hazard[~finite.all(axis=1)] = np.nan
        return hazard

    def accused(self, row: int, risen: int) -> int:
        """Return ``risen``, or where the repetition began that the row is in."""
        return min(risen, self._features.repeats_from(row))

    def copy(self, source: int, row: int) -> None:
        """Let ``row``, an open one, stand where ``source`` stands."""
        self._features.copy(source, row)

    def rewind(self, row: int, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens of ``row``."""
        self._features.rewind(row, n_tokens)

    def set_ratio(self, row: int, ratio: float) -> None:
        """Let the compression ratio of ``row`` be ``ratio`` from its next token on."""
        self._features.set_ratio(row, ratio)


class EntropyTrigger:
    """The risk is the token's entropy as a share of the largest possible, the logarithm of the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        self._largest = np.float32(np.log(vocabulary))

    def open(self, row: int, ratio: float, max_new_tokens: int) -> None:
        """Do nothing: a token's entropy knows no other token."""

    def update(self, signals: Floats, token_ids: NDArray[Any], rows: Ints) -> Floats:
        """Return the shares. [R]"""
        share: Floats = np.minimum(signals[:, _ENTROPY] / self._largest, np.float32(1))
        return share

    def accused(self, row: int, risen: int) -> int:
        """Return ``risen``: a token's entropy knows no other token."""
        return risen

    def copy(self, source: int, row: int) -> None:
        """Do nothing: a token's entropy knows no other token."""

    def rewind(self, row: int, n_tokens: int) -> None:
        """Do nothing: a token's entropy knows no other token."""

    def set_ratio(self, row: int, ratio: float) -> None:
        """Do nothing: the ratio plays no part."""


class ClockTrigger:
    """The risk is the share of the token limit that is used: what knows no text at all."""

    def __init__(self) -> None:
        self._t = self._limit = np.zeros(0, dtype=np.int64)

    def open(self, row: int, ratio: float, max_new_tokens: int) -> None:
        """Begin ``row``, a new one or one that was another sequence."""
        self._t, self._limit = grown(self._t, row + 1), grown(self._limit, row + 1)
        self._t[row], self._limit[row] = 0, max_new_tokens

    def update(self, signals: Floats, token_ids: NDArray[Any], rows: Ints) -> Floats:
        """Return the shares, those that the feature ``token_position`` holds. [R]"""
        share: Floats = np.divide(self._t[rows], self._limit[rows], dtype=np.float32)
        self._t[rows] += 1
        return share

    def accused(self, row: int, risen: int) -> int:
        """Return ``risen``: a clock knows no token."""
        return risen

    def copy(self, source: int, row: int) -> None:
        """Let ``row``, an open one, stand where ``source`` stands."""
        self._t[row], self._limit[row] = self._t[source], self._limit[source]

    def rewind(self, row: int, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens of ``row``."""
        self._t[row] = n_tokens

    def set_ratio(self, row: int, ratio: float) -> None:
        """Do nothing: the ratio plays no part."""


class LoopTrigger:
    """The risk is 1 once the last 20 tokens stood before, else 0: a detector that can only react.

    As LoopGuard (arXiv 2604.10044) does, it sees a loop when the loop has begun.
    """

    def __init__(self) -> None:
        self._repeats = RepeatCounter(0, REPEAT_WINDOW)

    def open(self, row: int, ratio: float, max_new_tokens: int) -> None:
        """Begin ``row``, a new one or one that was another sequence."""
        self._repeats.open(row)

    def update(self, signals: Floats, token_ids: NDArray[Any], rows: Ints) -> Floats:
        """Return 1 for rows that repeat themselves, else 0. [R]"""
        return (self._repeats.update(token_ids, rows) > 0).astype(np.float32)

    def accused(self, row: int, risen: int) -> int:
        """Return ``risen``, or where the repetition began that the row is in."""
        return min(risen, self._repeats.repeats_from(row))

    def copy(self, source: int, row: int) -> None:
        """Let ``row``, an open one, stand where ``source`` stands."""
        self._repeats.copy(source, row)

    def rewind(self, row: int, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens of ``row``."""
        self._repeats.rewind(row, n_tokens)

    def set_ratio(self, row: int, ratio: float) -> None:
        """Do nothing: the ratio plays no part."""


class Watch:
    """A trigger and the controller that follows its risks.

    Attributes
    ----------
    params
        The controller's, but for rows that :meth:`set_point` gives others.
    """

    def __init__(self, trigger: Trigger, params: ControllerParams) -> None:
        self.params = params
        self._trigger = trigger
        self._controller = Controller(0, params)

    def open(self, row: int, ratio: float, max_new_tokens: int) -> None:
        """Begin ``row`` in NORMAL, a new one or one that was another sequence."""
        self._trigger.open(row, ratio, max_new_tokens)
        self._controller.open(row)

    def update(
        self, signals: Floats, token_ids: NDArray[Any], rows: Ints
    ) -> tuple[Floats, NDArray[np.uint8]]:
        """Take the next token of each of ``rows`` and return its risk and the row's state.

        Parameters
        ----------
        signals
            In the order of ``SIGNALS``. [R, 26]
        token_ids, rows
            [R], [R]

        Returns
        -------
        tuple
            Risks [R], NaN where unknown, and states [R].
        """
        risk = self._trigger.update(signals, token_ids, rows)
        return risk, self._controller.update(risk, rows)

    def escalated(self, rows: Ints) -> NDArray[np.bool_]:
        """Tell of each row whether its newest risks would lead it to SAFE, were it not there. [R]"""
        return self._controller.escalated(rows)

    def accused(self, row: int, risks: Floats, below: float = 1.0) -> int:
        """Return the first token that the newest risks of ``row`` accuse.

        That is the first one after the last whose risk was below both ``below`` and tau_low, or an earlier
        one that the trigger names.

        Parameters
        ----------
        risks
            Of all its tokens. [T]
        """
        calm = np.flatnonzero(risks < min(below, self._controller.tau_low(row)))
        return self._trigger.accused(row, int(calm.max(initial=-1)) + 1)

    def copy(self, source: int, row: int) -> None:
        """Let ``row``, an open one, stand where ``source`` stands."""
        self._trigger.copy(source, row)
        self._controller.copy(source, row)

    def rewind(self, row: int, n_tokens: int) -> None:
        """Let ``row`` go on from its first ``n_tokens`` tokens, in the state that it is in."""
        self._trigger.rewind(row, n_tokens)
        self._controller.clear(row)

    def set_ratio(self, row: int, ratio: float) -> None:
        """Let the compression ratio of ``row`` be ``ratio`` from its next token on."""
        self._trigger.set_ratio(row, ratio)

    def set_point(self, row: int, params: ControllerParams) -> None:
        """Let the controller of ``row``, an open one, follow ``params`` from its next token on."""
        self._controller.set_point(row, params)
