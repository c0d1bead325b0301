"""Files and hub data sets brought into one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kv_transition.data.example import Example
from kvguard.errors import KvguardError, foreign
from kvguard.tasks.jsonl import read_jsonl, text_of

LONGBENCH = "THUDM/LongBench"


def read_longbench(path: str | None, task: str | None) -> list[Example]:
    """Return LongBench's items: of local files in its fields, or of the hub.

    Parameters
    ----------
    path
        A file of JSON Lines, or a folder of them; None asks the hub.
    task
        One of LongBench's data sets; None takes all that the files hold.

    Raises
    ------
    KvguardError
        They cannot be read, or hold none of the task.
    """
    if path is None:
        rows: Iterable[tuple[str, Mapping[str, Any]]] = _hub(str(task))
    else:
        rows = ((where, row) for where, row in _lines(path) if task is None or row.get("dataset") == task)
    found = [
        Example.of(
            text_of(row, "input", where),
            _context(row, where),
            _answers(row, where),
            {"dataset": row.get("dataset"), "source_id": row.get("_id")},
        )
        for where, row in rows
    ]
    if not found:
        raise KvguardError(f"dataset.task: no item of {task!r} in {path or LONGBENCH}: name another")
    return found


def read_questions(path: str) -> list[Example]:
    """Return the rows of files with ``question``, ``answers`` (or ``answer``) and ``context``.

    Raises
    ------
    KvguardError
        They cannot be read, or a row lacks one of these: its file and line.
    """
    return [
        Example.of(
            text_of(row, "question", where),
            _context(row, where) if "context" in row else "",
            _answers(row, where),
            {"source_id": row.get("id")},
        )
        for where, row in _lines(path)
    ]


def _hub(task: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with foreign(f"dataset.task: {LONGBENCH} {task}", "check the name and the network, or give dataset.path"):
        from datasets import load_dataset

        for number, row in enumerate(load_dataset(LONGBENCH, task, split="test")):
            yield f"{LONGBENCH}, row {number}", row


def _lines(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row of JSON Lines with the name of its place."""
    root = Path(path)
    files = sorted(root.glob("*.jsonl")) if root.is_dir() else [root]
    if not files:
        raise KvguardError(f"dataset.path: {path} holds no .jsonl file: name a file, or another folder")
    for file in files:
        for number, row in read_jsonl(file):
            yield f"{file}, line {number}", row


def _context(row: Mapping[str, Any], where: str) -> str:
    """Return the context of a row, which may be empty."""
    if not isinstance(row.get("context"), str):
        raise KvguardError(f"{where}: 'context' is no text: each row needs it")
    return str(row["context"])


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = row.get("answers", row.get("answer"))
    listed = found if isinstance(found, list) else [found]
    answers = tuple(str(one) for one in listed if isinstance(one, str | int | float) and str(one).strip())
    if not answers:
        raise KvguardError(f"{where}: 'answers' holds no answer: each row needs one")
    return answers
