import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvguard.errors import KvguardError
from kvguard.studies.instructions.suites import SUITES, load_suite, verifier
from kvguard.studies.instructions.suites.library import Library, library
from kvguard.studies.instructions.suites.wording import moved

DATA = Path(__file__).parents[4] / "shared" / "data"
REAL = {
    "ifeval": (DATA / "ifeval" / "input_data.jsonl", 541),
    "ifbench": (DATA / "instructions" / "ifbench" / "ifbench.jsonl", 300),
}
ROWS = [
    {
        "key": 1,
        "prompt": "Write a note on tea. Do not use any commas. The word tea should appear at least 2 times.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:frequency"],
        "kwargs": [{}, {"keyword": "tea", "relation": "at least", "frequency": 2}],
    },
    {
        "key": 2,
        "prompt": "Write about the moon in at least 3 sentences.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"num_sentences": 3, "relation": "at least"}],
    },
    {
        "key": 3,
        "prompt": "Name a river.\nYour entire response should be in Italian, no other language is allowed.",
        "instruction_id_list": ["language:response_language"],
        "kwargs": [{"language": "it"}],
    },
    {
        "key": 4,
        "prompt": "Tell me a joke. Use words in all capital letters less than 1 times.",
        "instruction_id_list": ["change_case:capital_word_frequency"],
        "kwargs": [{"capital_frequency": 0, "capital_relation": "less than"}],
    },
]
ANSWERS = (
    "",
    " \n",
    "Tea is tea.",
    "Tea, tea! AND MORE TEA.\n\nSee P.S. yes. Two sentences? Three.",
    "Il fiume Po scorre in Italia e attraversa molte città del nord.",
    '*highlighted* <<title>> [place] ******\n* one\n* two\n***\n"quoted"',
    '{"a": 1}',
    "My answer is yes.",
    "1 2 3 ... !!! \u2028 \x00 \ud83d\ude00 日本語",
    "[" * 5000,
    "<think>no commas, please</think> fine",
)

FIXED = (ANSWERS[0], *ANSWERS[3:6], ANSWERS[8])  # empty, good here and bad there, adversarial


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "suite.jsonl", ROWS)


def test_verdicts_depend_neither_on_order_nor_on_threads_nor_on_the_draws_of_others(file):
    examples = load_suite("ifeval", file, None, 0, "user")
    pairs = [(example, text) for example in examples for text in ANSWERS]
    verify = verifier("ifeval")
    first = [verify(*pair) for pair in pairs]
    random.seed(5)
    assert [verify(*pair) for pair in reversed(pairs)][::-1] == first
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: verify(*pair), pairs)) == first
    assert any(verdict for found in first for verdict in found.strict)


def test_checking_leaves_everybody_elses_random_numbers_alone(file):
    examples = load_suite("ifeval", file, None, 0, "user")
    state = random.getstate()
    for example in examples:
        verifier("ifeval")(example, "Some text.")
    assert random.getstate() == state


def test_arguments_that_are_zero_count():
    rules = library("ifeval")
    rules.check(
        "change_case:capital_word_frequency", {"capital_frequency": 0, "capital_relation": "less than"}
    )
    with pytest.raises(KvguardError, match="lacks capital_frequency"):
        rules.check("change_case:capital_word_frequency", {"capital_relation": "less than"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "line 2.*prompt.*empty"),
        ({"instruction_id_list": ["no:such"]}, "line 2.*no rule for instruction 'no:such'"),
        ({"instruction_id_list": []}, "line 2.*instruction_id_list"),
        ({"kwargs": []}, "line 2.*kwargs"),
        ({"kwargs": [{"num_sentences": 3}]}, "line 2.*lacks relation"),
        ({"kwargs": [{"num_sentences": 3, "relation": "perhaps"}]}, "line 2.*perhaps"),
        ({"kwargs": [{"num_sentences": "three", "relation": "at least"}]}, "line 2.*number_sentences"),
        ({"kwargs": [{"num_sentences": 3, "relation": "at least", "more": 1}]}, "line 2.*takes no more"),
        ({"kwargs": ["three"]}, "line 2.*no object"),
        ({"key": None}, "line 2.*key"),
        ({"key": 1}, "line 2.*'1' stands twice"),
    ],
)
def test_a_malformed_row_is_one_line_that_names_it(tmp_path, change, message):
    path = write(tmp_path / "bad.jsonl", [ROWS[0], {**ROWS[1], **change}, *ROWS[2:]])
    with pytest.raises(KvguardError, match=message) as raised:
        load_suite("ifeval", path, None, 0, "user")
    assert "\n" not in str(raised.value)


def test_an_unknown_suite_and_too_few_examples_are_one_line(file):
    with pytest.raises(KvguardError, match="nosuch"):
        load_suite("nosuch", None, 1, 0, "user")
    with pytest.raises(KvguardError, match="n is 9"):
        load_suite("ifeval", file, 9, 0, "user")
    with pytest.raises(KvguardError, match="leave the path out"):
        load_suite("embedded", file, 9, 0, "user")


