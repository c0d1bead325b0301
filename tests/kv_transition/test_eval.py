import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.db.dao import Answered
from kv_transition.eval.failure_taxonomy import KINDS, Failures
from kv_transition.eval.metrics import METRICS, parse, scores_of

TAXONOMY = Failures.load()


def kinds(text="Answer: 3", cued=False, **how):
    answered = Answered(text, how.pop("finish_reason", "stop"), **how)
    parsed = None if answered.error else parse(text, cued)
    return [failure.kind for failure in TAXONOMY.of(answered, parsed, cued)]


REFUSALS = [
    "I'm sorry, but I can't assist with that request.",
    "I am sorry, but I cannot provide that information.",
    "I’m sorry, I can’t help with that.",
    "Sorry, but I can't answer this question.",
    "I cannot answer that question based on the text.",
    "As an AI language model, I do not have access to current events.",
    "I'm not able to help you with this.",
    "I apologize, but I am unable to continue.",
    "Answer: I cannot determine this from the text.",
    "The text does not mention who built the bridge.",
    "The provided text says much. However, the passage does not provide the name.",
    "There is no information about the author in the passage.",
    "Unfortunately, I don't have enough information to say.\nUnanswerable.",
]
NO_REFUSALS = [
    "Answer: I Can't Help Myself",
    "Answer: Sorry",
    "Answer: Sorry, Not Sorry",
    "He said that he could not answer the phone. Answer: Monday",
    "Answer: because they cannot fly",
    "Answer: Can't Help Falling in Love",
    "The doctor was unable to help the patient, who died. Answer: 1932",
    "Answer: the text of the treaty",
    "Answer: an AI winter",
    "Answer: As an apprentice",
    "The company did not provide any figures. Answer: none",
    "Answer: no",
    "So Ana has 4 and Ben has 9: 4 + 9 = 13.\nAnswer: 13",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one(text):
    assert "REFUSAL" in kinds(text)


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_an_answer_that_sounds_like_a_refusal_is_none(text):
    assert "REFUSAL" not in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "the cat sat on the mat " * 6,
        "Answer: no no no no no no no no no no no no no no no no no no",
        "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 4,
        "Once upon a time. " + "And then it rained all day. " * 5,
        "0.3333333333333333333333333333333333333333333333333333333333333",
        "hahahahahahahahahahahahahahahahahahahahahahahahahahahaha",
    ],
)
def test_a_loop_is_one(text):
    assert "LOOPING" in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "Row, row, row your boat gently down the stream. Answer: boat",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 "
        "|\n------------------------------------------------------------",
        "Ana has 4 pens. Ben has 9 keys. Cora has 4 pens. Dan has 2 hats. Eva has 7 cups. Answer: 26",
    ],
)
def test_a_text_that_repeats_a_little_is_no_loop(text):
    assert "LOOPING" not in kinds(text)


def test_several_failures_may_hold_and_one_is_primary():
    assert kinds("no " * 60, finish_reason="length") == ["LOOPING", "TRUNCATED", "FORMAT_ERROR"]
    assert kinds("") == kinds(" \n") == ["EMPTY_OUTPUT"]
    assert kinds("", finish_reason="length") == ["EMPTY_OUTPUT"]
    assert kinds("It is 3.") == ["FORMAT_ERROR"]
    assert kinds("It is 3.", cued=True) == []
    assert kinds("half of an an", error="status 500", http_status=500) == ["HTTP_ERROR"]
    assert kinds("half", error="no whole answer in 5 s", timed_out=True) == ["TIMEOUT"]
    assert kinds() == []


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("So 4 + 9 = 13.\nAnswer: 13", "13"),
        ("The answer is here.\nAnswer: Paris\nAnswer: Rome", "here."),
        ("**Answer:** Paris", "Paris"),
        ("Well, so my answer: Paris.", "Paris."),
        ("answer:\n\n  42\nmore", "42"),
        ("Final Answer: `x`", "x"),
        ("Answer:", None),
        ("It is 3.", None),
        ("The answering machine: 3", None),
    ],
)
def test_the_answer_stands_after_its_mark(text, parsed):
    assert parse(text) == parsed


def test_after_a_cue_the_answer_is_the_first_line():
    assert parse(" Paris\nQuestion: what", cued=True) == "Paris"
    assert parse("  ", cued=True) is None


@pytest.mark.parametrize(
    ("said", "answers", "em", "f1", "substring"),
    [
        ("The Cat.", ["cat"], 1, 1, 1),
        ("in Paris, France", ["Paris"], 0, 0.5, 1),
        ("23", ["2"], 0, 0, 0),
        ("Rome", ["Paris", "rome"], 1, 1, 1),
        ("the", ["a"], 1, 1, 0),
        ("", ["x"], 0, 0, 0),
    ],
)
def test_scores_are_squads_and_the_best_over_the_answers(said, answers, em, f1, substring):
    found = scores_of(said or None, Answered(said), answers)
    assert found == pytest.approx({"em": em, "f1": f1, "substring_em": substring})


def test_an_error_scores_nothing_whatever_came_of_it():
    assert scores_of("13", Answered("Answer: 13", error="cut"), ["13"]) == dict.fromkeys(METRICS, 0.0)


@given(st.text(max_size=300), st.sampled_from(["stop", "length", None]), st.booleans())
def test_any_text_has_scores_between_0_and_1_and_known_failures(text, reason, cued):
    answered = Answered(text, reason)
    parsed = parse(text, cued)
    assert set(kinds(text, cued, finish_reason=reason)) <= set(KINDS)
    assert all(0 <= value <= 1 for value in scores_of(parsed, answered, ["Paris", "42"]).values())
