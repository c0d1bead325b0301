"""First complete answers: texts judged by hand, and that no text that follows changes one."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.tasks import Sample, make_task
from kvguard.tasks.answers import answer_end, first_answer, given_answer, last_answer_end, parse_answer
from kvguard.tasks.jsonl import read_jsonl

HERE = Path(__file__).parent
JUDGED = [row for _, row in read_jsonl(HERE / "judged_first_answers.jsonl")]
TEXTS = [row["text"] for row in JUDGED] + [
    row["text"] for _, row in read_jsonl(HERE / "judged_answers.jsonl")
]
PIECES = st.sampled_from(
    [
        *"0123456789.,:;-+*/=(){}$%!? \n\n。",
        *("#### ", "####", "#### 1. a", "\n2. b", "\\boxed{", "The answer is ", "Answer:\n", "answer\nis 5"),
        *(
            "\n\nQ: ",
            "Problem 2: ",
            "How many?",
            "\\frac{1}{2}",
            " and ",
            " not ",
            "twelve",
            "Step 1: ",
            ". ",
        ),
        *("Rs. ", "found by adding ", "9 500", "1.250,50", "\\text{", "\u2009", "x = ", "No, "),
        *("<", ">", "|", "</b>", "#### No. ", "No. 1\n", "->", "≈"),
    ]
)
MADE_UP = st.one_of(
    st.lists(PIECES, max_size=40).map("".join),
    st.lists(st.one_of(PIECES, st.sampled_from(TEXTS)), max_size=4).map("".join),
)


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: repr(row["text"]))
def test_a_text_is_read_as_judged(row: dict[str, Any]) -> None:
    first, complete = first_answer(row["text"]), first_answer(row["text"], ended=False)
    assert (first and first.value) == row["first"]
    assert (complete and complete.value) == row["complete"]
    assert parse_answer(row["text"]) == row["last"]


def test_the_table_has_several_of_every_kind_and_no_repeats() -> None:
    kinds = [row["kind"] for row in JUDGED]
    assert min(kinds.count(kind) for kind in set(kinds)) >= 3
    assert len({row["text"] for row in JUDGED}) == len(JUDGED) >= 60
    assert sum(row["first"] != row["last"] for row in JUDGED) >= 40


def assert_no_later_text_changes_it(text: str) -> None:
    whole, at, known = first_answer(text), answer_end(text), False
    for cut in range(len(text) + 1):
        found = first_answer(text[:cut], ended=False)
        assert answer_end(text[:cut]) == (None if found is None else at)
        assert found == whole if known or found is not None else True
        known = found is not None
    assert known == (at is not None)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_complete_stays_whatever_follows(text: str) -> None:
    assert_no_later_text_changes_it(f"{text}\nThe answer is 77.\n\nQ: x\n#### 88\n")


@settings(deadline=None)
@given(MADE_UP)
def test_what_is_complete_stays_whatever_follows_in_any_text(text: str) -> None:
    assert_no_later_text_changes_it(text)


@settings(deadline=None)
@given(MADE_UP)
def test_the_last_answer_ends_where_the_first_does_or_later(text: str) -> None:
    first, last = answer_end(text), last_answer_end(text)
    assert (first is None) == (last is None)
    assert first is None or (last is not None and 0 < first <= last <= len(text))


@pytest.mark.parametrize("text", [row["text"] for row in JUDGED if row["complete"] is not None])
def test_a_text_that_is_cut_behind_an_answer_keeps_it(text: str) -> None:
    whole = f"{text}\n"
    assert given_answer(text[: answer_end(whole)]) == given_answer(text)
    assert given_answer(text[: last_answer_end(whole)]) == given_answer(text)
    assert parse_answer(text[: last_answer_end(whole)]) == parse_answer(text)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("The answer is 42. Wait, the answer is 43. So", "The answer is 42.", "Wait, the answer is 43."),
        ("So $\\boxed{42}$.\n\nQ: And?\n#### 7\n", "So $\\boxed{42}$.", "So $\\boxed{42}$."),
        ("**Answer: 5**\n#### 6\n\nProblem 2:\n#### 7\n", "**Answer: 5**", "#### 6"),
        ("#### 50%\nThe end", "#### 50%", "#### 50%"),
    ],
)
def test_an_answer_ends_with_what_closes_it(text: str, first: str, last: str) -> None:
    assert text[: answer_end(text)].endswith(first)
    assert text[: last_answer_end(text)].endswith(last)


@pytest.mark.parametrize(
    "piece",
    [
        *("####", "#### ", "#### a\n", "#### 1. a\n", "#### 3:30. ", "\\boxed{1", "\\boxed{1\n", "answer\n"),
        *("answer: 3:30. ", "answer is 5 + 3. ", "answer to the a b c d ", "Answer: x 1. ", ". ", "\n"),
    ],
)
def test_the_time_is_not_quadratic_in_the_length(piece: str) -> None:
    def seconds(n: int) -> float:
        text = piece * (n // len(piece))
        begun = time.process_time()
        first_answer(text)
        return time.process_time() - begun

    # 8 times as long: 8 if linear, 64 if quadratic; half of it is left to busy machines
    assert min(seconds(20_000) for _ in range(2)) < 32 * min(seconds(2_500) for _ in range(3)) + 0.1


def test_a_task_of_word_problems_is_scored_by_the_first_answer_and_by_the_last() -> None:
    task = make_task("arithmetic")
    sample = Sample("Ana has 40 pens and finds 2. How many pens does Ana have?", ("42",))
    text = "40 + 2 = 42\n#### 42\nNo, that is wrong.\n#### 43\n\nQ: Ben has 7 hats.\nA: #### 7\n"
    scores = task.score(text, sample)
    assert (scores["accuracy"], scores["accuracy_last"]) == (1.0, 0.0)
    assert task.extract(text) == "42"
    assert task.extract("40 + 2 = 42") == "42"
    first, last = task.answered(text)
    assert text[:first].endswith("#### 42")
    assert text[:last].endswith("#### 43")
    assert task.answered("#### 42") == []


def test_numeric_prompts_of_ones_own_are_scored_alike_and_cannot_tell_where_they_are_answered() -> None:
    task = make_task("own")
    scores = task.score("The answer is 42. Or, the answer is 43.", Sample("Q", ("42", "forty-two")))
    assert (scores["accuracy"], scores["accuracy_last"]) == (1.0, 0.0)
    assert task.score("In Paris.", Sample("Q", ("Paris",)))["accuracy_last"] == 1.0
    assert task.answered("#### 42\nmore") == []
