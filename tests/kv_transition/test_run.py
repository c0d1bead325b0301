"""Endpoints that fail, and harnesses that are killed: nothing finished is lost, nothing is counted twice."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiments import Experiment, Fake

SRC = Path(__file__).parents[2] / "src"
ANSWERED_ONCE = "SELECT count(*), count(DISTINCT request_id) FROM responses"
SECONDS = r"\| \d+\.\d\d / \d+\.\d\d "
TIMES = re.compile(rf"{SECONDS}{SECONDS}\| (not told|\d+\.\d\d) |20\d\d-\d\d-\d\dT[\d:.]+Z")

STATS = (
    "SELECT budget, bin_index, metric, value, low, high FROM bin_stats "
    "WHERE metric NOT LIKE '%\\_p__' ESCAPE '\\' ORDER BY id"
)


def harness(experiment, command="run"):
    """The harness in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "kv_transition", command, "-c", str(experiment.config)],
        cwd=experiment.folder,
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def answered(experiment):
    return experiment.query("SELECT count(*) FROM responses")[0][0] if experiment.database.exists() else 0


def without_times(text):
    """A report without what time and place change in it, or whether the memory was looked at in time."""
    lines = TIMES.sub("*", text).splitlines()
    return [line for line in lines if line and "memory_vs_len" not in line]


def killed_at_random_moments(experiment, fake, n_kills, seed):
    """Kill `run` again and again while it asks; return how many responses there were at each kill."""
    rng, seen = random.Random(seed), []
    for _ in range(n_kills):
        before = answered(experiment)
        process = harness(experiment)
        deadline = time.monotonic() + 120
        while answered(experiment) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(answered(experiment))
        assert experiment.query("PRAGMA integrity_check") == [("ok",)]
    return seen


def check_kills(experiment, fake, n_kills, tmp_path):
    fake.control(delay=0.05)
    experiment.change(dataset={"n_per_bin": n_kills + 7})
    experiment.done("prepare")
    seen = killed_at_random_moments(experiment, fake, n_kills, seed=n_kills)
    assert seen == sorted(seen)
    fake.control(delay=0.0)
    experiment.done("all")
    n = 2 * 3 * (n_kills + 7)
    assert experiment.query(ANSWERED_ONCE) == [(n, n)]
    assert experiment.query("SELECT count(*) FROM telemetry") == [(n,)]
    assert seen[0] < n, "nothing was interrupted"
    whole = Experiment(tmp_path, fake, dataset={"n_per_bin": n_kills + 7}, output={"folder": "runs/whole"})
    whole.database = tmp_path / "runs" / "whole" / "test" / "kv_transition.sqlite"
    whole.done("all")
    reports = [(one.database.parent / "report.md").read_text() for one in (experiment, whole)]
    assert without_times(reports[0]) == without_times(reports[1])
    rows = [one.query(STATS) for one in (experiment, whole)]
    assert rows[0] == rows[1]


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(experiment, fake, tmp_path):
    check_kills(experiment, fake, 3, tmp_path)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_as_if_it_had_not_been(experiment, fake, tmp_path):
    check_kills(experiment, fake, 20, tmp_path)


@pytest.mark.parametrize("mood", ["429", "503", "500", "408", "garbage", "html", "cut", "drop"])
def test_what_passes_is_asked_again_and_counted(experiment, fake, mood):
    experiment.done("prepare")
    fake.control(moods=[mood, mood, "ok"])
    experiment.change(engine={"concurrency": 1})
    experiment.done("run")
    assert experiment.query(ANSWERED_ONCE) == [(18, 18)]
    assert experiment.query("SELECT max(attempts), sum(attempts), sum(error IS NOT NULL) FROM responses") == [
        (3, 20, 0)
    ]


