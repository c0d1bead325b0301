"""What an engine is asked, what it replies, and the ways in which it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Ask:
    """One request: a prompt, and how its answer is drawn."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """A whole answer.

    Attributes
    ----------
    ttft_s, latency_s
        Seconds from the request to the first piece of text, None without one, and to the end.
    told
        What the server said beyond OpenAI's fields: its own telemetry, by name.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    ttft_s: float | None
    latency_s: float
    told: Mapping[str, Any] = field(default_factory=dict)


class Trouble(Exception):
    """A request that got no whole answer.

    Attributes
    ----------
    status
        Of HTTP, None where there was none.
    text
        What had come of an answer until then.
    retry_after
        Seconds that the server asks to wait.
    """

    def __init__(
        self, said: str, status: int | None = None, text: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(said)
        self.status, self.text, self.retry_after = status, text, retry_after


class Passing(Trouble):
    """May be better the next time: 408, 429, 5xx, a cut stream, garbage."""


class Unreachable(Passing):
    """No connection: the endpoint may be gone."""


class Rejected(Trouble):
    """The request itself is at fault: any other 4xx."""


class TimedOut(Trouble):
    """Took longer than a request may."""


class Engine(Protocol):
    """Answers requests, from several threads at once."""

    def ask(self, ask: Ask, on_first: Callable[[], None] = lambda: None) -> Reply:
        """Answer one request once; ``on_first`` is called at the first piece of text.

        Raises
        ------
        Trouble
            There is no whole answer.
        """
