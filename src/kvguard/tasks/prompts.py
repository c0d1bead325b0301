"""The text of a prompt: an instruction, worked demonstrations, the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvguard.tasks.base import Sample

INSTRUCTION = "Solve the last problem step by step. End with #### and the answer."
CUE = "\nA:"  # follows the question where no chat template says whose turn it is


def demonstration_text(sample: Sample) -> str:
    """Return one worked example as it stands in a prompt."""
    return f"Q: {sample.question}\nA: {sample.solution}"


def build_prompt(question: str, demonstrations: Sequence[Sample] = (), instruction: str = INSTRUCTION) -> str:
    """Return the user message that asks ``question``; an empty instruction is left out."""
    opening = [instruction] if instruction else []
    return "\n\n".join([*opening, *map(demonstration_text, demonstrations), f"Q: {question}"])
