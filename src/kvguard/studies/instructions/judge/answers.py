"""Replies that were given, on disk by the content of the question: none is asked for twice."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from kvguard.errors import KvguardError
from kvguard.studies.instructions.judge.asking import Reply


class Answers:
    """A folder of replies, one file each; files are whole or not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KvguardError(
                f"cannot keep answers in {folder} ({error.strerror}): name another folder"
            ) from None

    def get(self, *question: str) -> Reply | None:
        """Return the reply that was given, None where there is none; a damaged file is none."""
        try:
            found = json.loads(self._path(question).read_text(encoding="utf-8"))
            tokens = found["tokens"]
            return Reply(
                str(found["text"]), bool(found["refused"]), None if tokens is None else tuple(tokens)
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, reply: Reply, *question: str) -> None:
        """Keep a reply."""
        path = self._path(question)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({**asdict(reply), "question": question}), encoding="utf-8")
        temporary.replace(path)

    def _path(self, question: tuple[str, ...]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(question).encode()).hexdigest()}.json"
