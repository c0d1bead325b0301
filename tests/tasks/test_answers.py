"""Final answers: 588 texts judged by hand, GSM8K's own, and what holds for any text."""

import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.tasks.answers import final_answers, given_answer, is_correct, parse_answer, stated_number
from kvguard.tasks.jsonl import read_jsonl
from kvguard.tasks.notation import canonical_number

JUDGED = [
    (row["text"], row["answer"]) for _, row in read_jsonl(Path(__file__).with_name("judged_answers.jsonl"))
]
REAL_GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"

# Arbitrary texts seldom hold what the reader looks for: these pieces do.
PIECES = st.sampled_from(
    [
        *"0123456789.,:;-+*/=()[]{}$%^_~'\"!?\n \\#½×−🙂١\u2009",
        *(
            "####",
            "\\boxed{",
            "\\frac{",
            "}{",
            "\\text{",
            "The answer is ",
            "Answer:",
            "Q: ",
            "\n\nQ: ",
            "Problem 2: ",
        ),
        *("<", ">", "|", "<b>", "</b>", "No. ", "#### No. 1\n", "=>", "≈ "),
        *("How many", "1/2", "10^", "e9", " and ", " of ", "twelve", "Step 1: ", "million"),
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))


@pytest.mark.parametrize(("text", "answer"), JUDGED)
def test_a_text_is_read_as_judged(text: str, answer: str | None) -> None:
    assert parse_answer(text) == answer


def test_the_table_is_large_and_without_repeats() -> None:
    assert len(JUDGED) == len({text for text, _ in JUDGED}) >= 200


@pytest.mark.skipif(not REAL_GSM8K.exists(), reason="the real GSM8K files are not on this machine")
def test_every_answer_of_gsm8k_is_read_right() -> None:
    solutions = [
        row["answer"] for name in ("train", "test") for _, row in read_jsonl(REAL_GSM8K / f"{name}.jsonl")
    ]
    expected = [solution.rpartition("####")[2].strip().replace(",", "") for solution in solutions]
    assert len(solutions) == 8792
    assert [parse_answer(solution) for solution in solutions] == expected
    assert [given_answer(solution) for solution in solutions] == expected
    assert [stated_number(solution) for solution in solutions] == expected


@given(TEXTS)
def test_any_text_has_a_finite_answer_or_none(text: str) -> None:
    found = parse_answer(text)
    assert found is None or (canonical_number(found) == found and Fraction(found) is not None)
    answers = final_answers(text)
    assert all(0 <= answer.start <= answer.end <= len(text) for answer in answers)
    assert [answer.start for answer in answers] == sorted(answer.start for answer in answers)
    assert [answer.problem for answer in answers] == sorted(answer.problem for answer in answers)


@given(TEXTS, st.integers(-(10**12), 10**12))
def test_the_last_mark_decides_whatever_stands_before(text: str, number: int) -> None:
    found = final_answers(f"{text}\n#### {number}")
    assert found[-1].value == str(number)
    assert found[-1].stated


@given(st.integers(-(10**9), 10**9), TEXTS)
def test_what_an_invented_problem_says_changes_no_answer(number: int, text: str) -> None:
    assert parse_answer(f"#### {number}\n\nQ: {text}") == str(number)


@given(
    st.integers(0, 10**12), st.sampled_from([",", "\u2009", "\u202f", "\u00a0", " ", "'", "{,}", "\\,", "~"])
)
def test_groups_of_three_are_one_number_however_they_are_set_apart(number: int, separator: str) -> None:
    grouped = f"{number:,}".replace(",", separator)
    for text in (f"#### {grouped}", f"\\boxed{{{grouped}}}", f"The answer is {grouped}."):
        assert parse_answer(text) == str(number)


@given(st.fractions(max_denominator=10**6))
def test_the_canonical_form_is_worth_what_it_stands_for(value: Fraction) -> None:
    found = canonical_number(f"{value.numerator}/{value.denominator}")
    assert found is not None
    assert Fraction(found) == value
    assert canonical_number(found) == found


@pytest.mark.parametrize(
    "piece",
    [
        *[
            "####",
            "#### ",
            "#### a",
            "#### a\n",
            "#### 1. a\n",
            "#### 1 How many?",
            "\\boxed{",
            "\\boxed{1",
            "answer is ",
        ],
        *[
            "the answer is 5 + ",
            "answer to the ",
            "answer: no\nQ:",
            "answer is 1\nQ:",
            "Q:",
            "\n\nQ:",
            "How many ",
        ],
        *[
            "1",
            "1 ",
            "1 + ",
            "1/",
            "1,000,",
            "1.000",
            "1 and ",
            "a = ",
            "\\frac{1",
            "\\text{",
            "(",
            "*",
            "$",
            "~",
            "<",
            "#### <",
            "#### <1",
            "<1>",
            "#### |1",
            "| 1 ",
            "#### No. ",
            "#### No. 1\n",
            "\n",
            " ",
        ],
    ],
)
def test_the_time_is_linear_in_the_length(piece: str) -> None:
    def seconds(n: int) -> float:
        text = piece * (n // len(piece))
        begun = time.process_time()
        parse_answer(text)
        return time.process_time() - begun

    assert min(seconds(80_000) for _ in range(2)) < 8 * min(seconds(20_000) for _ in range(3)) + 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("+5", "5"), ("-0", "0"), (".5", "0.5"), ("1/3", "1/3"), ("50%", "50"), ("ten", None), ("", None)],
        *[("5 apples", None), ("3:30", None), ("1/0", None), ("1e999999999", None), ("9" * 2000, None)],
    ],
)
def test_numbers_have_one_canonical_form(text: str, expected: str | None) -> None:
    assert canonical_number(text) == expected


@pytest.mark.parametrize(
    ("predicted", "answer", "expected"),
    [
        ("7", "7", True),
        ("7.0", "7", True),
        ("1234", "1,234", True),
        ("0.5", "1/2", True),
        ("0.33", "1/3", False),
        ("8", "7", False),
        (None, "7", False),
        ("7", "seven", None),
    ],
)
def test_a_missing_prediction_is_wrong_and_a_reference_without_a_number_is_unscored(
    predicted: str | None, answer: str, expected: bool | None
) -> None:
    assert is_correct(predicted, answer) is expected


def test_answers_come_in_order_with_their_places_and_problems() -> None:
    text = "#### 9, no:\n#### €1\u2009250\n\nQ: Tom has 5.\nA: 5 + 2 = 7\n\nQ: And?"
    found = final_answers(text)
    assert [(one.value, one.problem, one.stated) for one in found] == [
        ("9", 0, True), ("1250", 0, True), ("7", 1, False)
    ]  # fmt: skip
    assert [text[one.start : one.end] for one in found] == ["9", "€1\u2009250", "7"]
