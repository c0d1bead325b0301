import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from kvguard.tasks import arithmetic
from kvguard.tasks.answers import parse_answer

_EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
_APPLY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


@pytest.mark.parametrize("family", arithmetic.FAMILIES)
def test_every_step_of_every_family_is_true_and_the_answer_is_stated(family: str) -> None:
    rng = Random(family)
    for _ in range(500):
        problem = arithmetic.generate(rng, "train", family=family)
        equations = _EQUATION.findall(problem.solution)
        assert 1 <= len(equations) <= arithmetic.MAX_STEPS
        for left, sign, right, result in equations:
            assert _APPLY[sign](int(left), int(right)) == int(result)
        assert int(problem.references[0]) >= 0
        assert problem.solution.endswith(f"\n#### {problem.references[0]}")
        assert parse_answer(problem.solution) == problem.references[0]


@pytest.mark.parametrize("family", ["until", "countdown"])
def test_day_counting_families_stop_on_the_day_the_question_asks_for(family: str) -> None:
    rng = Random(family)
    for _ in range(300):
        problem = arithmetic.generate(rng, "train", family=family)
        numbers = [int(number) for number in re.findall(r"\d+", problem.question)]
        totals = [int(result) for *_, result in _EQUATION.findall(problem.solution)]
        reached = [t >= numbers[2] if family == "until" else t < numbers[1] for t in totals]
        assert reached.index(True) == len(reached) - 1
        assert problem.references[0] == str(len(reached))


def test_solutions_name_people_or_things_of_their_question() -> None:
    for problem in islice(arithmetic.stream(0, "evaluation"), 200):
        words = set(re.findall(r"[a-zA-Z]{3,}", problem.question))
        for step in problem.solution.split("\n")[0].split(". "):
            assert words & set(re.findall(r"[a-zA-Z]{3,}", step)), step


def test_splits_never_share_a_question() -> None:
    splits: tuple[arithmetic.Split, ...] = ("train", "demonstration", "evaluation")
    for split in splits:
        for problem in islice(arithmetic.stream(7, split), 200):
            assert arithmetic.split_of(problem.question) == split


def test_half_of_the_problems_are_of_the_main_family() -> None:
    counts = Counter(
        problem.metadata["family"] for problem in islice(arithmetic.stream(0, "evaluation"), 1000)
    )
    assert 430 < counts[arithmetic.MAIN_FAMILY] < 570
    assert set(counts) == set(arithmetic.FAMILIES)


def test_demonstrations_are_short_and_depend_on_the_question_alone() -> None:
    shots = arithmetic.demonstrations("How many?", 3)
    assert shots == arithmetic.demonstrations("How many?", 3)
    assert shots != arithmetic.demonstrations("How much?", 3)
    assert all(len(_EQUATION.findall(shot.solution)) <= 3 for shot in shots)
