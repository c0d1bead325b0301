"""GSM8K: grade-school word problems by Cobbe et al. (2021), from a local file or the hub."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from kvguard.config import Count, Natural, Text
from kvguard.errors import KvguardError
from kvguard.tasks.answers import stated_number
from kvguard.tasks.base import Sample
from kvguard.tasks.jsonl import read_jsonl, text_of
from kvguard.tasks.numeric import WordProblems

_CALCULATOR_NOTE = re.compile(r"<<[^>]*>>")


class Gsm8k(WordProblems):
    """GSM8K's test split; ``source`` is a local JSONL file of question and answer, None the hub."""

    name: ClassVar[str] = "gsm8k"

    source: Text | None = None
    max_new_tokens: Count = 512

    def samples(self, n: int, seed: int) -> list[Sample]:
        """Return the first ``n`` problems of the set in the order of ``seed``."""
        found = self.all()
        if n > len(found):
            where = self.source or "the hub"
            raise KvguardError(f"n is {n}, but gsm8k in {where} has {len(found)} problems: lower n")
        Random(f"gsm8k/{seed}").shuffle(found)
        return found[:n]

    def all(self) -> list[Sample]:
        """Return every problem of the set, in its order."""
        return load(self.source)

    def demonstrations(self, question: str) -> list[Sample]:
        """Return the first worked examples; they were written for kvguard, none is GSM8K's."""
        if self.n_shots > len(_DEMONSTRATIONS):
            raise KvguardError(
                f"gsm8k has {len(_DEMONSTRATIONS)} demonstrations, {self.n_shots} were asked for: "
                f"lower tasks.{self.name}.n_shots"
            )
        return list(_DEMONSTRATIONS[: self.n_shots])


class Gsm8kZeroShot(Gsm8k):
    """GSM8K without demonstrations, for models that were trained to solve and to stop."""

    name: ClassVar[str] = "gsm8k_zero_shot"

    n_shots: Natural = 0
    max_new_tokens: Count = 256


def load(source: str | None) -> list[Sample]:
    """Return every problem of the set: of the JSONL file ``source``, or of the hub's test split.

    Rows that ask the same question count once.

    Raises
    ------
    KvguardError
        The set cannot be read, a row is none of its kind, or two rows answer the same question differently.
    """
    problems: dict[str, tuple[Sample, str]] = {}
    for row, where in _hub_rows() if source is None else _rows(source):
        problem = _problem(row, where)
        known, there = problems.setdefault(problem.question, (problem, where))
        if known.references != problem.references:
            raise KvguardError(
                f"{where}: its question has the answer {problem.references[0]}, and {known.references[0]} in "
                f"{there}: keep the right one"
            )
    return [problem for problem, _ in problems.values()]


def _rows(source: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    for number, row in read_jsonl(Path(source)):
        yield row, f"{source}, line {number}"


def _hub_rows() -> Iterator[tuple[Mapping[str, Any], str]]:
    import datasets
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # it would announce each of its retries
    try:
        rows = datasets.load_dataset("openai/gsm8k", "main", split="test")
    except Exception as error:  # datasets and its HTTP layer share no base class
        raise KvguardError(
            f"cannot load gsm8k from the hub ({type(error).__name__}): connect, or give a local JSONL file"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield row, f"gsm8k in the hub, row {number}"


def _problem(row: Mapping[str, Any], where: str) -> Sample:
    question = text_of(row, "question", where)
    solution = _CALCULATOR_NOTE.sub("", text_of(row, "answer", where))
    answer = stated_number(solution)
    if answer is None:
        raise KvguardError(f"{where}: 'answer' does not end with '#### N', N a number: fix it")
    return Sample(question, (answer,), solution)


def _demonstration(question: str, *steps: str, answer: str) -> Sample:
    return Sample(question, (answer,), "\n".join([*steps, f"#### {answer}"]))


_DEMONSTRATIONS = (
    _demonstration(
        "A baker fills 4 trays with 12 rolls each and sells 30 of the rolls. How many rolls are left?",
        "The baker makes 4 * 12 = 48 rolls.",
        "After the sale 48 - 30 = 18 rolls are left.",
        answer="18",
    ),
    _demonstration(
        "Tickets for the puppet show cost $6 for a child and $9 for an adult."
        " What do 5 children and 2 adults pay?",
        "The children pay 5 * 6 = 30 dollars.",
        "The adults pay 2 * 9 = 18 dollars.",
        "Together they pay 30 + 18 = 48 dollars.",
        answer="48",
    ),
    _demonstration(
        "Mina reads 15 pages on Friday and twice as many on Saturday. Her book has 80 pages."
        " How many remain?",
        "On Saturday Mina reads 15 * 2 = 30 pages.",
        "By then she has read 15 + 30 = 45 pages.",
        "So 80 - 45 = 35 pages remain.",
        answer="35",
    ),
    _demonstration(
        "A tank holds 200 liters. A pump drains a quarter of it, then 20 liters more."
        " How much water stays in it?",
        "A quarter of the tank is 200 / 4 = 50 liters.",
        "The pump takes 50 + 20 = 70 liters.",
        "The tank keeps 200 - 70 = 130 liters.",
        answer="130",
    ),
    _demonstration(
        "Olek walks 3 km to work and 3 km back, five days a week. How far does he walk in two weeks?",
        "Each day Olek walks 3 + 3 = 6 km.",
        "In a week he walks 6 * 5 = 30 km.",
        "In two weeks he walks 30 * 2 = 60 km.",
        answer="60",
    ),
    _demonstration(
        "Three friends share the price of a $45 tent and a $24 stove equally."
        " How much does each of them pay?",
        "Both things cost 45 + 24 = 69 dollars.",
        "Each friend pays 69 / 3 = 23 dollars.",
        answer="23",
    ),
    _demonstration(
        "A shirt costs $40 and is sold at 25% off. Rosa buys two of them. How much does she spend?",
        "The discount is 40 * 25 / 100 = 10 dollars.",
        "One shirt costs 40 - 10 = 30 dollars.",
        "Two shirts cost 30 * 2 = 60 dollars.",
        answer="60",
    ),
    _demonstration(
        "A train with 120 passengers stops twice. At the first stop 35 leave and 20 enter;"
        " at the second 15 leave. How many passengers are on it now?",
        "After the first stop there are 120 - 35 + 20 = 105 passengers.",
        "After the second there are 105 - 15 = 90 passengers.",
        answer="90",
    ),
)
