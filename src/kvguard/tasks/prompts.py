"""The text of a user message: an instruction, worked demonstrations, the question."""

from collections.abc import Sequence

from kvguard.tasks.problem import Problem

INSTRUCTION = "Solve the last problem step by step. End with #### and the answer."


def demonstration_text(problem: Problem) -> str:
    """Return one worked example as it stands in a prompt."""
    return f"Q: {problem.question}\nA: {problem.solution}"


def build_prompt(
    question: str, demonstrations: Sequence[Problem] = (), instruction: str = INSTRUCTION
) -> str:
    """Return the user message that asks ``question``; an empty instruction is left out."""
    opening = [instruction] if instruction else []
    return "\n\n".join([*opening, *map(demonstration_text, demonstrations), f"Q: {question}"])
