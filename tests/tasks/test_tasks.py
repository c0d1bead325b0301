import json
from pathlib import Path

import pytest

from kvguard.errors import KvguardError
from kvguard.tasks import TASK_NAMES, load_problems, sample_prompts
from kvguard.tasks.answers import parse_answer
from kvguard.tasks.prompts import INSTRUCTION

REAL_GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"


@pytest.fixture
def gsm8k_file(tmp_path: Path) -> str:
    rows = [
        {"question": f"What is {i} plus 1000?", "answer": f"It is <<{i}+1000=1>>.\n#### 1,{i:03}"}
        for i in range(9)
    ]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0]])), encoding="utf-8")
    return str(path)


def _source(task: str, gsm8k_file: str) -> str | None:
    return gsm8k_file if task == "gsm8k" else None


@pytest.mark.parametrize("task", TASK_NAMES)
def test_sampling_is_deterministic_and_without_repeats(task: str, gsm8k_file: str) -> None:
    source = _source(task, gsm8k_file)
    problems = load_problems(task, 9, 3, source)
    assert problems == load_problems(task, 9, 3, source)
    assert problems != load_problems(task, 9, 4, source)
    assert len({problem.question for problem in problems}) == 9


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_larger_sample_begins_with_the_smaller_one(task: str, gsm8k_file: str) -> None:
    source = _source(task, gsm8k_file)
    assert load_problems(task, 9, 3, source)[:4] == load_problems(task, 4, 3, source)


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize("n_shots", [0, 3])
def test_prompts_hold_the_demonstrations_and_end_with_the_question(
    task: str, n_shots: int, gsm8k_file: str
) -> None:
    table = sample_prompts(task, 5, 0, n_shots, _source(task, gsm8k_file))
    assert list(table.columns) == ["prompt_id", "task", "question", "prompt", "answer"]
    assert table["prompt_id"].is_unique
    for row in table.itertuples():
        assert row.prompt.startswith(INSTRUCTION)
        assert row.prompt.endswith(f"Q: {row.question}")
        assert row.prompt.count("\nA: ") == n_shots
        assert parse_answer(f"#### {row.answer}") == row.answer


def test_prompt_ids_do_not_depend_on_the_sample() -> None:
    few, many = (sample_prompts("arithmetic", n, 0, 0)["prompt_id"].tolist() for n in (3, 6))
    assert few == many[:3]


def test_calculator_notes_are_removed_and_answers_canonical(gsm8k_file: str) -> None:
    problem = load_problems("gsm8k", 1, 0, gsm8k_file)[0]
    assert "<<" not in problem.solution
    assert problem.answer.isdigit()


@pytest.mark.skipif(not REAL_GSM8K.exists(), reason="the real GSM8K file is not on this machine")
def test_every_real_gsm8k_answer_parses() -> None:
    problems = load_problems("gsm8k", 1319, 0, str(REAL_GSM8K))
    assert len({problem.question for problem in problems}) == 1319


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("algebra", 1, 0), "unknown task 'algebra'.*arithmetic, gsm8k"),
        (("arithmetic", 0, 0), "at least one"),
        (("arithmetic", 1, 0, "file.jsonl"), "leave source empty"),
        (("gsm8k", 1, 0, "/nowhere.jsonl"), "cannot read gsm8k from /nowhere.jsonl"),
    ],
)
def test_bad_requests_name_the_cause_and_the_mend(arguments: tuple, message: str) -> None:
    with pytest.raises(KvguardError, match=message):
        load_problems(*arguments)


def test_asking_beyond_the_set_is_refused_with_its_size(gsm8k_file: str) -> None:
    with pytest.raises(KvguardError, match=r"n is 10, .* has 9 problems"):
        load_problems("gsm8k", 10, 0, gsm8k_file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "cut o', "cannot read"),
        ('{"question": "Q"}', "row 1 .* lacks 'answer'"),
        ("[1]", "row 1 .* lacks"),
        ('{"question": "Q", "answer": "none"}', "row 1 .* no '#### N'"),
    ],
)
def test_a_damaged_gsm8k_file_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(KvguardError, match=message):
        load_problems("gsm8k", 1, 0, str(path))


def test_more_demonstrations_than_written_are_refused(gsm8k_file: str) -> None:
    with pytest.raises(KvguardError, match="lower the number of shots"):
        sample_prompts("gsm8k", 1, 0, 99, gsm8k_file)


def test_an_unknown_task_is_refused_before_anything_is_sampled() -> None:
    with pytest.raises(KvguardError, match="unknown task"):
        sample_prompts("", 1, 0, 0)