def test_a_rule_whose_data_are_not_there_gives_no_verdict_whatever_the_text(file, monkeypatch):
    from kvguard.studies.instructions.suites import nltk_data

    monkeypatch.setattr(nltk_data, "_there", lambda data: False)
    monkeypatch.setattr(nltk_data, "provide", lambda: None)
    rules = Library("ifeval")
    assert {"length_constraints:number_sentences", "change_case:capital_word_frequency"} == set(
        rules.unchecked
    )
    for example in load_suite("ifeval", file, None, 0, "user"):
        for text in ANSWERS:
            found = rules(example, text)
            unknown = [one.id in rules.unchecked for one in example.instructions]
            assert [verdict is None for verdict in found.strict] == unknown
            assert [verdict is None for verdict in found.loose] == unknown


def test_a_rule_that_draws_arguments_though_it_was_given_them_gives_no_verdict(tmp_path):
    told = {"let_relation": "at least", "letter": "#", "let_frequency": 4}
    row = {**ROWS[0], "instruction_id_list": ["keywords:letter_frequency"], "kwargs": [told]}
    (example,) = load_suite("ifeval", write(tmp_path / "one.jsonl", [row]), None, 0, "user")
    for text in ANSWERS:
        assert verifier("ifeval")(example, text).strict == (None,)


@pytest.mark.parametrize("name", ["embedded", "ifeval"])
def test_the_first_examples_are_those_of_any_larger_number(name, file):
    path = None if name == "embedded" else file
    assert load_suite(name, path, 2, 3, "user") == load_suite(name, path, 4, 3, "user")[:2]
    orders = {tuple(one.key for one in load_suite(name, path, 4, seed, "user")) for seed in range(5)}
    assert len(orders) > 1


@pytest.mark.parametrize("placement", ["user", "system"])
@pytest.mark.parametrize("name", ["embedded", "ifeval"])
def test_words_that_are_told_apart_stand_in_the_prompt_and_moved_ones_in_the_system_prompt_alone(
    name, placement, file
):
    path = None if name == "embedded" else file
    for example in load_suite(name, path, 3 if path else 40, 0, placement):
        for one in example.instructions:
            if placement == "system":
                assert one.text is not None
                assert one.text in example.system
                assert one.text not in example.prompt
            elif one.text is not None:
                assert one.text in example.prompt
        assert example.prompt.strip()


def test_the_embedded_suite_has_every_kind_and_position_and_is_the_same_question_in_both_placements():
    user, system = (load_suite("embedded", None, 200, 1, placement) for placement in ("user", "system"))
    assert {one.id for example in user for one in example.instructions} == {
        one.id for example in system for one in example.instructions
    }
    assert {example.position for example in user} == {"start", "middle", "end"}
    assert len({example.prompt for example in user}) == len({example.key for example in user}) == 200
    verify = verifier("embedded")
    for example in (*user, *system):
        found = verify(example, example.metadata["answer"])
        assert all(found.strict)
        assert all(found.loose)
        framed = verify(example, f"Sure:\n*{example.metadata['answer']}*")
        assert all(loose or not strict for strict, loose in zip(framed.strict, framed.loose, strict=True))


def _own(suite, example, text):
    """What the library itself says of the whole example."""
    from if_verifiable import IFEvalSample, evaluate_output_for_sample

    ids = [one.id for one in example.instructions]
    kwargs = [dict(one.kwargs) for one in example.instructions]
    sample = IFEvalSample(key=0, prompt=example.prompt, instruction_id_list=ids, kwargs=kwargs)
    try:
        results, _ = evaluate_output_for_sample(suite, sample, text)
    except Exception:
        return None
    return [(found.strict_pass, found.loose_pass) for found in results] or [(False, False)] * len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["ifeval", "ifbench"])
def test_verdicts_equal_the_librarys_own_on_every_real_prompt_twice_and_in_other_orders(suite):
    path, n = REAL[suite]
    if not path.exists():
        pytest.skip(f"{path} is not here")
    examples = load_suite(suite, path, None, 0, "user")
    assert len(examples) == n
    verify, seen = verifier(suite), {}
    for order in (examples, examples[::-1], random.Random(1).sample(examples, n)):
        for example in order:
            for text in (*FIXED, example.prompt):
                found = verify(example, text)
                verdicts = list(zip(found.strict, found.loose, strict=True))
                assert seen.setdefault((example.key, text), verdicts) == verdicts
    rules = library(suite)
    for example in examples:
        for text in (*FIXED, example.prompt):
            own = _own(suite, example, text)
            for place, one in enumerate(example.instructions):
                verdict = seen[example.key, text][place]
                if rules.why_not(one.id, one.kwargs) is not None:
                    assert verdict == (None, None)
                elif own is not None:
                    assert verdict == own[place]


def test_instructions_of_real_prompts_move_whole_or_not_at_all():
    path, _ = REAL["ifeval"]
    if not path.exists():
        pytest.skip(f"{path} is not here")
    examples = load_suite("ifeval", path, None, 0, "user")
    apart = {one.key: one for one in map(moved, examples) if one is not None}
    assert len(apart) > 300
    for example in examples:
        if example.key in apart:
            words = sorted((apart[example.key].prompt + " " + apart[example.key].system).split())
            assert words == sorted(example.prompt.split())


def test_every_suite_has_what_loads_it_and_what_checks_it():
    assert set(SUITES) == {"embedded", "ifeval", "ifbench"}
