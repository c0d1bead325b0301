"""`kvguard serve --replicas 2`: one address, two processes, either of which may be killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner

from kvguard.cli import main

KEY = "a-key-of-the-test"
HEADERS = {"Authorization": f"Bearer {KEY}"}
SHORT = {"model": "reference", "prompt": list(range(20, 80)), "temperature": 0, "max_tokens": 24}
SHORT["ignore_eos"] = True
LONG = {**SHORT, "max_tokens": 400}
DONE = "data: [DONE]"


class Front:
    """A server with two replicas, in processes of their own."""

    def __init__(self, process, lines, base):
        self.process, self.lines, self.base = process, lines, base
        self.url = f"{base}/v1/completions"

    def replicas(self):
        """The processes that have a model, the oldest first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return []

    def ask(self, timeout=120, **change):
        return httpx.post(self.url, json={**SHORT, **change}, headers=HEADERS, timeout=timeout)

    def stream(self, **change):
        """Return the lines of a stream, as far as they came."""
        body = {**SHORT, "stream": True, **change}
        with httpx.stream("POST", self.url, json=body, headers=HEADERS, timeout=120) as answer:
            return [line for line in answer.iter_lines() if line]

    def metric(self, name):
        """Return a metric by the number of its replica."""
        text = httpx.get(f"{self.base}/metrics", headers=HEADERS, timeout=60).text
        return {
            number: float(value)
            for labels, value in re.findall(rf"^{re.escape(name)}{{(.*)}} (\S+)$", text, re.MULTILINE)
            for number in re.findall(r'replica="(\d)"', labels)
        }

    def until(self, name, wanted):
        deadline = time.monotonic() + 60
        while (found := self.metric(name)) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)


@contextlib.contextmanager
def started():
    command = [sys.executable, "-c", "from kvguard.cli import main; main()", "serve", "--model", "reference"]
    command += ["--compressor", "snapkv", "--ratio", "0.5", "--replicas", "2", "--port", "0"]
    environment = {**os.environ, "KVGUARD_API_KEY": KEY}
    process = subprocess.Popen(
        [*command, "--max-requests-per-key", "20"], stderr=subprocess.PIPE, text=True, env=environment
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))
    reader.start()
    try:
        while not (port := re.search(r'"listening".*"port": (\d+)', "".join(lines))):
            assert process.poll() is None, lines
            time.sleep(0.05)
        yield Front(process, lines, f"http://127.0.0.1:{port[1]}")
    finally:
        process.kill()
        process.wait()
        reader.join(30)  # until the replicas, which have the same standard error, have ended, too
        assert not reader.is_alive()


@pytest.fixture(scope="module")
def front():
    with started() as found:
        yield found


def together(*tasks):
    """Run functions in threads; return these, and where their results will be."""
    found = [None] * len(tasks)

    def run(place, task):
        try:
            found[place] = task()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    return threads, found


def text_of(lines):
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line != DONE]
    return "".join(choice["text"] for chunk in told for choice in chunk.get("choices", ()))


def test_the_server_before_replicas_loads_nothing_that_runs_models():
    heavy = "{'torch', 'transformers', 'xgboost', 'pandas', 'kvguard.engine'}"
    code = f"import sys, kvguard.serve.front; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_both_replicas_are_used_and_come_to_the_same_text(front):
    before = front.metric("kvguard:generation_tokens_total")
    texts = {front.ask().json()["choices"][0]["text"] for _ in range(4)}
    assert len(texts) == 1
    after = front.metric("kvguard:generation_tokens_total")
    assert {number: after[number] - before[number] for number in after} == {"0": 48.0, "1": 48.0}
    lines = front.stream()
    assert lines[-1] == DONE
    assert text_of(lines) == texts.pop()


def test_a_request_goes_where_fewest_are_under_way(front):
    threads, found = together(*[lambda: front.ask(max_tokens=600)] * 6)
    front.until("kvguard:replica_requests", {"0": 3.0, "1": 3.0})
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in found] == [200] * 6


def test_a_stream_is_passed_on_as_it_comes(front):
    body = {**LONG, "max_tokens": 1500, "stream": True}
    with httpx.stream("POST", front.url, json=body, headers=HEADERS, timeout=120) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert sum(front.metric("kvguard:num_requests_running").values()) == 1  # it is far from its end
    front.until("kvguard:num_requests_running", {"0": 0.0, "1": 0.0})  # its client left
    front.until("kvguard:replica_requests", {"0": 0.0, "1": 0.0})


def test_a_client_that_leaves_before_its_answer_frees_its_row(front):
    with pytest.raises(httpx.ReadTimeout):
        front.ask(timeout=0.5, max_tokens=1500)
    front.until("kvguard:num_requests_running", {"0": 0.0, "1": 0.0})
    front.until("kvguard:replica_requests", {"0": 0.0, "1": 0.0})


