"""What is asked: a prompt with instructions that can be checked one by one, and what a check found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Instruction:
    """One thing that an answer is to do.

    Parameters
    ----------
    id : str
        As the suite's verifiers know it, ``punctuation:no_comma`` for example.
    kwargs : mapping
        Arguments of its verifier.
    text : str or None
        Its exact words in the prompt; None where they cannot be told apart.
    """

    id: str
    kwargs: Mapping[str, Any]
    text: str | None = None


@dataclass(frozen=True)
class Example:
    """One prompt of a suite.

    Parameters
    ----------
    key : str
        Names it within its suite.
    suite : str
    prompt : str
        What the user says.
    instructions : tuple of Instruction
    system : str, optional
        The system prompt.
    position : str, optional
        Where the instruction stands in the text: ``start``, ``middle`` or ``end``.
    metadata : mapping
        Whatever else the suite knows; where it came from, say.
    """

    key: str
    suite: str
    prompt: str
    instructions: tuple[Instruction, ...]
    system: str | None = None
    position: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[dict[str, str]]:
        """As a chat."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.prompt}]

    @property
    def text(self) -> str:
        """As plain text, for a model without a chat template."""
        return self.prompt if self.system is None else f"{self.system}\n\n{self.prompt}"


@dataclass(frozen=True)
class Verdicts:
    """Whether each instruction was followed, in order; None: no rule can check it (the judge's).

    Parameters
    ----------
    strict, loose : tuple of (bool or None)
        Of the text as it is, and of it without the frames that chat models put around an answer.
    """

    strict: tuple[bool | None, ...]
    loose: tuple[bool | None, ...]
