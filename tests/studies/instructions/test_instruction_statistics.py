"""Numbers of a run, against counts by hand and libraries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from kvguard.stats.paired import mcnemar
from kvguard.studies.instructions.statistics.answers import Answers
from kvguard.studies.instructions.statistics.forgetting import auroc
from kvguard.studies.instructions.statistics.judged import kappa
from kvguard.studies.instructions.statistics.measure import measure

BASE = {
    "n_prompt": 40, "n_seen": 40, "n_kept": 20.0, "n_protected": 0, "n_tokens": 7, "catastrophes": [],
    "stop_reason": "eos", "text": "", "position": "start", "instructions": ["a:x", "b:y"], "starts": [3, 9],
}  # fmt: skip


def row(key, arm, strict, **changes):
    return {**BASE, "key": key, "arm": arm, "strict": list(strict), "loose": list(strict),
            "judged": [None] * len(strict), "ruled": [True] * len(strict), **changes}  # fmt: skip


def numbers(rows):
    found = measure(Answers.of(rows, 200, 0), "m", "s")
    return {
        (table, subject, metric): one["value"]
        for table, subjects in found.metrics(
            "followed", "types", "positions", "strategy", "treatments", "text-removal", "against-baseline",
            "first-forgotten", "foreseen", "judge",
        ).items()
        for subject, metrics in subjects.items()
        for metric, one in metrics.items()
    }  # fmt: skip


T, F, N = True, False, None


def test_levels_are_counted_as_their_names_say():
    rows = [row("1", "baseline", (T, T)), row("2", "baseline", (T, F)), row("3", "baseline", (T, N))]
    rows += [row("1", "snapkv@0.5", (T, F)), row("2", "snapkv@0.5", (F, F)), row("3", "snapkv@0.5", (T, T))]
    found = numbers(rows)
    assert found["followed", "baseline", "prompt_strict"] == 0.5  # the third is not scored
    assert found["followed", "baseline", "n"] == 2
    assert found["followed", "baseline", "unscored"] == 1
    assert found["followed", "baseline", "instruction_strict"] == pytest.approx(4 / 5)
    assert found["followed", "snapkv@0.5", "forgotten"] == pytest.approx(2 / 4)
    assert found["types", "baseline/b:y", "instruction_strict"] == 0.5
    assert found["types", "baseline/b:y", "n"] == 2
    assert found["positions", "snapkv@0.5/start", "instruction_strict"] == 0.5


def test_each_question_has_its_control():
    arms = [
        "baseline", "snapkv@0.5", "random@0.5", "snapkv@0.5+fair", "random@0.5+fair", "streaming_llm@0.5",
        "text_removal@0.5", "snapkv@0.25",
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    rows = [row(str(k), arm, (rng.random(2) < 0.8).tolist()) for k in range(40) for arm in arms]
    found = numbers(rows)
    tables = {}
    for table, subject, _ in found:
        tables.setdefault(table, set()).add(subject)
    assert tables["against-baseline"] == set(arms[1:])
    assert tables["strategy"] == {"snapkv@0.5", "snapkv@0.5+fair", "streaming_llm@0.5"}
    assert tables["treatments"] == {"snapkv@0.5+fair", "random@0.5+fair"}
    assert tables["text-removal"] == {"text_removal@0.5"}
    outcome = {
        arm: np.array([all(r["strict"]) for r in rows if r["arm"] == arm])
        for arm in ("snapkv@0.5", "random@0.5")
    }
    one, other = outcome.values()
    assert found["strategy", "snapkv@0.5", "difference"] == pytest.approx(one.mean() - other.mean())
    more, less = int((one & ~other).sum()), int((other & ~one).sum())
    assert found["strategy", "snapkv@0.5", "p"] == mcnemar(more, less)
    assert found["strategy", "snapkv@0.5", "p_holm"] >= found["strategy", "snapkv@0.5", "p"]


def test_pairs_leave_out_what_does_not_apply():
    rows = [row("1", "baseline", (T, T)), row("2", "baseline", (T, T))]
    rows += [{"key": "1", "arm": "snapkv@0.5", "unfit": "too short"}, row("2", "snapkv@0.5", (F, T))]
    found = numbers(rows)
    assert found["against-baseline", "snapkv@0.5", "n"] == 1
    assert found["against-baseline", "snapkv@0.5", "difference"] == -1
    assert found["followed", "snapkv@0.5", "unfit"] == 1


def test_of_two_instructions_only_those_followed_uncompressed_can_be_forgotten():
    rows, arm = [], "snapkv@0.5"
    pairs = [((T, T), (F, T)), ((T, T), (T, F)), ((T, T), (T, F)), ((T, T), (F, F)), ((T, F), (F, F))]
    starts = [[3, 9], [9, 3], [3, 9], [3, 9], [3, 9]]  # the first is the one that stands first
    for number, (before, after) in enumerate(pairs):
        rows += [row(str(number), "baseline", before), row(str(number), arm, after, starts=starts[number])]
    rows += [row("same", "baseline", (T, T)), row("same", arm, (F, T), starts=[3, 3])]
    rows += [row("unknown", "baseline", (T, T)), row("unknown", arm, (F, T), starts=[None, 3])]
    found = numbers(rows)
    counts = [found["first-forgotten", arm, name] for name in ("n", "first_only", "second_only", "both")]
    assert counts == [4, 2, 1, 1]


def test_what_foresees_counts_only_answers_that_had_something_to_forget():
    rows = []
    for number in range(8):
        rows.append(
            row(str(number), "baseline", (T, F) if number < 6 else (F, F), hazard=0.0, hazard_mean=0.0)
        )
        forgets = number % 2 == 0
        rows.append(
            row(str(number), "snapkv@0.5", (not forgets, F), hazard=0.9 if forgets else 0.1, hazard_mean=0.5)
        )
    found = numbers(rows)
    assert found["foreseen", "all", "n"] == 6
    assert found["foreseen", "all", "auroc_hazard"] == 1
    assert found["foreseen", "all", "auroc_n_tokens"] == 0.5


@given(st.data())
def test_auroc_is_that_of_scikit_learn_with_ties_and_weights(data):
    n = data.draw(st.integers(2, 30))
    scores = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), dtype=float)
    labels = np.array([*data.draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2)), True, False])
    weights = np.array(data.draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)), dtype=float)
    found = auroc(scores, labels, np.stack([weights, weights]))
    assert found.value == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_kappa_is_that_of_scikit_learn(pairs):
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    found = kappa(first, second, np.ones((1, len(first))))[0]
    expected = cohen_kappa_score(first, second, labels=[False, True])
    assert found == pytest.approx(expected, nan_ok=True)
