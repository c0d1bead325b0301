"""The threshold search: it finds planted thresholds, resumes, and looks at nothing but the tune part."""

from functools import partial

import pandas as pd
import pytest

from kvguard.errors import KvguardError
from kvguard.studies.catastrophes.evaluate import search as module
from kvguard.studies.catastrophes.evaluate.operating_points import choose
from kvguard.studies.catastrophes.evaluate.search import search
from kvguard.studies.catastrophes.evaluate.simulate import Replay
from kvguard.studies.catastrophes.params import EvaluateParams
from kvguard.studies.catastrophes.protocols import PROTOCOLS
from recordings import planted

V1, V2 = PROTOCOLS["v1"], PROTOCOLS["v2"]
N_TRIALS = 24
TUNE, SPLIT = planted(n_prompts=6)
find = partial(search, TUNE, SPLIT, V2, N_TRIALS, 17)


@pytest.fixture(scope="module")
def uninterrupted():
    return find()


@pytest.fixture
def count(monkeypatch):
    """Count the trials; the one numbered ``count.fatal`` is killed."""
    suggest = module._suggest

    def counted(*arguments):
        count.n += 1
        if count.n == count.fatal:
            raise KeyboardInterrupt
        return suggest(*arguments)

    count = type("Count", (), {"n": 0, "fatal": 0})()
    monkeypatch.setattr(module, "_suggest", counted)
    return count


def test_the_search_finds_what_was_planted():
    tune, split = planted(n_prompts=6, foreseen=1, alarmed=0)
    best = choose(search(tune, split, V2, N_TRIALS, 17), EvaluateParams())["conservative"]
    assert (best.reduction, best.false_positive_rate) == (0.5, 0)
    assert 0.1 < best.params.tau_high <= 0.8
    assert 0 < best.kv_saved < 0.5 * 5 / 10


def test_every_trial_keeps_its_thresholds_in_order_and_dominated_ones_are_off_the_front(uninterrupted):
    assert uninterrupted["trial"].tolist() == list(range(N_TRIALS))
    assert (uninterrupted["tau_low"] <= uninterrupted["tau_high"]).all()
    assert uninterrupted["k_escalate"].between(1, 16).all()
    assert uninterrupted["j_deescalate"].between(1, 64).all()
    gains = uninterrupted[["reduction", "false_positive_rate", "kv_saved"]].to_numpy() * [1, -1, 1]
    dominated = [((gains >= own).all(axis=1) & (gains > own).any(axis=1)).any() for own in gains]
    assert uninterrupted["on_front"].tolist() == [not worse for worse in dominated]


def test_the_same_seed_gives_the_same_trials_and_another_seed_others(uninterrupted):
    pd.testing.assert_frame_equal(find(), uninterrupted)
    assert not search(TUNE, SPLIT, V2, N_TRIALS, 18).equals(uninterrupted)


@pytest.mark.parametrize("half_a_line", ["", '{"op_code": 4, "worker'])
def test_a_killed_search_goes_on_to_the_trials_it_would_have_come_to(
    tmp_path, uninterrupted, count, half_a_line
):
    journal = tmp_path / "evaluate" / "study.journal"
    count.fatal = 15
    with pytest.raises(KeyboardInterrupt):
        find(journal)
    with journal.open("a") as file:
        file.write(half_a_line)
    journal.with_name("study.journal.lock").touch()
    pd.testing.assert_frame_equal(find(journal), uninterrupted)
    assert count.n == N_TRIALS + 1  # the killed trial is the only one simulated twice
    assert [path.name for path in journal.parent.iterdir()] == ["study.journal"]


def test_a_finished_search_repeats_nothing_and_more_trials_continue_it(tmp_path, uninterrupted, count):
    journal = tmp_path / "study.journal"
    short = search(TUNE, SPLIT, V2, 12, 17, journal)
    pd.testing.assert_frame_equal(find(journal), uninterrupted)
    assert count.n == N_TRIALS
    pd.testing.assert_frame_equal(search(TUNE, SPLIT, V2, 12, 17, journal), short)
    assert count.n == N_TRIALS


def test_a_study_of_another_simulation_is_replaced_and_moving_the_code_keeps_it(tmp_path, count, monkeypatch):
    journal = tmp_path / "study.journal"
    search(TUNE, SPLIT, V2, 3, 17, journal)
    monkeypatch.setattr(module, "__file__", "/elsewhere/search.py")
    search(TUNE, SPLIT, V2, 3, 17, journal)
    assert count.n == 3
    run = Replay.run
    monkeypatch.setattr(Replay, "run", lambda self, params: run(self, params).assign(kv_saved_controlled=0.0))
    search(TUNE, SPLIT, V2, 3, 17, journal)
    assert count.n == 6


def test_a_study_of_other_inputs_is_replaced(tmp_path, uninterrupted, count):
    journal = tmp_path / "study.journal"
    other = Replay(TUNE.traces, TUNE.hazard / 2)
    search(other, SPLIT, V2, 12, 17, journal)
    pd.testing.assert_frame_equal(find(journal), uninterrupted)
    search(TUNE, SPLIT, V2, 3, 18, journal)
    assert count.n == 12 + N_TRIALS + 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"\x00\xff" * 500,
        lambda data: b"[]\n" + data,
        lambda data: data.replace(b'"op_code":4', b'"op_code":"?"', 1),
        lambda data: data.replace(b'"values"', b'"value', 1),
        lambda data: data[len(data) // 2 :],
    ],
)
def test_a_corrupt_study_is_one_line_and_stays_as_it_is(tmp_path, damage):
    journal = tmp_path / "study.journal"
    search(TUNE, SPLIT, V2, 3, 17, journal)
    journal.write_bytes(damage(journal.read_bytes()))
    before = journal.read_bytes()
    with pytest.raises(KvguardError, match=r"study.journal: the study is corrupt .* delete") as caught:
        search(TUNE, SPLIT, V2, 3, 17, journal)
    assert "\n" not in str(caught.value)
    assert journal.read_bytes() == before


def test_thresholds_chosen_on_test_prompts_are_rejected_under_v2_and_are_v1s_way(uninterrupted):
    leaky = SPLIT.assign(part=["tune"] * 5 + ["test"])
    with pytest.raises(KvguardError, match="trace 15 is of the test part, and protocol v2 chooses on"):
        search(TUNE, leaky, V2, 3, 17)
    by_trace = TUNE.traces[["trace_id"]].assign(part="test")
    assert len(search(TUNE, by_trace, V1, 3, 17)) == 3


def test_uncompressed_traces_neither_count_nor_suffice(uninterrupted):
    none = (TUNE.traces["compressor"] == "none").to_numpy()
    pd.testing.assert_frame_equal(search(TUNE.compressed, SPLIT, V2, N_TRIALS, 17), uninterrupted)
    with pytest.raises(KvguardError, match="no trace is compressed"):
        search(Replay(TUNE.traces[none].reset_index(drop=True), TUNE.hazard[none]), SPLIT, V2, 3, 17)


def test_where_every_trace_fails_nothing_is_a_false_alarm():
    fails = TUNE.traces["failed"].to_numpy()
    failing = Replay(TUNE.traces[fails].reset_index(drop=True), TUNE.hazard[fails])
    assert (search(failing, SPLIT, V2, 3, 17)["false_positive_rate"] == 0).all()
