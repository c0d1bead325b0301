"""The record that every task yields."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One question with its reference solution.

    Attributes
    ----------
    question
        The text that is asked.
    solution
        Step-by-step reasoning whose last line is ``#### N``.
    answer
        The canonical number as text, see :func:`kvguard.tasks.answers.canonical_number`.
    family
        The kind of problem inside its task.
    """

    question: str
    solution: str
    answer: str
    family: str
