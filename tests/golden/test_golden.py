"""The engine and the guard give the tokens that are committed here, unless their version says otherwise.

Tokens, stop reasons, states and actions are exact. Signals are float32, kept to five
digits, and may be off by 1e-4: batches of 4 and of 64 rows moved them by 2e-5 at most.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import generations
import golden_set
import pytest


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return golden_set.read()


@pytest.fixture(scope="module", params=generations.MODELS)
def made(request: pytest.FixtureRequest) -> tuple[str, Mapping[str, Any]]:
    return request.param, generations.generations(generations.load(request.param))


@pytest.mark.parametrize("group", ["decoded", "sampled", "acted on", "guarded"])
def test_generations_are_those_of_the_golden_set(
    golden: dict[str, Any], made: tuple[str, Mapping[str, Any]], group: str
) -> None:
    name, found = made
    reason = golden_set.outdated(golden, generations.VERSIONS) or golden_set.changed(
        golden["models"][name][group], found[group], "guard" if group == "guarded" else "engine"
    )
    if reason is not None:
        pytest.fail(reason, pytrace=False)


def test_the_set_holds_every_way_in_which_a_row_can_go(golden: dict[str, Any]) -> None:
    for groups in golden["models"].values():
        records = [record for cases in groups.values() for rows in cases.values() for record in rows]
        assert {record["stop"] for record in records} == {"eos", "length"}
        actions = {what for record in records for _, what, _ in record.get("actions", [])}
        assert actions == {"hold", "restore", "rollback", "restart", "resume"}
        whole = groups["decoded"]["none"]
        for case, rows in groups["acted on"].items():
            assert any(row["tokens"] != plain["tokens"] for row, plain in zip(rows, whole, strict=True)), case


def test_another_token_under_the_same_version_asks_for_a_new_version(golden: dict[str, Any]) -> None:
    was = golden["models"]["qwen2"]["decoded"]
    now = copy.deepcopy(was)
    now["knorm@0.25"][1]["tokens"][7] += 1
    reason = golden_set.changed(was, now, "engine")
    assert reason is not None
    assert "raise kvguard.engine.VERSION" in reason
    assert "tests/golden/make.py" in reason
    assert "knorm@0.25, prompt 1: tokens differ from t = 7 on" in reason


@pytest.mark.parametrize(("off", "tolerated"), [(5e-5, True), (2e-4, False), (float("nan"), False)])
def test_signals_may_be_off_by_the_tolerance_only(
    golden: dict[str, Any], off: float, tolerated: bool
) -> None:
    was = golden["models"]["llama"]["decoded"]
    now = copy.deepcopy(was)
    now["none"][0]["signals"][1][4] += off
    assert (golden_set.changed(was, now, "engine") is None) is tolerated


@pytest.mark.parametrize("key", ["stop", "states", "actions", "steps"])
def test_another_decision_of_the_guard_is_a_change(golden: dict[str, Any], key: str) -> None:
    was = golden["models"]["qwen2"]["guarded"]
    now = copy.deepcopy(was)
    next(iter(now.values()))[0][key] = "another"
    reason = golden_set.changed(was, now, "guard")
    assert reason is not None
    assert "kvguard.guard.VERSION" in reason
    assert key in reason


def test_a_case_that_is_gone_is_a_change(golden: dict[str, Any]) -> None:
    was = golden["models"]["qwen2"]["sampled"]
    assert golden_set.changed(was, dict(list(was.items())[1:]), "engine") is not None


@pytest.mark.parametrize("owner", ["engine", "guard"])
def test_a_raised_version_asks_for_a_new_set(golden: dict[str, Any], owner: str) -> None:
    assert golden_set.outdated(golden, golden["versions"]) is None
    raised = {**golden["versions"], owner: golden["versions"][owner] + 1}
    assert "tests/golden/make.py" in (golden_set.outdated(golden, raised) or "")
