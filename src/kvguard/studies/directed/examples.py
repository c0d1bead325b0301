"""What is read and asked: a document, a question about it, its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvguard.errors import KvguardError
from kvguard.store.parts import digest
from kvguard.tasks.jsonl import read_jsonl, text_of


@dataclass(frozen=True)
class Example:
    """A document and a question about it.

    Attributes
    ----------
    id
        Unlike any other of its data set.
    answers
        Every text that counts as right.
    target
        The answer whose NLL is measured: the first of the answers, or one that says more.
    paraphrase
        The question in other words, where the data set has it.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    target: str
    paraphrase: str = ""

    @property
    def document(self) -> str:
        """Names the document: examples of one document are no independent samples."""
        return digest(self.context)[:16]

    @classmethod
    def of(cls, row: Mapping[str, Any], where: str, nth: int) -> Example:
        """Return the example of a row with question, context and answers, and perhaps id, target, paraphrase.

        Raises
        ------
        KvguardError
            A field is missing, of another kind, or empty; ``where`` says of which row.
        """
        question, context = text_of(row, "question", where), text_of(row, "context", where)
        answers = _answers(row, where)
        return cls(
            str(row.get("id") or f"row-{nth}"),
            question.strip(),
            context.strip(),
            answers,
            text_of(row, "target", where) if "target" in row else answers[0],
            text_of(row, "paraphrase", where) if "paraphrase" in row else "",
        )


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a file of JSON Lines, or of all such files of a folder.

    Rows that say ``is_impossible`` have no answer that could be measured, and are passed over.

    Raises
    ------
    KvguardError
        A file cannot be read, a field is missing or empty, or two rows have one id: its file and line.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise KvguardError(f"{path} holds no .jsonl file: name a file, or another folder")
    rows = [(f"{file}, line {number}", row) for file in files for number, row in read_jsonl(file)]
    return examples_of(rows)


def examples_of(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Example]:
    """Return the examples of rows, each with the name of its place.

    Raises
    ------
    KvguardError
        See :func:`read_examples`.
    """
    seen: dict[str, str] = {}
    found = []
    for nth, (where, row) in enumerate(rows):
        if row.get("is_impossible") is True:
            continue
        example = Example.of(row, where, nth)
        if example.id in seen:
            raise KvguardError(
                f"{where}: the id {example.id!r} is that of {seen[example.id]}: make ids unlike"
            )
        seen[example.id] = where
        found.append(example)
    if not found:
        raise KvguardError(f"{rows[0][0] if rows else 'data set'}: no row has an answer: give some that do")
    return found


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    name = "answers" if "answers" in row else "answer"
    if name not in row:
        known = ", ".join(map(repr, list(row)[:8])) or "none"
        raise KvguardError(f"{where}: there is no 'answers' among its keys ({known}): add it")
    found = row[name] if isinstance(row[name], list) else [row[name]]
    for one in found:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise KvguardError(f"{where}: {name!r} holds {one!r}, which is no text: write texts")
    answers = tuple(dict.fromkeys(str(one).strip() for one in found if str(one).strip()))
    if not answers:
        raise KvguardError(f"{where}: {name!r} is empty: write an answer, or leave the row out")
    return answers
