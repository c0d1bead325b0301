"""What word problems share: the answer is a number that the text states after its steps."""

from typing import ClassVar

from kvguard.config import Share
from kvguard.tasks.amnesia import is_amnesic
from kvguard.tasks.answers import answer_end, given_answer, last_answer_end, parse_answer
from kvguard.tasks.base import Sample, Task
from kvguard.tasks.prompts import INSTRUCTION
from kvguard.tasks.scores import numeric_match


class WordProblems(Task):
    """A task of word problems, scored by the number it answers, and by whether a solution is of its question.

    ``amnesia_threshold`` is the share of a solution's numbers and names that may be foreign to the question.
    """

    headline: ClassVar[str] = "accuracy"
    instruction: ClassVar[str] = INSTRUCTION

    amnesia_threshold: Share = 0.5

    def extract(self, text: str) -> str | None:
        """Return the number of the first complete answer; where none is stated, the last number."""
        return given_answer(text)

    def answered(self, text: str) -> int | None:
        """Return where the first complete answer ends, see :func:`~kvguard.tasks.answers.answer_end`."""
        return answer_end(text)

    def settled_at(self, text: str) -> int | None:
        """Return where the last complete answer to the question ends."""
        return last_answer_end(text)

    def score(self, text: str, sample: Sample) -> dict[str, float | None]:
        """Return accuracy by the first answer and by the last, and amnesia.

        The heuristic of amnesia is that of :mod:`kvguard.tasks.amnesia`; it looks at the whole text.
        """
        amnesic = is_amnesic(sample.question, text, self.amnesia_threshold)
        return {
            "accuracy": numeric_match(self.extract(text), sample.references),
            "accuracy_last": numeric_match(parse_answer(text), sample.references),
            "amnesia": None if amnesic is None else float(amnesic),
        }
