"""A judge for instructions that no rule can check: a model behind an endpoint, or a program."""

from __future__ import annotations

import logging
from pathlib import Path

from kvguard.errors import KvguardError
from kvguard.studies.instructions.judge.asking import Asker, Failure, Reply
from kvguard.studies.instructions.judge.command import command
from kvguard.studies.instructions.judge.endpoints import endpoint
from kvguard.studies.instructions.judge.judge import Judge

__all__ = ["Asker", "Failure", "Judge", "Reply", "asker", "make_judge"]

logger = logging.getLogger(__name__)

JUDGE_MODEL = "claude-haiku-4-5-20251001"
MAX_CALLS = 1000
MAX_COST = 5.0  # dollars


def asker(url: str | None, program: str | None, model: str, max_tokens: int) -> Asker:
    """Return what puts a question to a model: behind ``url``, or by ``program``.

    Raises
    ------
    KvguardError
        Both or neither are given, the program is not there, the SDK is not installed, or the key is missing.
    """
    if (url is None) == (program is None):
        raise KvguardError(
            "a judge is an endpoint or a program: give one of --judge URL and --judge-command PROGRAM"
        )
    return command(program) if program is not None else endpoint(str(url), model, max_tokens)


def make_judge(
    url: str | None,
    program: str | None = None,
    model: str | None = None,
    folder: Path | None = None,
    max_calls: int | None = None,
    max_cost: float | None = None,
) -> Judge | None:
    """Return the judge, None where neither an endpoint nor a program is given.

    Parameters
    ----------
    url
        ``anthropic`` or ``openai``: their own endpoints. ``anthropic:URL`` or ``openai:URL``: one that speaks
        as they do; a plain URL speaks as OpenAI's.
    program
        A command line; the question comes on its standard input, its answer is what it prints.
    model
        The model's name at the endpoint; :data:`JUDGE_MODEL` by default.
    folder
        Where answers are kept, by content; ``~/.cache/kvguard/judge`` by default.
    max_calls, max_cost
        After so many calls, or dollars, it is not asked any more.

    Raises
    ------
    KvguardError
        See :func:`asker`.
    """
    if url is None and program is None:
        logger.warning(
            "no judge: instructions that no rule can check are not scored (--judge, --judge-command)"
        )
        return None
    return Judge(
        asker(url, program, model or JUDGE_MODEL, max_tokens=16),
        folder or Path.home() / ".cache" / "kvguard" / "judge",
        MAX_CALLS if max_calls is None else max_calls,
        MAX_COST if max_cost is None else max_cost,
    )
