"""A run: what the model read, what was kept, and that it ends the same wherever it was killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_suite
import torch

import bundles
from imports import SRC
from kvguard.errors import KvguardError
from kvguard.guard.features import thinking_mask
from kvguard.guard.session import Guard
from kvguard.studies.instructions import journal
from kvguard.studies.instructions.arms import TEXT_REMOVAL, all_arms
from kvguard.studies.instructions.chapter.build import build
from kvguard.studies.instructions.eviction import check_press_of
from kvguard.studies.instructions.examples import Verdicts
from kvguard.studies.instructions.generation import Asked, Watched, prefilled
from kvguard.studies.instructions.places import encode
from kvguard.studies.instructions.run import run

ALL = ("snapkv@0.5", "streaming_llm@0.5", "random@0.5", "pyramidkv@0.3", "observed_attention@0.5")
TREATMENTS = ("protected:instructions", "protected:system", "fair")
SETTINGS = {
    "model": "tiny", "suite": "made", "placement": "user", "max_new_tokens": 24,
    "judge": {"url": None, "command": None},
}  # fmt: skip


def lines(folder):
    return (folder / journal.NAME).read_bytes()


def test_in_every_cache_arm_the_model_read_the_whole_prompt_and_without_the_text_it_did_not(make_study):
    study = make_study((*ALL, "text_removal@0.5"), TREATMENTS)
    for example in study.examples:
        found = prefilled(study.how, encode(study.how.loaded, example), study.arms)
        asked = {one.arm: one for one in found if isinstance(one, Asked)}
        base = asked[study.arms[0]]
        removed = [one for arm, one in asked.items() if arm.press == TEXT_REMOVAL]
        cached = [one for arm, one in asked.items() if arm.press != TEXT_REMOVAL]
        assert len(cached) > 10
        for one in cached:
            assert one.facts["n_seen"] == one.facts["n_prompt"] == len(one.row.prompt_ids)
            tolerance = 1e-4 if one.arm.press == "observed_attention" else 0  # whose pass attends eagerly
            torch.testing.assert_close(one.row.logits, base.row.logits, rtol=0, atol=tolerance)
        for one in removed:
            assert one.facts["n_seen"] < one.facts["n_prompt"]
            assert (one.row.logits - base.row.logits).abs().max() > 0.01


def test_budgets_are_equal_to_within_a_token_across_presses_and_treatments(make_study):
    study = make_study(("snapkv@0.5", "streaming_llm@0.5", "random@0.5", "text_removal@0.5"), TREATMENTS)
    for example in study.examples:
        found = prefilled(study.how, encode(study.how.loaded, example), study.arms[1:])
        kept = [one.facts["n_kept"] for one in found if isinstance(one, Asked)]
        assert max(kept) - min(kept) <= 1


def test_an_arm_that_does_not_fit_an_example_says_so_and_is_not_scored(make_study, tmp_path):
    study = make_study(("snapkv@0.9",), TREATMENTS)
    run(study, tmp_path, SETTINGS, lambda _: None)
    _, rows, _ = journal.read(tmp_path)
    unfit = {row["unfit"] for row in rows if "unfit" in row}
    assert any("protected entries exceed" in why for why in unfit)
    assert "it has no system prompt" in unfit
    assert not any("strict" in row for row in rows if "unfit" in row)
    results = build(tmp_path, 100, 0)
    assert results.metrics("followed")["followed"]["snapkv@0.9+protected:system"]["unfit"]["value"] > 0


def test_a_press_that_rejects_a_prompt_costs_no_other_arm(make_study, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("too odd a prompt")

    monkeypatch.setattr("kvpress.SnapKVPress.score", fails)
    run(make_study(("snapkv@0.5", "random@0.5"), n=1), tmp_path, SETTINGS, lambda _: None)
    _, rows, _ = journal.read(tmp_path)
    assert {row["arm"]: "too odd a prompt" in row.get("unfit", "") for row in rows} == {
        "baseline": False, "random@0.5": False, "snapkv@0.5": True,
    }  # fmt: skip


def test_each_result_is_on_disk_before_it_is_told_and_a_second_run_asks_nothing(make_study, tmp_path):
    study, told = make_study(), []

    def show(line):
        told.append(line)
        rows = [entry for entry in map(json.loads, lines(tmp_path).splitlines()) if "key" in entry]
        assert len(rows) == len(told)

    ended = run(study, tmp_path, SETTINGS, show)
    assert ended.n_made == len(told) == 15
    assert told[-1].startswith("[15/15] ")
    before = lines(tmp_path)

    def never(example, text):
        raise AssertionError("asked twice")

    again = run(make_study(rules=never), tmp_path, SETTINGS, told.append)
    assert (again.n_made, again.n_kept) == (0, 15)
    assert lines(tmp_path) == before


@pytest.mark.parametrize("cut", [0.05, 0.3, 0.55, 0.8, 0.99])
def test_cut_anywhere_it_ends_with_the_same_results(make_study, tmp_path, cut):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run(make_study(treatments=("fair",)), whole, SETTINGS, lambda _: None)
    content = lines(whole)
    torn.mkdir()
    (torn / journal.NAME).write_bytes(content[: int(len(content) * cut)])
    kept, scored = lines(torn).rpartition(b"\n")[0].count(b'"strict"'), []

    def count(example, text):
        scored.append(example.key)
        return small_suite.verify(example, text)

    run(make_study(treatments=("fair",), rules=count), torn, SETTINGS, lambda _: None)
    assert len(scored) == content.count(b'"strict"') - kept, "what is stored is not judged again"
    assert sorted(lines(torn).splitlines()) == sorted(content.splitlines())


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import small_suite
from kvguard.studies.instructions.run import run
study = small_suite.study(small_suite.load({model!r}), treatments=("fair",))
run(study, Path({folder!r}), {settings!r}, lambda _: None)
"""


