"""Prompts of one's own: what a row may be, and how it is scored."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.store.schemas import conform
from kvguard.tasks import Sample, make_task
from kvguard.tasks.own import OwnPrompts

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def task_of(folder: Path, *rows: object) -> OwnPrompts:
    path = folder / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    task = make_task("own", source=str(path))
    assert isinstance(task, OwnPrompts)
    return task


def test_a_prompt_is_asked_as_it_is(tmp_path: Path) -> None:
    task = task_of(
        tmp_path, {"prompt": " Hi\n", "answer": 4.5, "id": 1}, {"messages": CHAT, "answers": ["a", 2]}
    )
    plain, chat = task.all()
    assert task.messages(plain) == [{"role": "user", "content": " Hi\n"}]
    assert task.text(plain) == " Hi\n"
    assert (task.messages(chat), task.text(chat)) == (CHAT, "Be brief.\n\nHello")
    assert (plain.references, chat.references) == (("4.5",), ("a", "2"))
    table = task.prompts(2, 0)
    assert table["prompt_id"].is_unique
    assert [task.messages(Sample.of(row)) for _, row in table.iterrows()] == [
        p["messages"] for p in table["prompt"]
    ]


def test_chats_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    other = [{**CHAT[0], "content": "Be long."}, CHAT[1]]
    assert task_of(tmp_path, {"messages": CHAT}, {"messages": other}).prompts(2, 0)["prompt_id"].is_unique


def test_the_same_row_twice_is_asked_once_and_with_other_answers_rejected(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "answer": "a"}
    assert len(task_of(tmp_path, row, row).all()) == 1
    with pytest.raises(KvguardError, match="line 2: asks what line 1 asks, with other answers"):
        task_of(tmp_path, row, {"prompt": "Hi", "answer": "b"}).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs prompt"),
        ({"question": "Q"}, "needs prompt"),
        ({"prompt": "Q", "messages": CHAT}, "one of the two"),
        ({"prompt": None}, "prompt is no text"),
        ({"prompt": ["Q"]}, "prompt is no text"),
        ({"prompt": " "}, "prompt is no text, or blank"),
        ({"messages": []}, "messages is no list"),
        ({"messages": "Q"}, "messages is no list"),
        ({"messages": ["Q"]}, "needs role and content"),
        ({"messages": [{"role": "user", "content": "Q", "name": "n"}]}, "nothing else"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content of the user message"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "A"}]}, "the last message"),
        ({"prompt": "Q", "answer": "a", "answers": ["a"]}, "keep one of the two"),
        ({"prompt": "Q", "answer": True}, "answer is no text"),
        ({"prompt": "Q", "answer": ""}, "answer is no text, or blank"),
        ({"prompt": "Q", "answers": "a"}, "answers is no list"),
        ({"prompt": "Q", "answers": [None]}, "answer is no text"),
    ],
)
def test_what_is_no_prompt_is_one_line_with_its_number(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(KvguardError, match=rf"own\.jsonl: line 2: .*{message}"):
        task_of(tmp_path, {"prompt": "fine"}, row).all()


def test_no_file_an_empty_one_and_demonstrations_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(KvguardError, match="give --prompts"):
        make_task("own").samples(1, 0)
    with pytest.raises(KvguardError, match="holds no rows"):
        task_of(tmp_path).all()
    with pytest.raises(KvguardError, match=r"tasks\.own\.n_shots"):
        make_task("own", n_shots=1)
    with pytest.raises(KvguardError, match=r"n is 2, .* has 1 prompts: lower n"):
        task_of(tmp_path, {"prompt": "Hi"}).samples(2, 0)


@pytest.mark.parametrize(
    ("text", "references", "accuracy"),
    [
        ("It is **Paris**, of course.", ("Paris",), 1),
        ("paris", ("Paris",), 1),
        ("Parisian", ("Paris",), 0),
        ("_new  york_", ("New York",), 1),
        ("6 * 7 = 42.", ("42",), 1),
        ("It is 42, not 41", ("42",), 0),  # the final number decides
        ("eight legs", ("8", "eight"), 1),
        ("The answer is B.", ("B",), 1),
        ("a cat", ("A",), 0),
        ("C++ it is", ("C++",), 1),
        ("首都是北京。", ("北京",), 1),
        ("", ("Paris",), 0),
        ("anything", (), None),
    ],
)
def test_an_answer_is_a_final_number_or_words_of_the_text(
    text: str, references: tuple, accuracy: object
) -> None:
    scores = make_task("own").score(text, Sample("Q", references))
    assert scores["accuracy"] == accuracy
    assert (scores["em"] is None, scores["f1"] is None) == (accuracy is None,) * 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content"]), inner, max_size=2)
    ),
    max_leaves=6,
)
rows = st.dictionaries(st.sampled_from(["prompt", "messages", "answer", "answers"]), values, max_size=4)


@given(st.lists(rows, max_size=3))
def test_rows_are_a_table_or_one_line(tmp_path_factory: pytest.TempPathFactory, made: list) -> None:
    task = task_of(tmp_path_factory.getbasetemp(), *made)
    try:
        samples = task.all()
    except KvguardError as error:
        said = str(error)
        assert "\n" not in said
        return
    conform("prompts", task.prompts(len(samples), 0))
    assert samples
    assert all(
        task.score("x", sample).keys() == {"accuracy", "accuracy_last", "em", "f1"} for sample in samples
    )
