"""Metrics that tasks share, counted by hand."""

import pytest

from kvguard.tasks.scores import exact_match, numeric_match, token_f1


@pytest.mark.parametrize(
    ("predicted", "references", "expected"),
    [("5", ["4", "5.0"], 1), ("5", ["4"], 0), (None, ["4"], 0), ("5", ["five"], None), ("5", [], None)],
)
def test_a_number_may_be_any_reference_that_is_one(predicted, references, expected):
    assert numeric_match(predicted, references) == expected


@pytest.mark.parametrize(
    ("predicted", "references", "em", "f1"),
    [
        ("The Eiffel-Tower!", ["eiffeltower"], 1, 1),  # articles, punctuation, case go
        ("in Paris, France", ["Paris"], 0, 0.5),  # precision 1/3, recall 1
        ("in Paris, France", ["Rome", "Paris France"], 0, 0.8),  # the best: precision 2/3, recall 1
        ("Lyon", ["Paris"], 0, 0),
        ("", ["Paris"], 0, 0),
        ("Paris", [], None, None),
    ],
)
def test_words_are_compared_as_squad_does(predicted, references, em, f1):
    assert exact_match(predicted, references) == em
    assert token_f1(predicted, references) == (f1 if f1 is None else pytest.approx(f1))