def test_killed_by_force_it_goes_on_and_ends_with_the_same_table(make_study, tmp_path, model_folder):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run(make_study(treatments=("fair",)), whole, SETTINGS, lambda _: None)
    script = SCRIPT.format(
        here=str(Path(__file__).parent),
        folder=str(torn),
        settings=SETTINGS,
        model=str(model_folder),
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    while process.poll() is None and not (torn / journal.NAME).exists():
        time.sleep(0.01)
    while process.poll() is None and lines(torn).count(b"\n") < 9:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 9 <= lines(torn).count(b"\n") < lines(whole).count(b"\n")
    run(make_study(treatments=("fair",)), torn, SETTINGS, lambda _: None)
    for folder in (whole, torn):
        build(folder, 100, 0)
    assert (whole / "numbers.parquet").read_bytes() == (torn / "numbers.parquet").read_bytes()


def test_another_run_in_the_same_folder_is_rejected(make_study, tmp_path):
    with journal.Journal(tmp_path, SETTINGS), pytest.raises(KvguardError, match="another run writes there"):
        run(make_study(), tmp_path, SETTINGS, lambda _: None)


def test_results_of_other_settings_or_examples_are_rejected(make_study, tmp_path):
    run(make_study(n=1), tmp_path, SETTINGS, lambda _: None)
    with pytest.raises(KvguardError, match=r'made with placement "user", not "system"[^\n]*--out$'):
        run(make_study(n=1), tmp_path, {**SETTINGS, "placement": "system"}, lambda _: None)
    study = make_study(n=1)
    changed = [dataclasses.replace(study.examples[0], prompt="Another. Say it twice.")]
    with pytest.raises(KvguardError, match="example e0 is not the one"):
        run(dataclasses.replace(study, examples=changed), tmp_path, SETTINGS, lambda _: None)


def test_a_damaged_line_is_named(make_study, tmp_path):
    run(make_study(n=1), tmp_path, SETTINGS, lambda _: None)
    content = lines(tmp_path).splitlines(keepends=True)
    (tmp_path / journal.NAME).write_bytes(b"".join([*content[:2], b"{]\n", *content[2:]]))
    with pytest.raises(KvguardError, match=r"results.jsonl: line 3 is damaged[^\n]*$"):
        run(make_study(n=1), tmp_path, SETTINGS, lambda _: None)


def test_more_examples_and_arms_join_what_is_there(make_study, tmp_path):
    run(make_study(n=2), tmp_path, SETTINGS, lambda _: None)
    before = lines(tmp_path)
    ended = run(make_study(("streaming_llm@0.5", "random@0.5", "snapkv@0.5"), n=4), tmp_path, SETTINGS, print)
    assert (ended.n_kept, ended.n_made) == (6, 10)
    assert lines(tmp_path).startswith(before)


def test_it_stops_once_every_difference_is_clear(make_study, tmp_path):
    ended = run(make_study(stop_when=2.0), tmp_path, SETTINGS, lambda _: None)
    assert (ended.n_made, ended.stopped_after) == (0, 0)
    ended = run(make_study(stop_when=1.9), tmp_path, SETTINGS, lambda _: None)
    again = run(make_study(stop_when=1.9), tmp_path, SETTINGS, lambda _: None)
    assert (again.n_made, again.stopped_after) == (0, ended.stopped_after)


def test_a_prompt_beyond_the_window_is_named_before_anything_runs(make_study, tmp_path):
    study = make_study()
    study = dataclasses.replace(study, how=dataclasses.replace(study.how, max_new_tokens=2000))
    with pytest.raises(KvguardError, match=r"^example e0: [^\n]* exceed the window of 2048 [^\n]*$"):
        run(study, tmp_path / "new", SETTINGS, lambda _: None)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("treatment", ["protected:instructions", "fair"])
def test_a_press_that_cannot_be_held_to_a_rule_is_rejected_before_anything_runs(treatment):
    (arm,) = all_arms(["kvzip@0.5"], [treatment], small_suite.COMPRESSORS)[2:]
    with pytest.raises(
        KvguardError, match=rf"^conditions: kvzip@0.5\+{treatment}: press KVzipPress: [^\n]*$"
    ):
        check_press_of(arm, small_suite.COMPRESSORS)


def test_the_guard_watches_all_arms_and_acts_in_its_own(make_study, loaded, tmp_path):
    guard = Guard.load(bundles.write_bundle(tmp_path / "bundle", loaded.model, position=0.3))
    watched = Watched(guard.hazard, guard.point, guard.params, thinking_mask(loaded.tokenizer, ("so",)))
    treatments = ("guard:restore", "guard:rollback")
    run(make_study(treatments=treatments, guard=watched), tmp_path, SETTINGS, lambda _: None)
    _, rows, _ = journal.read(tmp_path)
    assert all(row["hazard"] is not None for row in rows if row["n_tokens"])
    acted = {row["arm"].partition("+")[2] for row in rows if row["actions"]}
    assert acted == set(treatments)
    plain = {(row["key"], row["arm"]): row["text"] for row in rows if "guard" not in row["arm"]}
    run(make_study(), tmp_path / "unwatched", SETTINGS, lambda _: None)
    _, unwatched, _ = journal.read(tmp_path / "unwatched")
    assert {(row["key"], row["arm"]): row["text"] for row in unwatched} == plain
    build(tmp_path, 100, 0)


class Moody:
    """A judge that gives a verdict on even answers only."""

    def __init__(self):
        self.asked = []

    @property
    def summary(self):
        return {"called": float(len(self.asked)), "cost": None}

    def judge(self, example, instruction, text):
        self.asked.append((example.key, instruction.id, text))
        return len(text) % 3 == 0 if len(text) % 2 == 0 else None


def test_what_no_rule_checks_is_the_judges_or_not_scored_and_asked_once(make_study, tmp_path):
    def unruled(example, text):
        found = small_suite.verify(example, text)
        return Verdicts((None, found.strict[1]), (None, found.loose[1]))

    judge = Moody()
    run(make_study(rules=unruled, judge=judge, both=0.5), tmp_path, SETTINGS, lambda _: None)
    _, rows, _ = journal.read(tmp_path)
    for row in rows:
        assert row["strict"][0] == row["loose"][0] == row["judged"][0]
        assert (row["judged"][0] is None) == (len(row["text"]) % 2 == 1)
    assert sum(row["judged"][1] is not None for row in rows) > 0
    n_asked = len(judge.asked)
    run(make_study(rules=unruled, judge=judge, both=0.5), tmp_path, SETTINGS, lambda _: None)
    assert len(judge.asked) == n_asked
    numbers = build(tmp_path, 100, 0).metrics("judge", "judge-calls", "followed")
    assert numbers["judge-calls"]["all"]["called"]["value"] == n_asked
    assert numbers["judge"]["all"]["n_unscored"]["value"] > 0
    assert numbers["followed"]["baseline"]["unscored"]["value"] > 0
