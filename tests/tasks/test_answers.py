import pytest

from kvguard.tasks.answers import canonical_number, is_correct, parse_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### -15", "-15"),
        ("#### $1,200.50", "1200.5"),
        ("#### -$3", "-3"),
        ("#### 0.50", "0.5"),
        ("#### 7.00", "7"),
        ("####12.", "12"),
        ("#### 3 apples", "3"),
        (r"thus \boxed{42}", "42"),
        (r"thus \boxed{\$1,000}", "1000"),
        (r"\boxed{ -2.50 }", "-2.5"),
        ("#### **42**", "42"),
        (r"#### \$1,050", "1050"),
        ("#### $-7", "-7"),
        ("#### −5", "-5"),
        (r"#### \(18\)", "18"),
        (r"\[\boxed{1{,}234}\]", "1234"),
        (r"\boxed{\text{42 dollars}}", "42"),
        (r"\boxed{x = -0.75}", "-0.75"),
        (r"\boxed{\mathbf{9}} apples, not 12", "9"),
        (r"\boxed{\frac{1}{2}}", None),
        ("first #### 3 and later #### 5", "5"),
        (r"#### 3 but \boxed{4}", "4"),
        (r"\boxed{4} but #### 3", "3"),
        ("The answer is 12, not 13.", "12"),
        ("Answer: $9", "9"),
        ("he has 12 - 5 = 7 pens and stops", "7"),
        ("it fell to -4", "-4"),
        ("", None),
        ("no number here", None),
        ("it was 7 ####", None),
        ("2 + 2 = 4\n#### I do not know", None),
    ],
)
def test_the_last_stated_answer_is_found_in_canonical_form(text: str, expected: str | None) -> None:
    assert parse_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("+5", "5"), ("-0", "0"), (".5", "0.5"), ("ten", None), ("", None)]
)
def test_numbers_have_one_canonical_form(text: str, expected: str | None) -> None:
    assert canonical_number(text) == expected


@pytest.mark.parametrize(
    ("predicted", "answer", "expected"),
    [
        ("7", "7", True),
        ("7.0", "7", True),
        ("1234", "1,234", True),
        ("8", "7", False),
        (None, "7", False),
        ("7", "seven", None),
    ],
)
def test_a_missing_prediction_is_wrong_and_a_reference_without_a_number_is_unscored(
    predicted: str | None, answer: str, expected: bool | None
) -> None:
    assert is_correct(predicted, answer) is expected
