"""What a task is: what it asks, with which demonstrations, for how many tokens, and how a text is scored."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd

from kvguard.config import Count, Natural, Section, Text
from kvguard.errors import KvguardError
from kvguard.tasks.prompts import CUE, build_prompt

Message = Mapping[str, str]  # role and content, as chat templates take them


@dataclass(frozen=True)
class Sample:
    """One thing that is asked.

    Attributes
    ----------
    question
        The text that is asked, with any context that it needs; it names the sample.
    references
        Every answer that counts as right.
    solution
        The answer as a demonstration shows it.
    metadata
        What else is known of it, its family say.
    """

    question: str
    references: tuple[str, ...]
    solution: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, row: pd.Series[Any]) -> Sample:
        """Return the sample of a row of the prompts table."""
        return cls(row["question"], tuple(row["references"]), metadata=json.loads(row["metadata"]))


class Task(Section, ABC):
    """Samples, demonstrations, a token budget, stop strings, and scores; its fields are its settings.

    A new task overrides :meth:`samples`, :meth:`demonstrations` and :meth:`score`, names itself and its
    headline metric, and joins by one line in :data:`kvguard.tasks.TASKS`.

    Attributes
    ----------
    name, headline
        The task's name in the settings; the metric that stands for it, 1 where a text is right.
    instruction
        What a prompt opens with.
    n_shots, max_new_tokens
        Demonstrations before each question; tokens that a text may have.
    stop_strings
        What ends a text of a model that is asked in plain text, since no chat template ends its turn.
    stop_in_chat
        They end texts of models with a chat template too.
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    instruction: ClassVar[str] = ""

    n_shots: Natural = 3
    max_new_tokens: Count = 256
    stop_strings: tuple[Text, ...] = ("\n\nQ:",)
    stop_in_chat: bool = False

    @abstractmethod
    def samples(self, n: int, seed: int) -> list[Sample]:
        """Return ``n`` distinct samples: the same for the same arguments, the first of any larger ``n``.

        Raises
        ------
        KvguardError
            There are not so many, or they cannot be read.
        """

    @abstractmethod
    def demonstrations(self, question: str) -> Sequence[Sample]:
        """Return the ``n_shots`` solved samples that stand before ``question``, none of them asked itself."""

    @abstractmethod
    def score(self, text: str, sample: Sample) -> dict[str, float | None]:
        """Score a generated text: always the same metrics, the headline among them; None: not scored."""

    def extract(self, text: str) -> str | None:
        """Return the answer that a generated text gives, None if it gives none."""
        return text.strip() or None

    def answered(self, text: str) -> list[int]:
        """Return where complete answers end in a text that may go on: the first, and the last one.

        Empty where there is none yet. A task that cannot tell, as this one, never says. What follows changes
        no first answer: once there is one, it is that of every longer text.
        """
        return []

    def messages(self, sample: Sample) -> list[Message]:
        """Return the chat that asks ``sample``: one user message, unless a task overrides it."""
        return [{"role": "user", "content": self._asked(sample)}]

    def text(self, sample: Sample) -> str:
        """Return the plain text that asks ``sample`` of a model without a chat template."""
        return self._asked(sample) + CUE

    def _asked(self, sample: Sample) -> str:
        return build_prompt(sample.question, self.demonstrations(sample.question), self.instruction)

    def prompts(self, n: int, seed: int) -> pd.DataFrame:
        """Return the prompts table of :meth:`samples`."""
        if n < 1:
            raise KvguardError(f"n is {n} for task {self.name}: ask for at least one sample")
        return pd.DataFrame(
            {
                "prompt_id": hashlib.sha256(f"{self.name}\n{sample.question}".encode()).hexdigest()[:16],
                "task": self.name,
                "question": sample.question,
                "prompt": {"messages": self.messages(sample), "text": self.text(sample)},
                "references": list(sample.references),
                "metadata": json.dumps(sample.metadata, sort_keys=True),
            }
            for sample in self.samples(n, seed)
        )
