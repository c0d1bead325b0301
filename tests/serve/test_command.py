"""`kvguard serve` as a process: it starts, says what is wrong, drains and ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from click.testing import CliRunner

from kvguard.cli import main

BODY = {
    "model": "reference",
    "messages": [
        {"role": "user", "content": "Tell me of three apples, of two pears, of seven figs and of one plum."}
    ],
}
BODY |= {"temperature": 0, "max_tokens": 200, "ignore_eos": True}
KEY = "a-key-of-the-test"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "no API key is asked for"),
        (["--host", "example.org"], "no API key is asked for"),
        (["--host", "::"], "no API key is asked for"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "holds no API key"),
        (["--api-key-file", "/nonexistent"], "cannot be read"),
        (["--compressor", "snapkv"], "with --ratio"),
        (["--action", "restore"], "go with --guard"),
        (["--kv-memory", "lots"], "is no size"),
        (["--compressor", "snapkw", "--ratio", "0.5"], "did you mean 'snapkv'"),
        (["--guard", "/nonexistent"], "holds no guard"),
    ],
)
def test_a_mistake_is_one_line_before_anything_listens(arguments, said, monkeypatch):
    monkeypatch.delenv("KVGUARD_API_KEY", raising=False)
    done = CliRunner().invoke(main, ["serve", "--model", "reference", *arguments])
    assert done.exit_code in (1, 2)
    assert said in done.output


@pytest.mark.parametrize(
    ("typed", "size"), [("2GiB", 2**31), ("500MB", 5 * 10**8), ("0.5 kib", 512), ("77", 77)]
)
def test_sizes_are_read_with_their_units(typed, size):
    from kvguard.cli.serve import Bytes

    assert Bytes().convert(typed, None, None) == size


def test_help_teaches_by_examples():
    done = CliRunner().invoke(main, ["serve", "--help"])
    assert done.exit_code == 0
    for taught in (
        "kvguard serve --model reference",
        "curl http://127.0.0.1:8000",
        "from openai import OpenAI",
    ):
        assert taught in done.output


@pytest.fixture
def process():
    command = [sys.executable, "-c", "from kvguard.cli import main; main()", "serve", "--model", "reference"]
    command += ["--compressor", "snapkv", "--ratio", "0.75", "--guard", "models/reference", "--port", "0"]
    environment = {**os.environ, "KVGUARD_API_KEY": KEY}
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines = []

    def read():
        lines.extend(iter(started.stderr.readline, ""))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while not (port := re.search(r'"listening".*"port": (\d+)', "".join(lines))):
            assert started.poll() is None, lines
            time.sleep(0.05)
        base = f"http://127.0.0.1:{port[1]}"
        yield started, base, lines
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()
        reader.join()


def ask(base, answers, **change):
    headers = {"Authorization": f"Bearer {KEY}", "x-request-id": "mine-1"}
    try:
        answers.append(
            httpx.post(f"{base}/v1/chat/completions", json={**BODY, **change}, headers=headers, timeout=600)
        )
    except httpx.HTTPError as error:
        answers.append(error)


def until_running(base, threads):
    """Wait until the texts of some clients are under way, however slow the machine."""
    headers, wanted = {"Authorization": f"Bearer {KEY}"}, f"}} {len(threads)}.0"
    line = ""
    while not line.endswith(wanted):
        assert all(thread.is_alive() for thread in threads)
        time.sleep(0.05)
        text = httpx.get(f"{base}/metrics", headers=headers, timeout=60).text
        [line] = re.findall(r"^kvguard:num_requests_running.*$", text, re.M)


def test_the_first_sigterm_drains_and_ends_with_0(process):
    server, base, lines = process
    answers = []
    threads = [threading.Thread(target=ask, args=(base, answers)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until_running(base, threads)
    server.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base}/health")
    for thread in threads:
        thread.join()
    assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [200, 200]
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine-1"}
    assert answers[0].json()["kvguard"]["compressor"] == "snapkv"
    assert server.wait(30) == 0
    begin = next(place for place, line in enumerate(lines) if '"listening"' in line)
    told = [json.loads(line) for line in lines[begin:]]  # every line is JSON
    asked = [line for line in told if line["event"] == "request" and line["request_id"] == "mine-1"]
    assert [line["status"] for line in asked] == [200, 200]
    assert not any("three apples" in line for line in lines)


def test_the_second_signal_ends_at_once(process):
    server, base, _ = process
    answers = []
    thread = threading.Thread(target=ask, args=(base, answers), kwargs={"max_tokens": 1500})
    thread.start()
    until_running(base, [thread])
    server.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.poll() is None
    server.send_signal(signal.SIGTERM)
    assert server.wait(10) == 128 + signal.SIGTERM
    thread.join()
    assert isinstance(answers[0], httpx.HTTPError)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_its_threads_soon_sleep_while_they_wait_unless_they_are_told_not_to(monkeypatch, before, after):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    CliRunner().invoke(main, ["serve", "--model", "path:/nowhere"])
    assert {name: os.environ[name] for name in names if name in os.environ} == after
