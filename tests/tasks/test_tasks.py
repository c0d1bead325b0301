import hashlib
import json
from pathlib import Path

import pytest

from kvguard.errors import KvguardError
from kvguard.store.tables import read_table, write_table
from kvguard.tasks import TASKS, Sample, Task, make_task, sample_prompts
from kvguard.tasks.answers import parse_answer
from kvguard.tasks.prompts import INSTRUCTION

REAL_GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
DEFAULT_PROMPTS = "e1785c45691d662df36c0c02704ffac260c7fa54b71b505f38a90020cb997698"


@pytest.fixture
def gsm8k_file(tmp_path: Path) -> str:
    rows = [
        {"question": f"What is {i} plus 1000?", "answer": f"It is <<{i}+1000=1>>.\n#### 1,{i:03}"}
        for i in range(9)
    ]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0]])), encoding="utf-8")
    return str(path)


@pytest.fixture
def own_file(tmp_path: Path) -> str:
    rows = [{"prompt": f"What is {i} plus 1000?", "answer": 1000 + i} for i in range(9)]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0]])), encoding="utf-8")
    return str(path)


@pytest.fixture
def sources(gsm8k_file: str, own_file: str) -> dict[str, dict[str, str]]:
    return {name: {"source": gsm8k_file} for name in ("gsm8k", "gsm8k_zero_shot")} | {
        "own": {"source": own_file}
    }


def task_of(name: str, sources: dict[str, dict[str, str]], **settings: int) -> Task:
    return make_task(name, **sources.get(name, {}), **settings)


@pytest.mark.parametrize("name", TASKS)
def test_sampling_is_deterministic_and_without_repeats(name: str, sources: dict) -> None:
    task = task_of(name, sources)
    samples = task.samples(9, 3)
    assert samples == task.samples(9, 3)
    assert samples != task.samples(9, 4)
    assert len({sample.question for sample in samples}) == 9


@pytest.mark.parametrize("name", TASKS)
def test_a_larger_sample_begins_with_the_smaller_one(name: str, sources: dict) -> None:
    task = task_of(name, sources)
    assert task.samples(9, 3)[:4] == task.samples(4, 3)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("own", "longarith")])  # asked as is
@pytest.mark.parametrize("n_shots", [0, 3])
def test_prompts_hold_the_demonstrations_and_end_with_the_question(
    name: str, n_shots: int, sources: dict
) -> None:
    table = task_of(name, sources, n_shots=n_shots).prompts(5, 0)
    assert table["prompt_id"].is_unique
    for row in table.itertuples():
        (message,) = row.prompt["messages"]
        assert message["role"] == "user"
        assert message["content"].startswith(INSTRUCTION)
        assert message["content"].endswith(f"Q: {row.question}")
        assert message["content"].count("\nA: ") == n_shots
        assert row.prompt["text"] == message["content"] + "\nA:"
        assert [parse_answer(f"#### {reference}") for reference in row.references] == row.references


@pytest.mark.parametrize("name", TASKS)
def test_every_reference_solution_is_right_and_no_other_text(name: str, sources: dict) -> None:
    task = task_of(name, sources)
    for sample in task.samples(9, 0):
        scores = task.score(sample.solution or sample.references[0], sample)
        assert scores[task.headline] == 1
        assert task.score("I do not know.", sample)[task.headline] == 0


def test_the_prompts_of_the_shipped_models_stay_as_they_were() -> None:
    """Their traces hang on every byte: the digest is that of the first 500 prompts of the default run."""
    prompts = sample_prompts("arithmetic", 500, 17)
    texts = "\0".join(prompt["messages"][0]["content"] for prompt in prompts["prompt"])
    assert hashlib.sha256(texts.encode()).hexdigest() == DEFAULT_PROMPTS


def test_a_prompts_table_comes_back_as_samples(tmp_path: Path) -> None:
    task = make_task("arithmetic")
    table = task.prompts(3, 0)
    write_table("prompts", table, tmp_path / "prompts.parquet")
    back = read_table("prompts", tmp_path / "prompts.parquet")
    for (_, row), sample, asked in zip(back.iterrows(), task.samples(3, 0), table["prompt"], strict=True):
        found = Sample.of(row)
        assert (found.question, found.references, found.metadata) == (
            sample.question, sample.references, sample.metadata
        )  # fmt: skip
        assert (list(row["prompt"]["messages"]), row["prompt"]["text"]) == (asked["messages"], asked["text"])


