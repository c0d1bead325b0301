"""What it is to ask a model: a question, a reply with what it cost, or a failure of a known kind."""

from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["timeout", "rate_limited", "failed"]


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes
    ----------
    text
        Its answer.
    refused
        Whether the endpoint says that the model refused.
    tokens
        Tokens read and written; None where they are not known.
    """

    text: str
    refused: bool = False
    tokens: tuple[int, int] | None = None


class Failure(Exception):
    """A question that got no answer; asked again it might."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind


class Asker(Protocol):
    """Puts questions to a model.

    Attributes
    ----------
    name
        All that an answer depends on besides the question.
    price
        Dollars for a million tokens read, and written; None where it is not known.
    """

    name: str
    price: tuple[float, float] | None

    def ask(self, system: str, question: str) -> Reply:
        """Return the reply, or raise :class:`Failure`."""
