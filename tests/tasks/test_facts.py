"""Facts and the questions that they answer."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kvguard.tasks import facts


@given(seed=st.integers(0, 10_000), n=st.integers(1, 70))
def test_every_question_is_answered_by_one_sentence_of_the_text(seed, n):
    made = facts.facts(Random(seed), n)
    text = facts.text(made)
    assert len({fact.person for fact in made}) == n
    for fact in made:
        assert fact.sentence in text
        assert fact.answer in fact.sentence
        for question in (fact.question, fact.paraphrase):
            assert fact.person in question
            assert question.endswith("?")


def test_a_seed_makes_the_same_text_again_and_all_kinds_of_facts():
    first, second = (facts.facts(Random(3), 40) for _ in range(2))
    assert first == second
    assert {fact.kind for fact in first} == {"count", "place", "liking", "keeping"}
