"""Multi-step word problems over small whole numbers, made procedurally.

A problem's split is a hash of its question, so training, demonstrations and evaluation can
never share an instance, whatever seeds they are drawn with.
"""

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from random import Random
from typing import ClassVar, Literal

from kvguard.tasks.base import Sample
from kvguard.tasks.numeric import WordProblems
from kvguard.tasks.words import CONTAINERS, GAIN_VERBS, LOSS_VERBS, NAMES, OBJECTS, PACKS, PLACES

Split = Literal["train", "demonstration", "evaluation"]

MAIN_FAMILY = "story"
MAX_STEPS = 8
DEMONSTRATION_STEPS = (2, 3)
_MAIN_SHARE = 0.5
_CEILING = 150


def split_of(question: str) -> Split:
    """Return the split a question belongs to: 1/10 evaluation, 1/10 demonstration, the rest train."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 10
    if bucket == 0:
        return "evaluation"
    return "demonstration" if bucket == 1 else "train"


def generate(
    rng: Random, split: Split, min_steps: int = 2, max_steps: int = MAX_STEPS, family: str | None = None
) -> Sample:
    """Return the next problem of ``split`` from ``rng``; half of them are of the main family."""
    while True:
        chosen = family or (MAIN_FAMILY if rng.random() < _MAIN_SHARE else rng.choice(_SIDE_FAMILIES))
        question, steps, answer = FAMILIES[chosen](rng, rng.randint(min_steps, max_steps))
        if split_of(question) == split:
            solution = f"{' '.join(steps)}\n#### {answer}"
            return Sample(question, (str(answer),), solution, {"family": chosen})


def stream(seed: int, split: Split) -> Iterator[Sample]:
    """Yield the problems of ``split`` without repeats; the first n are the same for every n."""
    rng = Random(f"arithmetic/{split}/{seed}")
    seen: set[str] = set()
    while True:
        problem = generate(rng, split)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def demonstrations(question: str, n: int) -> list[Sample]:
    """Return ``n`` short worked problems for ``question``: always the same ones, never of its split."""
    rng = Random(f"demonstrations/{question}")
    low, high = DEMONSTRATION_STEPS
    return [generate(rng, "demonstration", low, high) for _ in range(n)]


class Arithmetic(WordProblems):
    """Problems that are made, not read; demonstrations differ from question to question."""

    name: ClassVar[str] = "arithmetic"

    def samples(self, n: int, seed: int) -> list[Sample]:
        """Return the first ``n`` problems of the evaluation split."""
        return list(islice(stream(seed, "evaluation"), n))

    def demonstrations(self, question: str) -> list[Sample]:
        """Return short problems of the demonstration split."""
        return demonstrations(question, self.n_shots)


_Parts = tuple[str, list[str], int]


def _story(rng: Random, n_steps: int) -> _Parts:
    name, other, friend = rng.sample(NAMES, 3)
    things = rng.choice(OBJECTS)
    have = rng.randint(4, 50)
    place = f" {rng.choice(PLACES)}" if rng.random() < 0.3 else ""
    told = [f"{name} has {have} {things}{place}."]
    steps: list[str] = []
    compares = n_steps >= 3 and rng.random() < 0.25
    budget = n_steps - 2 if compares else n_steps
    while len(steps) < budget:
        before = have
        kind = rng.random()
        if kind < 0.12 and budget - len(steps) >= 2 and have <= _CEILING - 54:
            packs, each, pack = rng.randint(2, 6), rng.randint(2, 9), rng.choice(PACKS)
            have += packs * each
            told.append(f"{name} buys {packs} {pack} of {each} {things}.")
            steps.append(f"{packs} {pack}: {packs} * {each} = {packs * each} {things}.")
            steps.append(f"{name} has {before} + {packs * each} = {have} {things}.")
        elif kind < 0.20 and have <= 60:
            have *= 2
            told.append(f"Then the {things} of {name} double.")
            steps.append(f"{name} doubles: {before} * 2 = {have} {things}.")
        elif kind < 0.28 and have % 2 == 0 and have >= 8:
            have //= 2
            told.append(f"{name} gives half of the {things} to {friend}.")
            steps.append(f"{name} gives half: {before} / 2 = {have} {things}.")
        elif (kind < 0.64 and have <= _CEILING - 30) or have < 8:
            k = rng.randint(2, 30)
            have += k
            verb = rng.choice(GAIN_VERBS)
            told.append(f"{name} {verb} {k} {rng.choice(('more ', ''))}{things}.")
            steps.append(f"{name} {verb} {k}: {before} + {k} = {have} {things}.")
        else:
            k = rng.randint(2, min(30, have - 2))
            have -= k
            if rng.random() < 0.3:
                verb = "gives"
                told.append(f"{name} gives {k} {things} to {friend}.")
            else:
                verb = rng.choice(LOSS_VERBS)
                told.append(f"{name} {verb} {k} {things}.")
            steps.append(f"{name} {verb} {k}: {before} - {k} = {have} {things}.")
    if not compares:
        asked = rng.choice(("now", "in the end", "at last", "after that"))
        return f"{' '.join(told)} How many {things} does {name} have {asked}?", steps, have
    gap = rng.randint(2, 20)
    told.append(f"{other} has {gap} more {things} than {name}.")
    theirs, together = have + gap, have + have + gap
    steps.append(f"{other} has {have} + {gap} = {theirs} {things}.")
    steps.append(f"Together they have {have} + {theirs} = {together} {things}.")
    return f"{' '.join(told)} How many {things} do they have together?", steps, together


def _until(rng: Random, n_steps: int) -> _Parts:
    name, things, holder = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(CONTAINERS)
    start, daily = rng.randint(2, 30), rng.randint(2, 12)
    goal = start + n_steps * daily - rng.randint(0, daily - 1)
    steps, total = [], start
    for day in range(1, n_steps + 1):
        judged = f"at least {goal}" if total + daily >= goal else f"less than {goal}"
        steps.append(f"Day {day}: {total} + {daily} = {total + daily} {things}, {judged}.")
        total += daily
    question = rng.choice((
        f"A {holder} holds {start} {things}. Every day {name} adds {daily} {things}."
        f" After how many days does it hold at least {goal} {things}?",
        f"{name} owns {start} {things} and gets {daily} more every day."
        f" How many days until {name} has {goal} {things} or more?",
    ))  # fmt: skip
    return question, steps, n_steps


def _countdown(rng: Random, n_steps: int) -> _Parts:
    name, things, holder = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(CONTAINERS)
    daily = rng.randint(3, 12)
    left = n_steps * daily + rng.randint(0, daily - 1)
    question = rng.choice((
        f"A {holder} holds {left} {things}. Every day {name} takes {daily} {things}."
        f" On which day are fewer than {daily} {things} left?",
        f"{name} has {left} {things} and uses {daily} of them every day."
        f" After how many days does {name} have fewer than {daily} {things}?",
    ))  # fmt: skip
    steps = []
    for day in range(1, n_steps + 1):
        steps.append(f"Day {day}: {left} - {daily} = {left - daily} {things}.")
        left -= daily
    return question, steps, n_steps


def _inventory(rng: Random, n_steps: int) -> _Parts:
    name = rng.choice(NAMES)
    kinds = rng.sample(OBJECTS, n_steps + 1)
    counts = [rng.randint(2, 20) for _ in kinds]
    listed = [f"{count} {kind}" for count, kind in zip(counts, kinds, strict=True)]
    holder = rng.choice(CONTAINERS)
    question = (
        f"{name} fills a {holder} with {', '.join(listed[:-1])} and {listed[-1]}."
        f" How many things are in the {holder}?"
    )
    total = counts[0]
    steps = [f"{kinds[0]}: {total} things."]
    for count, kind in zip(counts[1:], kinds[1:], strict=True):
        steps.append(f"{kind}: {total} + {count} = {total + count} things.")
        total += count
    return question, steps, total


def _relations(rng: Random, n_steps: int) -> _Parts:
    people = rng.sample(NAMES, n_steps + 1)
    things = rng.choice(OBJECTS)
    have = rng.randint(5, 40)
    told, steps = [f"{people[0]} has {have} {things}."], []
    for previous, person in pairwise(people):
        before, kind = have, rng.random()
        if kind < 0.15 and have <= 50:
            have *= 2
            told.append(f"{person} has twice as many as {previous}.")
            steps.append(f"{person} has {before} * 2 = {have} {things}.")
        elif (kind < 0.6 and have <= _CEILING - 20) or have < 8:
            k = rng.randint(2, 20)
            have += k
            told.append(f"{person} has {k} more than {previous}.")
            steps.append(f"{person} has {before} + {k} = {have} {things}.")
        else:
            k = rng.randint(2, min(20, have - 3))
            have -= k
            told.append(f"{person} has {k} fewer than {previous}.")
            steps.append(f"{person} has {before} - {k} = {have} {things}.")
    return f"{' '.join(told)} How many {things} does {people[-1]} have?", steps, have


def _shopping(rng: Random, n_steps: int) -> _Parts:
    name = rng.choice(NAMES)
    n_kinds = max(2, min(4, (n_steps + 1) // 2))
    kinds = rng.sample(OBJECTS, n_kinds)
    lines = [(rng.randint(2, 5), rng.randint(2, 9)) for _ in kinds]
    listed = [f"{n} {kind} for {price} dollars each" for (n, price), kind in zip(lines, kinds, strict=True)]
    question = f"{name} buys {', '.join(listed[:-1])} and {listed[-1]}. How many dollars does {name} pay?"
    steps, total = [], 0
    for (n, price), kind in zip(lines, kinds, strict=True):
        cost = n * price
        steps.append(f"{kind}: {n} * {price} = {cost} dollars.")
        if total:
            steps.append(f"{name} pays {total} + {cost} = {total + cost} dollars.")
        total += cost
    return question, steps, total


def _sharing(rng: Random, n_steps: int) -> _Parts:
    people = rng.sample(NAMES, n_steps)
    things = rng.choice(OBJECTS)
    each = rng.randint(2, 12)
    total = rng.randint(3, 40)
    question = (
        f"A {rng.choice(CONTAINERS)} holds {total} {things}. {', '.join(people[:-1])} and {people[-1]}"
        f" each add {each} {things}. How many {things} are there now?"
    )
    steps = []
    for person in people:
        steps.append(f"{person}: {total} + {each} = {total + each} {things}.")
        total += each
    return question, steps, total


FAMILIES: dict[str, Callable[[Random, int], _Parts]] = {
    MAIN_FAMILY: _story,
    "until": _until,
    "countdown": _countdown,
    "inventory": _inventory,
    "relations": _relations,
    "shopping": _shopping,
    "sharing": _sharing,
}
_SIDE_FAMILIES = tuple(family for family in FAMILIES if family != MAIN_FAMILY)
