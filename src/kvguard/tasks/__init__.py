"""Tasks: what is asked, and how an answer is scored."""

from typing import Any

import pandas as pd
from pydantic import ValidationError

from kvguard.config import check_known, first_mistake
from kvguard.errors import KvguardError
from kvguard.tasks.arithmetic import Arithmetic
from kvguard.tasks.base import Sample, Task
from kvguard.tasks.gsm8k import Gsm8k, Gsm8kZeroShot
from kvguard.tasks.longarith import LongArith
from kvguard.tasks.own import OwnPrompts

__all__ = ["TASKS", "Sample", "Task", "make_task", "sample_prompts"]

_KNOWN: tuple[type[Task], ...] = (
    Arithmetic,
    Gsm8k,
    Gsm8kZeroShot,
    OwnPrompts,
    LongArith,
)
TASKS: dict[str, type[Task]] = {task.name: task for task in _KNOWN}


def make_task(name: str, **settings: Any) -> Task:
    """Return the task called ``name`` with these settings, its own defaults for the others.

    Raises
    ------
    KvguardError
        No task has the name, or it does not take a setting.
    """
    check_known("tasks", name, TASKS)
    try:
        return TASKS[name].model_validate(settings)
    except ValidationError as error:
        raise KvguardError(first_mistake(error, TASKS[name], "tasks", name)) from None


def sample_prompts(name: str, n: int, seed: int, **settings: Any) -> pd.DataFrame:
    """Return the prompts table of a task made with these settings, see :meth:`Task.prompts`."""
    return make_task(name, **settings).prompts(n, seed)
