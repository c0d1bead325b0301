"""What varies beside the condition, as the settings of an experiment name it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from kvguard.errors import KvguardError
from kvguard.studies.directed.params import PLAIN

_KNOWN = "none, blind, noise, kept, short, long, padded@N, on:MODEL, or several of them joined by +"
_PADDED = re.compile(r"padded@([1-9]\d*)")


@dataclass(frozen=True)
class Setting:
    """A setting, ``blind+padded@512`` say.

    Attributes
    ----------
    asked
        What stands in the decoder before the answer: the ``question`` (the default), ``nothing`` (``blind``),
        or as many random tokens (``noise``).
    kept
        The decoder sees the prefix too.
    padded
        Tokens that the document is filled up to, with other documents behind it.
    answers
        Only examples whose answer is ``short``, no longer than the median of the data set, or ``long``.
    model
        Scored by this model of the settings in place of the experiment's (``on:MODEL``).
    """

    asked: Literal["question", "nothing", "noise"] = "question"
    kept: bool = False
    padded: int | None = None
    answers: Literal["short", "long"] | None = None
    model: str | None = None

    @classmethod
    def of(cls, text: str) -> Setting:
        """Read a setting.

        Raises
        ------
        KvguardError
            A part of it is unknown.
        """
        setting = cls()
        for part in text.split("+") if text != PLAIN else []:
            found = _PADDED.fullmatch(part)
            if found:
                setting = replace(setting, padded=int(found[1]))
            elif part.startswith("on:") and len(part) > 3:
                setting = replace(setting, model=part.removeprefix("on:"))
            elif part in ("short", "long"):
                setting = replace(setting, answers=part)  # type: ignore[arg-type]
            elif part in ("blind", "noise"):
                setting = replace(setting, asked="nothing" if part == "blind" else "noise")
            elif part == "kept":
                setting = replace(setting, kept=True)
            else:
                raise KvguardError(f"settings: {part!r} of {text!r} is unknown: write {_KNOWN}")
        return setting