def test_keys_limits_and_errors_are_as_of_one_server(front):
    assert httpx.get(f"{front.base}/health").json() == {"status": "ok"}
    for path in ("/metrics", "/v1/models", "/nothing"):
        rejected = httpx.get(front.base + path)
        assert rejected.status_code == 401
        assert rejected.json()["error"]["code"] == "invalid_api_key"
    assert "<html" in httpx.get(front.base).text
    named = {**HEADERS, "x-request-id": "mine-1"}
    for path, status in (("/v1/models/reference", 200), ("/v1/models/a%2Fb?c=%20d", 404), ("/nothing", 404)):
        answer = httpx.get(front.base + path, headers=named)
        assert answer.status_code == status
        assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert front.ask(n=99).json()["error"]["param"] == "n"
    assert httpx.get(front.url, headers=HEADERS).status_code == 405
    long = httpx.post(front.url, content=b"x" * (5 << 20), headers=HEADERS)
    assert long.json()["error"]["code"] == "body_too_large"
    threads, found = together(*[lambda: front.ask(max_tokens=250)] * 24)  # none ends before all came
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in found) == [200] * 20 + [429] * 4  # of both together


def test_a_replica_killed_under_load_loses_its_streams_only_and_comes_back(front):
    whole = front.ask(**LONG).json()["choices"][0]["text"]
    starts = front.metric("kvguard:replica_starts_total")
    streams, wholes = [lambda: front.stream(**LONG)] * 4, [lambda: front.ask(**LONG)] * 4
    threads, found = together(*streams, *wholes)
    front.until("kvguard:num_requests_running", {"0": 4.0, "1": 4.0})
    victim = front.replicas()[-1]
    victim.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert [answer.status_code for answer in found[4:]] == [200] * 4, "what was not begun is retried"
    assert {answer.json()["choices"][0]["text"] for answer in found[4:]} == {whole}
    ended = [lines for lines in found[:4] if lines[-1] == DONE]
    broken = [lines for lines in found[:4] if lines[-1] != DONE]
    assert {text_of(lines) for lines in ended} <= {whole}
    assert broken
    for lines in broken:
        error = json.loads(lines[-1].removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "replica_lost")
        assert whole.startswith(text_of(lines))
    front.until("kvguard:replica_up", {"0": 1.0, "1": 1.0})
    again = front.metric("kvguard:replica_starts_total")
    assert sum(again.values()) == sum(starts.values()) + 1
    assert len(front.replicas()) == 2
    assert {front.ask(**LONG).json()["choices"][0]["text"] for _ in range(2)} == {whole}


@pytest.mark.slow
def test_sigterm_to_one_replica_loses_nothing_and_it_comes_back(front):
    starts = front.metric("kvguard:replica_starts_total")
    threads, found = together(*[lambda: front.stream(**LONG)] * 4)
    front.until("kvguard:num_requests_running", {"0": 2.0, "1": 2.0})
    front.replicas()[0].send_signal(signal.SIGTERM)
    time.sleep(0.3)
    later = front.ask()
    for thread in threads:
        thread.join(120)
    assert later.status_code == 200
    assert [lines[-1] for lines in found] == [DONE] * 4
    front.until("kvguard:replica_up", {"0": 1.0, "1": 1.0})
    assert sum(front.metric("kvguard:replica_starts_total").values()) == sum(starts.values()) + 1


def test_sigterm_drains_and_ends_with_0_and_leaves_no_process(front):
    """The last of those that share a server: it ends it."""
    replicas = front.replicas()
    assert len(replicas) == 2
    threads, found = together(lambda: front.ask(**LONG), lambda: front.stream(**LONG))
    front.until("kvguard:num_requests_running", {"0": 1.0, "1": 1.0})
    front.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{front.base}/health")
    for thread in threads:
        thread.join(120)
    assert front.process.wait(60) == 0
    assert not any(replica.is_running() for replica in replicas)
    assert found[0].json()["usage"]["completion_tokens"] == LONG["max_tokens"]
    assert found[1][-1] == DONE
    begin = next(place for place, line in enumerate(front.lines) if '"listening"' in line)
    assert all(json.loads(line) for line in front.lines[begin:])


@pytest.mark.slow
def test_replicas_end_with_a_server_that_is_killed():
    with started() as front:
        replicas = front.replicas()
        assert len(replicas) == 2
        [folder] = {
            Path(connection.laddr).parent
            for replica in replicas
            for connection in replica.net_connections("unix")
            if "kvguard-" in connection.laddr
        }
        front.process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(replicas, timeout=30)
        assert not alive
        assert not folder.exists()


@pytest.mark.slow
def test_a_mistake_that_only_a_replica_can_see_is_one_line_before_anything_listens():
    typed = ["serve", "--model", "reference", "--compressor", "snapkw", "--ratio", "0.5", "--replicas", "2"]
    done = CliRunner().invoke(main, [*typed, "--port", "0"])
    assert done.exit_code == 1
    assert re.search(r"^Error: .*did you mean 'snapkv'\?", done.output, re.MULTILINE), done.output
