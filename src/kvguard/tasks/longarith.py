"""Sums over a long text: two facts far apart, among other facts and things beside the point.

    Ana has 4 pens. The box in the park holds 5 coins. Ben likes plums. ... Ben has 9 keys. ...
    How many things do Ana and Ben have together? ...

    So Ana has 4 and Ben has 9: 4 + 9 = 13.
    Answer: 13

A text is as long as one wants, in sentences. Whoever writes the answer has to find two sentences in it, so
what a compressed cache has lost shows as a wrong number. Pure Python: harnesses that know no model import it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from kvguard.config import Count
from kvguard.tasks.arithmetic import Split
from kvguard.tasks.base import Message, Sample
from kvguard.tasks.numeric import WordProblems
from kvguard.tasks.words import CONTAINERS, NAMES, OBJECTS, PLACES

LEAD = "Read this."
CUE = "Write what each of them has, then Answer: and the sum."
MIN_SENTENCES = 8
FACT_SHARE = 0.25
_FAR = 2 / 3  # both facts stand in this share of the text, counted from its start
_NUMBERS = (2, 9)  # one token each, as a word would be


@dataclass(frozen=True)
class Document:
    """A text of sentences, and what each person in it has.

    Attributes
    ----------
    sentences
        In order: facts ("Ana has 4 pens.") and distractors.
    holdings
        Number by person, in the order of the facts.
    places
        Index of each person's fact among the sentences.
    """

    sentences: tuple[str, ...]
    holdings: dict[str, int]
    places: dict[str, int]

    @property
    def text(self) -> str:
        """What is read before the question."""
        return " ".join((LEAD, *self.sentences))

    def askable(self, split: Split, rng: Random, far: float = _FAR) -> Iterator[tuple[str, str]]:
        """Yield pairs of persons that ``split`` may ask for, in random order, no person twice."""
        last = far * len(self.sentences)
        people = [person for person, place in self.places.items() if place < last]
        rng.shuffle(people)
        while len(people) >= 2:
            first, second = people.pop(), people.pop()
            if split_of(first, self.holdings[first], second, self.holdings[second]) == split:
                yield first, second

    def solution(self, first: str, second: str) -> str:
        """Return the answer as it should be written."""
        a, b = self.holdings[first], self.holdings[second]
        return f"So {first} has {a} and {second} has {b}: {a} + {b} = {a + b}.\nAnswer: {a + b}"


def question(first: str, second: str, cue: bool = True) -> str:
    """Return what is asked of two persons, with or without how to answer."""
    return f"How many things do {first} and {second} have together?{f' {CUE}' if cue else ''}"


def split_of(first: str, a: int, second: str, b: int) -> Split:
    """Return the split that two facts belong to, in either order: no two splits ask for the same pair."""
    asked = "/".join(sorted((f"{first} {a}", f"{second} {b}")))
    bucket = hashlib.sha256(asked.encode()).digest()[0] % 10
    if bucket == 0:
        return "evaluation"
    return "demonstration" if bucket == 1 else "train"


def document(rng: Random, n_sentences: int, fact_share: float = FACT_SHARE) -> Document:
    """Return a text of ``n_sentences``; a share of them are facts, as long as there are names for them."""
    n_facts = max(4, min(len(NAMES), round(fact_share * n_sentences)))
    people = rng.sample(NAMES, n_facts)
    at = sorted(rng.sample(range(n_sentences), n_facts))
    holdings = {person: rng.randint(*_NUMBERS) for person in people}
    sentences = [_distractor(rng) for _ in range(n_sentences)]
    for place, (person, number) in zip(at, holdings.items(), strict=True):
        sentences[place] = f"{person} has {number} {rng.choice(OBJECTS)}."
    return Document(tuple(sentences), holdings, dict(zip(people, at, strict=True)))


def sample(rng: Random, n_sentences: int, split: Split = "evaluation") -> Sample:
    """Return the next text of ``split`` from ``rng`` with its question and answer.

    Raises
    ------
    ValueError
        Fewer than :data:`MIN_SENTENCES` hold no two facts far from the question.
    """
    if n_sentences < MIN_SENTENCES:
        raise ValueError(f"{n_sentences} sentences are too few: ask for at least {MIN_SENTENCES}")
    while True:
        made = document(rng, n_sentences)
        pair = next(made.askable(split, rng), None)
        if pair is None:
            continue
        answer = sum(made.holdings[person] for person in pair)
        where = [made.places[person] for person in pair]
        return Sample(
            f"{made.text}\n\n{question(*pair)}",
            (str(answer),),
            made.solution(*pair),
            {"sentences": str(n_sentences), "facts_at": " ".join(map(str, where))},
        )


class LongArith(WordProblems):
    """Texts of ``sentences`` sentences, some 9 tokens each, asked as they are: without demonstrations."""

    name: ClassVar[str] = "longarith"
    instruction: ClassVar[str] = ""

    n_shots: Annotated[int, Field(strict=True, ge=0, le=0)] = 0  # one would be as long as what is asked
    max_new_tokens: Count = 64
    sentences: Annotated[int, Field(strict=True, ge=MIN_SENTENCES)] = 60

    def samples(self, n: int, seed: int) -> list[Sample]:
        """Return the first ``n`` texts of the evaluation split."""
        rng = Random(f"longarith/evaluation/{seed}")
        return [sample(rng, self.sentences) for _ in range(n)]

    def demonstrations(self, question: str) -> Sequence[Sample]:
        """Return none."""
        return ()

    def messages(self, sample: Sample) -> list[Message]:
        """Return the text with its question."""
        return [{"role": "user", "content": sample.question}]

    def text(self, sample: Sample) -> str:
        """Return the text with its question, and a cue to answer."""
        return f"{sample.question}\n"


def _distractor(rng: Random) -> str:
    kind, things, number = rng.random(), rng.choice(OBJECTS), rng.randint(*_NUMBERS)
    if kind < 0.4:
        return f"The {rng.choice(CONTAINERS)} {rng.choice(PLACES)} holds {number} {things}."
    if kind < 0.7:
        return f"{rng.choice(NAMES)} likes {things}."
    return f"{number} {things} are {rng.choice(PLACES)}."
