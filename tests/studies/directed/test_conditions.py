"""Prefixes: exactly as long as they must be, made of what they should be, the same every time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.models.encoding import Encoder
from kvguard.studies.directed.conditions import CONDITIONS, Kit, condition, fit, prefixes
from kvguard.studies.directed.examples import Example
from kvguard.studies.directed.lexicon import Lexicon, first_sentence
from kvguard.studies.directed.sources import Dataset
from kvguard.studies.directed.tokens import Tokens
from tokenizers_of_all_kinds import KINDS, make

FRAMINGS = {
    "universal": "Read closely.",
    "extractor": "Extract every fact from the text that follows here.",
    "adversarial": "Ignore it.",
}
EXAMPLES = [
    Example(
        f"e{n}",
        f"How many {thing} does {name} have?",
        f"{name} has {n} {thing}. The sea is wide.",
        ("1",),
        "1",
    )
    for n, (name, thing) in enumerate([("Ana", "pens"), ("Ben", "keys"), ("Ana", "cups"), ("Eve", "maps")])
] + [Example("again", "Where is the sea?", "Ana has 0 pens. The sea is wide.", ("wide",), "wide")]


def kit(kind="bytes", examples=EXAMPLES, seed=1):
    tokenizer = make(kind)
    encoder = Encoder("m", tokenizer, (tokenizer.eos_token_id,), len(tokenizer))
    tokens = Tokens(encoder, None, (), (), (tokenizer.eos_token_id,))
    dataset = Dataset("made", examples, lambda text, example: False)
    return Kit(tokens, dataset, FRAMINGS, lambda kind, example: f"{kind} of {example.id}", seed)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=20), st.integers(0, 50))
def test_fitted_ids_are_exactly_as_many_and_begin_again(ids, n):
    fitted = fit(ids, n)
    assert len(fitted) == n
    assert fitted == (ids * (n // len(ids) + 1))[:n]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_matched_prefix_has_as_many_tokens_as_the_question_whatever_the_tokenizer(kind, name):
    made = kit(kind)
    for example in EXAMPLES:
        prefix = condition(name).prefix(example, made)
        n = len(made.tokens.ids(example.question))
        assert n > 0
        if CONDITIONS[name].matched:
            assert len(prefix.ids) == n
        assert prefix.ids
        assert prefix.keep == (name == "oracle_full")
        assert prefix == condition(name).prefix(example, kit(kind))


def test_the_oracle_is_the_question_and_scrambling_keeps_its_tokens():
    made, example = kit(), EXAMPLES[0]
    found = prefixes(example, ["bare", "oracle", "oracle_full", "scrambled_oracle", "repeat_token"], made)
    asked = made.tokens.ids(example.question)
    assert found["bare"].ids == ()
    assert list(found["oracle"].ids) == list(found["oracle_full"].ids) == asked
    assert sorted(found["scrambled_oracle"].ids) == sorted(asked)
    assert list(found["scrambled_oracle"].ids) != asked
    assert len(set(found["repeat_token"].ids)) == 1


def test_noise_is_ordinary_text_and_another_seed_is_another_noise():
    made = kit()
    ids = condition("random_tokens").prefix(EXAMPLES[0], made).ids
    special = set(made.tokens.encoder.tokenizer.all_special_ids)
    assert not special & set(made.tokens.ordinary)
    assert not special & set(ids)
    assert ids != condition("random_tokens").prefix(EXAMPLES[0], kit(seed=2)).ids
    assert ids != condition("random_tokens").prefix(EXAMPLES[1], made).ids


def test_another_question_of_the_document_is_its_topic_and_an_unrelated_one_is_about_another_document():
    made = kit()
    text = made.tokens.text(condition("same_topic").make(EXAMPLES[0], made))
    assert text == "Where is the sea?"
    near = made.tokens.text(condition("same_topic").make(EXAMPLES[2], made))
    assert "Ana" in near or near == "Where is the sea?"
    unrelated = made.tokens.text(condition("unrelated_query").make(EXAMPLES[0], made))
    assert unrelated in {example.question for example in EXAMPLES[1:4]}


def test_of_one_document_there_is_no_unrelated_question():
    alone = kit(examples=[EXAMPLES[0], EXAMPLES[-1]])
    with pytest.raises(KvguardError, match="all examples are about one document"):
        condition("unrelated_query").prefix(EXAMPLES[0], alone)


def test_what_nothing_was_written_for_has_no_prefix():
    made = kit()
    silent = Kit(made.tokens, made.dataset, FRAMINGS, lambda kind, example: "", 1)
    assert condition("llm_extract").prefix(EXAMPLES[0], silent) is None


def test_keywords_are_a_documents_own_words():
    lexicon = Lexicon(["the cat sat by the lake", "the dog sat by the lake", "the cat and the dog"])
    assert lexicon.keywords("the dog sat by the lake", 3)[0] in {"dog", "sat", "lake"}
    assert set(lexicon.keywords("the cat and the dog", 5)) == {"cat", "dog"}
    assert lexicon.likeness("the cat and the dog")[2] == pytest.approx(1)
    assert Lexicon(["the and of", "a the"]).keywords("a the", 2)  # nothing but common words


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("It rains. It pours.", "It rains."),
        ("Dr. Who met J. R. Ewing. They spoke.", "Dr. Who met J. R. Ewing."),
        ('He said "stop!" Then he left.', 'He said "stop!"'),
        ("no end here", "no end here"),
        ("Pi is 3.14 or so. Yes.", "Pi is 3.14 or so."),
    ],
)
def test_the_first_sentence_ends_where_a_sentence_does(text, first):
    assert first_sentence(text) == first


def test_an_unknown_condition_is_named():
    with pytest.raises(KvguardError, match="did you mean 'oracle'"):
        condition("oracl")
