"""A program that is asked: the question on its standard input, the answer is what it prints."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess

from kvguard.errors import KvguardError
from kvguard.studies.instructions.judge.asking import Asker, Failure, Reply

TIMEOUT = 300.0  # seconds: a client may start slowly, and its model think


def command(line: str, timeout: float = TIMEOUT) -> Asker:
    """Return what asks the program of a command line.

    Raises
    ------
    KvguardError
        The line is none, or its program is not there.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise KvguardError(
            f"--judge-command {line!r}: {str(error).lower()}: quote it as a shell would"
        ) from None
    if not words or shutil.which(words[0]) is None:
        raise KvguardError(
            f"--judge-command {line!r}: there is no such program: give one on PATH, or its path"
        )
    return _Command(line, words, timeout)


class _Command:
    price: tuple[float, float] | None = None

    def __init__(self, line: str, words: list[str], timeout: float) -> None:
        self.name = f"command {line}"
        self._words = words
        self._timeout = timeout

    def ask(self, system: str, question: str) -> Reply:
        try:
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # what it starts ends with it
            )
        except OSError as error:
            raise Failure("failed", str(error)) from None
        try:
            printed, complaint = process.communicate(f"{system}\n\n{question}\n".encode(), self._timeout)
        except subprocess.TimeoutExpired:
            raise Failure("timeout", f"no answer in {self._timeout:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode:
            raise Failure("failed", f"exit {process.returncode}: {complaint.decode(errors='replace')[:200]}")
        return Reply(printed.decode(errors="replace"))
