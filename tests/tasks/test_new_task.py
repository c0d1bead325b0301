"""A task whose answer is a string with several references joins by one class and one entry."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from transformers.data.metrics.squad_metrics import normalize_answer

from kvguard.engine.presses import Condition
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.judging.judge import read_judged
from kvguard.models.spec import ModelSpec
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes.measure.outcomes import outcomes
from kvguard.sweep.plan import Sweep
from kvguard.sweep.run import run_sweep
from kvguard.sweep.settings import GenerateParams
from kvguard.tasks import TASKS, Sample, Task, make_task
from kvguard.tasks.scores import exact_match, token_f1

CITIES = {
    "Where is the Louvre?": ("Paris", "Paris, France"),
    "Where is the Prado?": ("Madrid", "in Madrid"),
    "Where is Big Ben?": (),
}


class Places(Task):
    """Where things are."""

    name: ClassVar[str] = "places"
    headline: ClassVar[str] = "f1"

    def samples(self, n: int, seed: int) -> list[Sample]:
        order = np.random.default_rng(seed).permutation(len(CITIES))
        questions = list(CITIES)
        return [Sample(questions[i], CITIES[questions[i]]) for i in order[:n]]

    def demonstrations(self, question: str) -> list[Sample]:
        return [Sample("Where is the Uffizi?", ("Florence",), "Florence")][: self.n_shots]

    def score(self, text: str, sample: Sample) -> dict[str, float | None]:
        return {"em": exact_match(text, sample.references), "f1": token_f1(text, sample.references)}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setitem(TASKS, Places.name, Places)
    return make_task("places", n_shots=1, max_new_tokens=24)


def sweep_of(task: Task, model_folder: Path, prompts: pd.DataFrame) -> Sweep:
    return Sweep(
        name="tiny",
        spec=ModelSpec(source=f"path:{model_folder}", task=task.name),
        task=task,
        prompts=prompts,
        conditions=[Condition("none", 0.0)],
        compressors={},
        settings=GenerateParams.model_validate({"preset": "x", "prompts_per_part": 2, "workers": 1}),
        catastrophes=CatastropheParams(),
        device="cpu",
    )


def test_it_is_sampled_generated_and_scored(task: Task, model_folder: Path, tmp_path: Path) -> None:
    write_table("prompts", task.prompts(3, 0), tmp_path / "prompts.parquet")
    prompts = read_table("prompts", tmp_path / "prompts.parquet")
    assert all(
        prompt["text"] == f"Q: Where is the Uffizi?\nA: Florence\n\nQ: {question}\nA:"
        for prompt, question in zip(prompts["prompt"], prompts["question"], strict=True)
    )
    first = read_judged(run_sweep(sweep_of(task, model_folder, prompts), tmp_path, progress=False).traces)
    assert (first["correct"].dropna() == 0).all()  # a random model knows no city

    said = dict(zip(first["prompt_id"], first["text"], strict=True))
    right, half, unscored = prompts["prompt_id"]
    n_words = len(normalize_answer(said[half]).split())
    assert n_words
    prompts["references"] = [["Rome", said[right]], [f"{said[half]} and more", "Rome"], []]
    result = run_sweep(sweep_of(task, model_folder, prompts), tmp_path, progress=False)
    assert result.n_made == 0  # other references, the same texts
    traces = read_judged(result.traces).set_index("prompt_id")

    f1 = 2 * n_words / (2 * n_words + 2)
    assert traces["correct"][[right, half]].tolist() == [1, pytest.approx(f1)]
    assert traces["em"][[right, half]].tolist() == [1, 0]
    assert traces.loc[unscored, ["correct", "em"]].isna().all()
    scores = read_table("scores", tmp_path / "scores.parquet")
    assert sorted(scores["metric"]) == ["em"] * 3 + ["f1"] * 3
    found = outcomes(traces.reset_index())
    assert found["accuracy"].tolist() == [pytest.approx((1 + f1) / 2)]
    assert found["amnesia"].isna().all()
