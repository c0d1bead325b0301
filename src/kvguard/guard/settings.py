"""What a user of the guard may set."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from kvguard.config import Natural, Section, Share, first_mistake
from kvguard.errors import KvguardError


class Action(StrEnum):
    """What a row does in SAFE, see :mod:`kvguard.guard.actions`."""

    NONE = "none"
    HOLD = "hold"
    RESTORE = "restore"
    ROLLBACK = "rollback"
    RESTART = "restart"
    STOP = "stop"

    @property
    def rewinds(self) -> bool:
        """Whether tokens are thrown away and generated again."""
        return self in (Action.ROLLBACK, Action.RESTART)

    @property
    def restores(self) -> bool:
        """Whether the full cache comes back."""
        return self.rewinds or self is Action.RESTORE

    @property
    def repeats(self) -> bool:
        """Whether a row acts again when the hazard rises again in SAFE."""
        return self.rewinds or self is Action.STOP


class GuardParams(Section):
    """How the live guard acts.

    ``max_rewinds`` bounds the rewinds of one row; ``resume`` compresses a restored row again once it has been
    calm. A rollback keeps tokens up to the last one whose hazard was below ``rewind_below`` (and below
    tau_low): it decides how far back a row goes, which no search of thresholds on recorded traces can see.
    """

    max_rewinds: Natural = 2
    resume: bool = False
    rewind_below: Share = 0.05

    def __init__(self, **settings: Any) -> None:  # the one section that users of the library make themselves
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise KvguardError(first_mistake(error, GuardParams, "guard")) from None