def test_what_does_not_pass_is_recorded_as_a_failure_and_the_run_goes_on(experiment, fake):
    experiment.done("prepare")
    experiment.change(engine={"concurrency": 1})
    fake.control(
        moods=["503", "503", "503", "garbage", "garbage", "garbage", "cut", "cut", "cut", "400", "ok"]
    )
    experiment.done("run")
    experiment.done("score")
    errors = experiment.query(
        "SELECT http_status, attempts, error FROM responses WHERE error IS NOT NULL ORDER BY id"
    )
    assert [(status, attempts) for status, attempts, _ in errors] == [(503, 3), (200, 3), (200, 3), (400, 1)]
    assert experiment.query("SELECT kind, count(*) FROM failures WHERE is_primary AND kind LIKE 'HTTP%'") == [
        ("HTTP_ERROR", 4)
    ]
    assert experiment.query(ANSWERED_ONCE) == [(18, 18)]
    assert experiment.query(
        "SELECT sum(em) FROM scores JOIN responses ON id = response_id WHERE error IS NOT NULL"
    ) == [(0.0,)]


def test_a_slow_answer_is_a_timeout_and_not_asked_again(experiment, fake):
    experiment.done("prepare")
    experiment.change(engine={"request": {"timeout_s": 0.5}})
    fake.control(moods=["drip", "ok"])
    experiment.done("run")
    experiment.done("score")
    [(text, attempts, timed_out)] = experiment.query(
        "SELECT text, attempts, timed_out FROM responses WHERE error NOT NULL"
    )
    assert (attempts, timed_out) == (1, 1)
    assert text.startswith("So")
    assert experiment.query("SELECT kind FROM failures WHERE kind = 'TIMEOUT'") == [("TIMEOUT",)]


def test_an_endpoint_that_dies_ends_the_run_with_one_line_and_keeps_what_it_has(experiment, fake):
    experiment.done("prepare")
    fake.control(delay=0.1)
    process = harness(experiment)
    while answered(experiment) < 4 and process.poll() is None:
        time.sleep(0.02)
    fake.stop()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith("Error: engine: the endpoint is gone")
    assert "Traceback" not in said
    kept = answered(experiment)
    assert kept >= 4
    assert experiment.query("SELECT count(*) FROM responses WHERE error IS NOT NULL") == [(0,)]
    again = Fake(fake.port)
    try:
        experiment.done("run")
        assert experiment.query(ANSWERED_ONCE) == [(18, 18)]
        assert sum(again.state()["completed"].values()) == 18 - kept
    finally:
        again.stop()


def test_no_endpoint_at_all_is_one_line(experiment, fake):
    experiment.done("prepare")
    fake.stop()
    assert "engine: nothing answers at" in experiment.rejected("run")


@pytest.mark.parametrize(("status", "said"), [("401", "a key"), ("404", "no such route or model")])
def test_what_is_wrong_with_every_request_ends_the_run(experiment, fake, status, said):
    experiment.done("prepare")
    fake.control(moods=[status])
    assert said in experiment.rejected("run")
    assert answered(experiment) == 0


def test_a_server_that_knows_no_stream_options_is_asked_without(experiment, fake):
    experiment.done("prepare")
    fake.control(moods=["strict"])
    experiment.done("run")
    assert experiment.query("SELECT count(*) FROM responses WHERE error IS NULL AND attempts = 1") == [(18,)]


def test_plain_completions_are_asked_with_a_cue_and_end_with_their_paragraph(experiment, fake):
    experiment.done("prepare")
    experiment.done("run")
    assert fake.state()["stop"] is None
    experiment.change(engine={"api": "completions"}, output={"exp_group_id": "plain"})
    experiment.database = experiment.folder / "runs" / "plain" / "kv_transition.sqlite"
    experiment.done("all")
    assert experiment.query("SELECT count(*) FROM responses WHERE error IS NULL AND text != ''") == [(18,)]
    assert fake.state()["stop"] == ["\n\n", "\nQuestion:"]


def test_one_server_may_be_told_the_budget_of_each_request(experiment, fake):
    experiment.change(engine={"endpoints": {}, "base_url": fake.url(1.0), "choose_kv": True})
    experiment.done("all")
    assert experiment.query(ANSWERED_ONCE) == [(18, 18)]


def test_a_second_harness_on_the_same_database_is_rejected_by_name(experiment, fake):
    experiment.done("prepare")
    fake.control(delay=0.2)
    process = harness(experiment)
    try:
        while answered(experiment) < 1 and process.poll() is None:
            time.sleep(0.02)
        said = experiment.rejected("score")
        assert f"process {process.pid}" in said
        assert "run -c" in said
    finally:
        process.kill()
        process.wait()
    experiment.done("run")
