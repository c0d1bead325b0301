"""What word problems share: the answer is a number that the text states after its steps."""

from typing import ClassVar

from kvguard.config import Share
from kvguard.tasks.amnesia import is_amnesic
from kvguard.tasks.answers import answer_end, given_answer, last_answer, last_answer_end
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

    def answered(self, text: str) -> list[int]:
        """Return where the first complete answer ends, and the last to the question if it is another."""
        first, last = answer_end(text), last_answer_end(text)
        return sorted({end for end in (first, last) if end is not None})

    def score(self, text: str, sample: Sample) -> dict[str, float | None]:
        """Return accuracy by the first answer and by the last, and amnesia.

        The last answer is that of the whole text, whichever problem it is to; amnesia is judged by the
        heuristic of :mod:`kvguard.tasks.amnesia`.
        """
        amnesic = is_amnesic(sample.question, text, self.amnesia_threshold)
        return {
            "accuracy": numeric_match(self.extract(text), sample.references),
            "accuracy_last": numeric_match(last_answer(text), sample.references),
            "amnesia": None if amnesic is None else float(amnesic),
        }
