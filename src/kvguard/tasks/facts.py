"""Short factual texts and questions that one sentence of them answers, in one token or in several.

    Ana has 4 pens. Ben is in the park. Cora keeps 3 coins and 5 keys in the box. Dan likes plums. ...
    What does Cora keep in the box?
    3 coins and 5 keys

Whoever answers has to find a sentence by a name, and copy from it. Pure Python: harnesses that know no model
import it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kvguard.tasks.words import CONTAINERS, NAMES, OBJECTS, PLACES

LEAD = "Read this."


@dataclass(frozen=True)
class Fact:
    """A sentence about one person, a question that it answers, in two wordings, and the answer.

    Attributes
    ----------
    kind
        ``count``, ``place``, ``liking`` or ``keeping``; the last has the longest answers.
    """

    person: str
    kind: str
    sentence: str
    question: str
    paraphrase: str
    answer: str


def _count(rng: Random, person: str) -> Fact:
    n, things = rng.randint(2, 9), rng.choice(OBJECTS)
    return Fact(
        person,
        "count",
        f"{person} has {n} {things}.",
        f"How many {things} does {person} have?",
        f"What is the number of {things} of {person}?",
        str(n),
    )


def _place(rng: Random, person: str) -> Fact:
    place = rng.choice(PLACES)
    return Fact(
        person, "place", f"{person} is {place}.", f"Where is {person}?", f"At which place is {person}?", place
    )


def _liking(rng: Random, person: str) -> Fact:
    things = rng.choice(OBJECTS)
    return Fact(
        person,
        "liking",
        f"{person} likes {things}.",
        f"What does {person} like?",
        f"Which things does {person} like?",
        things,
    )


def _keeping(rng: Random, person: str) -> Fact:
    (a, b), where = rng.sample(OBJECTS, 2), rng.choice(CONTAINERS)
    held = f"{rng.randint(2, 9)} {a} and {rng.randint(2, 9)} {b}"
    return Fact(
        person,
        "keeping",
        f"{person} keeps {held} in the {where}.",
        f"What does {person} keep in the {where}?",
        f"Which things are in the {where} of {person}?",
        held,
    )


_KINDS: tuple[Callable[[Random, str], Fact], ...] = (_count, _place, _liking, _keeping)


def facts(rng: Random, n: int) -> list[Fact]:
    """Return ``n`` facts about as many persons; there are names for at most 70."""
    return [rng.choice(_KINDS)(rng, person) for person in rng.sample(NAMES, n)]


def text(made: list[Fact]) -> str:
    """Return the text that states facts, in their order."""
    return " ".join((LEAD, *(fact.sentence for fact in made)))
