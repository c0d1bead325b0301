"""The amnesia heuristic: foreign numbers and names trigger it, no reference solution does."""

import json
from itertools import islice
from pathlib import Path

import pytest

from kvguard.tasks import Sample, arithmetic, make_task
from kvguard.tasks.amnesia import foreign_share, is_amnesic

THRESHOLD = 0.5
GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
QUESTION = "Ana has 14 pens. Ana loses 5 pens. How many pens does Ana have?"


def test_a_solution_of_the_question_is_not_amnesic():
    assert foreign_share(QUESTION, "Ana loses 5: 14 - 5 = 9 pens.\n#### 9") == 0


def test_a_solution_of_another_question_is_amnesic():
    assert is_amnesic(QUESTION, "Ben buys 31: 17 + 31 = 48 keys.\n#### 48", THRESHOLD)


def test_the_share_counts_distinct_numbers_and_names():
    # ana, 14 are the question's; 33 and Ben are foreign; 47 = 14 + 33 is derived from a known number.
    assert foreign_share(QUESTION, "Ana meets Ben: 14 + 33 = 47. 33, 33, Ben.") == 2 / 5


def test_numbers_derived_from_foreign_ones_stay_foreign():
    assert foreign_share(QUESTION, "33 + 44 = 77\n77 + 3 = 80") == 1


def test_number_words_percentages_and_even_steps_belong_to_the_question():
    assert foreign_share("Five boys keep 40% of them.", "5 * .4 = 2. The other 60% are 0.6 of them.") == 0
    assert foreign_share("It rings every 3 hours.", "It rings at 3, 6, 9, 15.") == 2 / 4  # 6 and 15


def test_weekdays_and_words_that_open_sentences_are_no_names():
    assert foreign_share(QUESTION, "So on Tuesday. The end. Then 14.") == 0


@pytest.mark.parametrize(("threshold", "amnesia"), [(0.3, 1.0), (0.5, 0.0)])
def test_it_is_a_score_of_word_problems_beside_accuracy(threshold, amnesia):
    task = make_task("arithmetic", amnesia_threshold=threshold)
    scores = task.score("Ana meets Ben: 14 + 33 = 47. 33, 33, Ben. #### 47", Sample(QUESTION, ("9",)))
    assert scores == {"accuracy": 0.0, "accuracy_last": 0.0, "amnesia": amnesia}


@pytest.mark.parametrize("text", ["", "the the the", "Let x = 5"])
def test_without_items_or_with_unknowns_nothing_is_judged(text):
    assert is_amnesic(QUESTION, text, THRESHOLD) is None


def test_no_reference_solution_of_arithmetic_triggers_it():
    problems = list(islice(arithmetic.stream(3, "evaluation"), 1000))
    assert {problem.metadata["family"] for problem in problems} == set(arithmetic.FAMILIES)
    assert not any(is_amnesic(p.question, p.solution, THRESHOLD) for p in problems)


@pytest.mark.parametrize("name", ["test", "train"])
@pytest.mark.skipif(not GSM8K.is_dir(), reason="the GSM8K files are not on this machine")
def test_no_reference_solution_of_gsm8k_triggers_it(name):
    rows = [json.loads(line) for line in (GSM8K / f"{name}.jsonl").read_text().splitlines()]
    assert not any(is_amnesic(row["question"], row["answer"], THRESHOLD) for row in rows)
