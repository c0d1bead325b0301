"""Tasks: where prompts come from and how an answer is judged."""

import hashlib
from itertools import islice

import pandas as pd

from kvguard.errors import KvguardError
from kvguard.tasks import arithmetic, gsm8k
from kvguard.tasks.problem import Problem
from kvguard.tasks.prompts import build_prompt

__all__ = ["TASK_NAMES", "Problem", "load_problems", "sample_prompts"]

TASK_NAMES: tuple[str, ...] = ("arithmetic", "gsm8k")


def load_problems(task: str, n: int, seed: int, source: str | None = None) -> list[Problem]:
    """Return ``n`` distinct problems of ``task``: the same for the same arguments.

    Asking for more with the same seed keeps the ones already given, in the same order.

    Parameters
    ----------
    task
        One of :data:`TASK_NAMES`.
    n
        How many; for gsm8k at most the size of the set.
    seed
        Chooses and orders the problems.
    source
        A local JSONL file for gsm8k; None reads the hub. Arithmetic is made, not read.
    """
    _check_task(task)
    if n < 1:
        raise KvguardError(f"n is {n} for task {task}: ask for at least one problem")
    if task == "arithmetic":
        if source is not None:
            raise KvguardError(
                f"task arithmetic is generated and reads no source ({source}): leave source empty"
            )
        return list(islice(arithmetic.stream(seed, "evaluation"), n))
    problems = gsm8k.load(source)
    if n > len(problems):
        raise KvguardError(
            f"n is {n}, but gsm8k in {source or 'the hub'} has {len(problems)} problems: lower n"
        )
    return gsm8k.shuffled(problems, seed)[:n]


def sample_prompts(task: str, n: int, seed: int, n_shots: int, source: str | None = None) -> pd.DataFrame:
    """Return the prompts table: prompt_id, task, question, prompt, answer.

    ``prompt`` is the text of the user message, with ``n_shots`` worked demonstrations before the question.
    """
    if n_shots < 0:
        raise KvguardError(f"n_shots is {n_shots}: give 0 or more demonstrations")
    rows = [
        {
            "prompt_id": hashlib.sha256(f"{task}\n{problem.question}".encode()).hexdigest()[:16],
            "task": task,
            "question": problem.question,
            "prompt": build_prompt(problem.question, _demonstrations(task, problem, n_shots)),
            "answer": problem.answer,
        }
        for problem in load_problems(task, n, seed, source)
    ]
    return pd.DataFrame(rows)


def _demonstrations(task: str, problem: Problem, n_shots: int) -> list[Problem]:
    if task == "arithmetic":
        return arithmetic.demonstrations(problem.question, n_shots)
    return gsm8k.demonstrations(n_shots)


def _check_task(task: str) -> None:
    if task not in TASK_NAMES:
        raise KvguardError(f"unknown task {task!r}: choose one of {', '.join(TASK_NAMES)}")
