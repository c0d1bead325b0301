"""What a user of the guard may set."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from kvguard.config import Natural, Section, first_mistake
from kvguard.errors import KvguardError


class GuardParams(Section):
    """How the live guard acts.

    ``max_rewinds`` bounds the rewinds of one row; ``resume`` compresses a restored row again once it has been
    calm.
    """

    max_rewinds: Natural = 2
    resume: bool = False

    def __init__(self, **settings: Any) -> None:  # the one section that users of the library make themselves
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise KvguardError(first_mistake(error, GuardParams, "guard")) from None
