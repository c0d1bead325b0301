import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.binning import by_bin, choose, edges_of
from kv_transition.data.example import Example, render
from kv_transition.data.loader import Haystack, open_source, rendering
from kv_transition.data.normalize import read_longbench, read_questions
from kv_transition.data.tokenizer import LocalCounter
from kv_transition.settings import Binning, Dataset
from kvguard.errors import KvguardError
from kvguard.models.reference import REFERENCE_PATHS


class Words:
    """A tokenizer of words."""

    name = "words"

    def count(self, texts):
        return [len(text.split()) for text in texts]


def example(n, number=0):
    return Example(f"{n}-{number}", "q", "c", ("a",), n_tokens=n)


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=80), st.integers(2, 6))
def test_every_example_lies_in_one_quantile_bin_or_the_bins_are_rejected(lengths, n_bins):
    try:
        edges = edges_of(Binning(n_bins=n_bins), lengths)
    except KvguardError as error:
        assert "too few different lengths" in str(error)  # noqa: PT017
        return
    examples = [example(n, i) for i, n in enumerate(lengths)]
    bins = by_bin(examples, edges)
    assert sorted(one.example_id for found in bins for one in found) == sorted(
        one.example_id for one in examples
    )
    for found, low, high in zip(bins, edges, edges[1:], strict=False):
        assert all(low <= one.n_tokens < high for one in found)


def test_too_few_examples_for_a_bin_are_named_with_what_would_help():
    candidates = [[example(1, i) for i in range(3)], [example(5)]]
    with pytest.raises(KvguardError, match=r"2 are asked for, there are only 1 from 5 to 8 tokens: lower it"):
        choose(candidates, [0, 5, 9], 2, seed=0)


@given(st.permutations(range(12)), st.integers(0, 5))
def test_who_is_chosen_does_not_depend_on_the_order_of_the_pool(order, seed):
    examples = [example(3, i) for i in range(12)]
    one = choose([examples], [0, 9], 4, seed)
    other = choose([[examples[i] for i in order]], [0, 9], 4, seed)
    assert one == other


def test_longarith_has_the_lengths_asked_for_and_a_longer_pool_begins_with_the_shorter():
    source = open_source(Dataset(min_tokens=100, max_tokens=900), Words())
    pool = list(source.pool(60))
    assert list(source.pool(20)) == pool[:20]
    lengths = [len(render(source.template, one.question, one.context).split()) for one in pool]
    assert 90 < min(lengths) < 140
    assert 850 < max(lengths) < 920
    assert len({one.example_id for one in pool}) == 60


@pytest.fixture
def questions(tmp_path):
    rows = [
        {
            "id": str(i),
            "question": f"who is number {i}",
            "answers": [f"Person{i}"],
            "context": f"Person{i} " + f"w{i} " * 40,
        }
        for i in range(30)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0, None])
def test_a_haystack_holds_its_gold_passage_once_where_it_should_and_no_other_answer(questions, position):
    settings = Dataset(
        name="haystack", path=questions, min_tokens=200, max_tokens=900, gold_position=position
    )
    for one in open_source(settings, Words()).pool(40):
        passages = one.context.split("\n\n")
        holding = [i for i, passage in enumerate(passages) if one.answers[0] + " " in passage]
        assert holding == [one.meta["gold_passage"]]
        assert len(passages) == len(set(passages))
        if position is not None:
            assert holding == [round(position * (len(passages) - 1))]


def test_a_prompt_of_braces_is_what_it_says():
    template, cued = rendering("{context}\n\n{question}", "chat")
    assert render(template, "what is {context}?", "{question} {x}") == "{question} {x}\n\nwhat is {context}?"
    assert not cued
    assert rendering("{question}", "completions") == ("{question}\n\nAnswer:", True)


def test_a_model_that_completes_texts_is_not_told_what_to_do():
    told, _ = rendering(Haystack.template, "chat")
    assert told.endswith("on a line that begins with Answer:")
    assert rendering(Haystack.template, "completions") == (
        "{context}\n\nQuestion: {question}\n\nAnswer:",
        True,
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: it is a list"),
        ('{"input": "q", "input": "r"}', "line 2: the key 'input' stands twice"),
        ('{"input": "q", "answers": ["a"], "dataset": "d"}', "line 2: 'context' is no text"),
        ('{"input": "q", "context": "c", "dataset": "d"}', "line 2: 'answers' holds no answer"),
        ('{"context": "c", "answers": ["a"], "dataset": "d"}', "line 2: there is no 'input'"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, said):
    path = tmp_path / "x.jsonl"
    path.write_text('{"input": "q", "context": "c", "answers": ["a"], "dataset": "d"}\n' + line)
    with pytest.raises(KvguardError, match=re.escape(f"{path}, {said}")):
        read_longbench(str(path), None)


def test_a_row_is_a_line_whatever_its_strings_hold_and_a_byte_order_mark_is_none_of_it(tmp_path):
    path = tmp_path / "x.jsonl"
    said = "one\u2028two\u0085three"
    row = {"question": said, "answers": ["a"], "context": said}
    path.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n\r\n", encoding="utf-8")
    (found,) = read_questions(str(path))
    assert (found.question, found.context) == (said, said)


def test_longbench_is_read_from_files_task_by_task(tmp_path):
    rows = [
        {"input": "q", "context": "c", "answers": ["a"], "dataset": name} for name in ("qasper", "hotpotqa")
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(read_longbench(str(tmp_path), "qasper")) == 1
    with pytest.raises(KvguardError, match="no item of 'musique'"):
        read_longbench(str(tmp_path), "musique")


def test_a_local_tokenizer_counts_as_the_model_does():
    counter = LocalCounter(str(REFERENCE_PATHS["reference"]))
    assert counter.count(["Ana has 14 pens.", ""]) == [8, 0]
    with pytest.raises(KvguardError, match=r"no tokenizer\.json"):
        LocalCounter("/nowhere")


def test_two_groups_are_compared_example_by_example(experiment):
    from click.testing import CliRunner

    from kv_transition.cli import main

    for group in ("one", "two"):
        experiment.change(output={"exp_group_id": group})
        for phase in ("prepare", "run", "score"):
            experiment.done(phase)
    done = CliRunner().invoke(main, ["compare", "runs/one", "runs/two"])
    assert done.exit_code == 0, done.output
    assert done.output.count("same 3 examples") == 6
    assert "+0.00 [+0.00, +0.00]" in done.output
