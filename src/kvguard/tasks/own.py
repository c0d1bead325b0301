"""Prompts of one's own, from a JSONL file, asked as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kvguard.config import Text
from kvguard.errors import KvguardError
from kvguard.tasks.answers import canonical_number, given_answer, is_correct, last_answer
from kvguard.tasks.base import Message, Sample, Task
from kvguard.tasks.jsonl import read_jsonl
from kvguard.tasks.scores import exact_match, stands_in, token_f1

_FIELDS = "prompt (text) or messages (a list of role and content)"


class OwnPrompts(Task):
    """The rows of ``source``: ``prompt`` or ``messages``, and ``answer`` or ``answers``.

    A prompt is one user message. A model without a chat template gets the text of the prompt and nothing
    else, or the contents of the messages with blank lines between them. A row without an answer is asked and
    not scored.

    ``accuracy`` is 1 where one of the answers is given: as the number that the text answers first if the
    answer is a number, else as words that stand in the text. ``accuracy_last`` takes the last number.
    ``em`` and ``f1`` compare the whole text with the answers.
    """

    name: ClassVar[str] = "own"
    headline: ClassVar[str] = "accuracy"

    source: Text | None = None
    n_shots: Annotated[int, Field(strict=True, ge=0, le=0)] = 0  # the prompts hold whatever they need
    stop_strings: tuple[Text, ...] = ()

    def samples(self, n: int, seed: int) -> list[Sample]:
        """Return the first ``n`` prompts of the file in the order of ``seed``."""
        found = self.all()
        if n > len(found):
            raise KvguardError(f"n is {n}, but {self.source} has {len(found)} prompts: lower n")
        Random(f"own/{seed}").shuffle(found)
        return found[:n]

    def all(self) -> list[Sample]:
        """Return every prompt of the file, in its order; one that stands there twice, once.

        Raises
        ------
        KvguardError
            There is no file, it holds no prompt, or a row is none: the line.
        """
        if self.source is None:
            raise KvguardError("tasks.own.source: names no file: give --prompts FILE.jsonl")
        found: dict[str, tuple[int, Sample]] = {}
        for number, row in read_jsonl(Path(self.source)):
            try:
                sample = _sample(row)
            except KvguardError as error:
                raise KvguardError(f"{self.source}: line {number}: {error}") from None
            first, same = found.setdefault(sample.question, (number, sample))
            if same != sample:
                raise KvguardError(
                    f"{self.source}: line {number}: asks what line {first} asks, with other answers: "
                    "keep one of them, with all answers under answers"
                )
        return [sample for _, sample in found.values()]

    def demonstrations(self, question: str) -> Sequence[Sample]:
        """Return none."""
        return ()

    def score(self, text: str, sample: Sample) -> dict[str, float | None]:
        """Return accuracy by the first number and by the last, exact match and F1."""
        first, last = given_answer(text), last_answer(text)
        return {
            "accuracy": _gives(text, first, sample.references),
            "accuracy_last": _gives(text, last, sample.references),
            "em": exact_match(text, sample.references),
            "f1": token_f1(text, sample.references),
        }

    def messages(self, sample: Sample) -> list[Message]:
        """Return the row's messages, or its prompt as one."""
        if "messages" in sample.metadata:
            return list(json.loads(sample.metadata["messages"]))
        return [{"role": "user", "content": sample.question}]

    def text(self, sample: Sample) -> str:
        """Return the prompt as it is."""
        return "\n\n".join(message["content"] for message in self.messages(sample))


def _gives(text: str, number: str | None, references: Sequence[str]) -> float | None:
    verdicts = (
        stands_in(reference, text) if canonical_number(reference) is None else is_correct(number, reference)
        for reference in references
    )
    return max((float(bool(verdict)) for verdict in verdicts), default=None)


def _sample(row: Mapping[str, Any]) -> Sample:
    if ("prompt" in row) == ("messages" in row):
        raise KvguardError(f"needs {_FIELDS}, one of the two")
    references = _references(row)
    if "prompt" in row:
        return Sample(_said(row["prompt"], "prompt"), references)
    messages = _messages(row["messages"])
    if [message["role"] for message in messages] == ["user"]:
        return Sample(messages[0]["content"], references)
    question = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return Sample(question, references, metadata={"messages": json.dumps(messages, ensure_ascii=False)})


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise KvguardError("messages is no list of messages: write [{role: user, content: ...}, ...]")
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise KvguardError("each of messages needs role and content, and nothing else")
        _said(message["role"], "role")
        _said(message["content"], f"content of the {message['role']} message")
    if value[-1]["role"] == "assistant":
        raise KvguardError("the last message is the assistant's: end with what is asked of it")
    return value


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the answers of a row, numbers as text; a null is none."""
    if row.get("answer") is not None and row.get("answers") is not None:
        raise KvguardError("has answer and answers: keep one of the two")
    found = row.get("answers")
    if found is None:
        found = [] if row.get("answer") is None else [row["answer"]]
    if not isinstance(found, list):
        raise KvguardError("answers is no list: write [...], or answer for a single one")
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in found]
    return tuple(
        str(one) if number else _said(one, "answer") for one, number in zip(found, numbers, strict=True)
    )


def _said(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise KvguardError(f"{field} is no text, or blank: write some text")
    return value
