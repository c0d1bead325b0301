import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.tasks import longarith, make_task
from kvguard.tasks.longarith import MIN_SENTENCES, split_of


@given(st.integers(MIN_SENTENCES, 300), st.integers(0, 2**32))
def test_the_answer_follows_from_two_sentences_far_from_the_question(n: int, seed: int) -> None:
    asked = longarith.sample(Random(seed), n)
    text, question = asked.question.split("\n\n")
    first, second = re.match(r"How many things do (\w+) and (\w+) have together\?", question).groups()
    facts = dict(re.findall(r"(\w+) has (\d+) ", text))
    assert first != second
    assert int(asked.references[0]) == int(facts[first]) + int(facts[second])
    assert all(int(place) < 2 / 3 * n for place in asked.metadata["facts_at"].split())
    assert split_of(first, int(facts[first]), second, int(facts[second])) == "evaluation"


@given(st.integers(MIN_SENTENCES, 300), st.integers(0, 2**32))
def test_a_text_has_the_length_asked_for_and_every_person_one_fact(n: int, seed: int) -> None:
    made = longarith.document(Random(seed), n)
    assert len(made.sentences) == n
    for person, place in made.places.items():
        assert made.sentences[place].startswith(f"{person} has {made.holdings[person]} ")
    assert sum(" has " in sentence for sentence in made.sentences) == len(made.holdings)


@given(st.integers(0, 2**32))
def test_no_pair_that_training_asks_for_is_ever_evaluated(seed: int) -> None:
    made = longarith.document(Random(seed), 60)
    pairs = list(made.askable("train", Random(seed), far=1.0))
    for a, b in pairs:
        asked = (a, made.holdings[a], b, made.holdings[b])
        assert split_of(*asked) == split_of(*asked[2:], *asked[:2]) == "train"
    assert len({person for pair in pairs for person in pair}) == 2 * len(pairs)


def test_a_text_too_short_for_two_far_facts_is_rejected() -> None:
    with pytest.raises(ValueError, match="too few"):
        longarith.sample(Random(0), MIN_SENTENCES - 1)
    with pytest.raises(KvguardError, match=r"tasks\.longarith\.sentences: 3"):
        make_task("longarith", sentences=3)
