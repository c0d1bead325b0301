from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.tasks import instructions
from kvguard.tasks.instruction_rules import followed, named

SPLITS = ("train", "evaluation")


@st.composite
def asked(draw):
    rng = Random(draw(st.integers(0, 2**32)))
    position = draw(st.sampled_from((None, *instructions.POSITIONS)))
    return instructions.sample(
        rng, draw(st.integers(5, 80)), draw(st.integers(0, 2)), draw(st.sampled_from(SPLITS)), position
    )


@given(asked())
def test_the_answer_follows_everything_and_the_plain_answer_breaks_each(made):
    plain = ", ".join(made.things)
    for one in made.told:
        assert followed(one.kind, one.kwargs, made.answer)
        assert not followed(one.kind, one.kwargs, plain)
    if not made.told:
        assert made.answer == plain


@given(asked())
def test_everything_that_is_told_and_bought_stands_in_the_prompt_in_its_place(made):
    for one in made.told:
        assert made.prompt.count(one.text) == 1
        assert one.text not in made.bare
    bought = [f"{made.person} buys {thing}." for thing in made.things]
    assert [sentence for sentence in made.sentences if sentence.startswith(f"{made.person} ")] == bought
    before = made.prompt.partition(made.instruction)[0] if made.told else ""
    assert (before == "") == (made.position == "start" or not made.told)


@given(asked(), st.sampled_from(SPLITS))
def test_neither_the_wording_nor_the_order_nor_the_text_around_it_moves_a_core_to_the_other_split(
    made, other
):
    split = instructions.split_of(made.person, made.things, made.told)
    assert instructions.split_of(made.person, made.things, made.told[::-1]) == split


def test_the_two_splits_never_share_a_core():
    def cores(split):
        rng = Random(3)
        drawn = [instructions.sample(rng, 12, 1, split) for _ in range(400)]
        return {(m.person, m.things, m.told[0].kind, str(m.told[0].kwargs)) for m in drawn}

    assert not cores("train") & cores("evaluation")


@pytest.mark.parametrize("silence", ["", " \n", "...", "What does Ana buy?", "I do not know"])
def test_a_text_that_names_nothing_follows_nothing(silence):
    rng = Random(1)
    for _ in range(200):
        for one in instructions.sample(rng, 8, 1, "evaluation").told:
            assert not followed(one.kind, one.kwargs, silence)


@pytest.mark.parametrize(
    ("kind", "kwargs", "good", "bad"),
    [
        ("form:one_word", {}, "milk.", "milk corn"),
        ("form:capitals", {}, "MILK, 2 CORN", "MILK, corn"),
        ("list:count", {"count": 2}, "She buys milk and corn.", "milk, milk"),
        ("list:alphabetical", {}, "Corn, then milk", "milk"),
        ("list:given", {"order": ["milk", "corn"]}, "milk and corn", "milk"),
        ("end:phrase", {"phrase": "red moon"}, "milk. Red moon!", "red moon milk"),
        ("avoid:word", {"word": "ash"}, "milk on the dash", "Ash, milk"),
        ("avoid:letter", {"letter": "a"}, "milk", "milk And corn"),
        (
            "repeat:question",
            {"question": "What does Ana buy?"},
            " what does ana buy? milk",
            "milk. What does Ana buy?",
        ),
    ],
)
def test_a_rule_tells_answers_in_other_forms_apart_as_a_reader_would(kind, kwargs, good, bad):
    assert followed(kind, kwargs, good)
    assert not followed(kind, kwargs, bad)
    assert named(good)