def test_prompt_ids_do_not_depend_on_the_sample() -> None:
    few, many = (sample_prompts("arithmetic", n, 0)["prompt_id"].tolist() for n in (3, 6))
    assert few == many[:3]


def test_calculator_notes_are_removed_and_answers_canonical(gsm8k_file: str) -> None:
    sample = task_of("gsm8k", {"gsm8k": {"source": gsm8k_file}}).samples(1, 0)[0]
    assert "<<" not in sample.solution
    assert sample.references[0].isdigit()


@pytest.mark.skipif(not REAL_GSM8K.exists(), reason="the real GSM8K file is not on this machine")
def test_every_real_gsm8k_answer_parses() -> None:
    samples = make_task("gsm8k", source=str(REAL_GSM8K)).samples(1319, 0)
    assert len({sample.question for sample in samples}) == 1319


@pytest.mark.parametrize(
    ("name", "n", "settings", "message"),
    [
        ("algebra", 1, {}, "unknown name 'algebra'.*arithmetic, gsm8k, gsm8k_zero_shot, own"),
        ("", 1, {}, "unknown name ''"),
        ("arithmetic", 0, {}, "at least one"),
        ("arithmetic", 1, {"source": "file.jsonl"}, "unknown key 'tasks.arithmetic.source'"),
        ("gsm8k", 1, {"source": "/nowhere.jsonl"}, "cannot read /nowhere.jsonl"),
        ("gsm8k", 1, {"n_shots": -1}, r"tasks\.gsm8k\.n_shots: -1"),
    ],
)
def test_bad_requests_name_the_cause_and_the_fix(name: str, n: int, settings: dict, message: str) -> None:
    with pytest.raises(KvguardError, match=message):
        sample_prompts(name, n, 0, **settings)


def test_asking_beyond_the_set_is_rejected_with_its_size(gsm8k_file: str) -> None:
    with pytest.raises(KvguardError, match=r"n is 10, .* has 9 problems"):
        task_of("gsm8k", {"gsm8k": {"source": gsm8k_file}}).samples(10, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "cut o', "line 2: not JSON"),
        ('{"question": "Q"}', "line 2: there is no 'answer'"),
        ("[1]", "line 2: it is a list"),
        ('{"question": "Q", "answer": "none"}', "line 2: .* '#### N'"),
        ('{"question": "Q", "answer": "It is 5 and 3 are left."}', "line 2: .* '#### N'"),
        ('{"question": "Q", "answer": "#### 3:30"}', "line 2: .* '#### N'"),
        ('{"question": null, "answer": "#### 1"}', "line 2: 'question' is null"),
        ('{"question": ["Q"], "answer": "#### 1"}', "line 2: 'question' is a list"),
        ('{"question": "Q", "answer": 1}', "line 2: 'answer' is a number"),
        ('{"question": " ", "answer": "#### 1"}', "line 2: 'question' is empty"),
        (
            '{"question": "Q0", "answer": "#### 2"}',
            "line 2: .* answer 2, and 1 in .* line 1: keep the right one",
        ),
    ],
)
def test_a_damaged_gsm8k_file_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "Q0", "answer": "#### 1"}\n' + line, encoding="utf-8")
    with pytest.raises(KvguardError, match=message) as error:
        make_task("gsm8k", source=str(path)).samples(1, 0)
    assert "\n" not in str(error.value)


def test_a_row_that_stands_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"question": "Q", "answer": "So\\n#### 1,000"}\n{"question": "Q", "answer": "1000"}\n')
    [sample] = make_task("gsm8k", source=str(path)).samples(1, 0)
    assert sample.references == ("1000",)


def test_more_demonstrations_than_written_are_rejected(gsm8k_file: str) -> None:
    with pytest.raises(KvguardError, match=r"lower tasks\.gsm8k\.n_shots"):
        task_of("gsm8k", {"gsm8k": {"source": gsm8k_file}}, n_shots=99).prompts(1, 0)
