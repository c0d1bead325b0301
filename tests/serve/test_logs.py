"""The log: lines of JSON that hold no text unless asked, and that a full disk drops without harm."""

import errno
import json
import logging
import os
import time

import httpx
import pytest

from kvguard.serve import logs

GREEDY = {"model": "reference", "temperature": 0, "max_tokens": 8}
WORD = "Tom has 3 marmalades and buys 4 more. How many marmalades does he have now, all in all?"


@pytest.fixture
def written(tmp_path):
    """A handler of its own on a file, and what stands in that."""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    handler = logs.Lines(descriptor)
    log = logging.getLogger("kvguard.serve")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    log.removeHandler(handler)
    log.setLevel(before)
    os.close(descriptor)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("verbatim", [False, True])
def test_every_text_has_a_line_and_its_words_only_where_asked(serving, written, verbatim, stream):
    server = serving(log_text=verbatim)
    body = {**GREEDY, "prompt": [WORD, WORD], "stream": stream}
    answer = httpx.post(
        f"{server.base}/v1/completions", json=body, headers={"x-request-id": "mine"}, timeout=60
    )
    assert answer.status_code == 200
    while not any(line["event"] == "request" for line in written()):  # once the answer has been sent
        time.sleep(0.01)
    lines = written()
    texts = [line for line in lines if line["event"] == "text"]
    [request] = [line for line in lines if line["event"] == "request" and line["request_id"] == "mine"]
    assert (request["status"], request["method"], request["path"]) == (200, "POST", "/v1/completions")
    assert sorted(line["index"] for line in texts) == [0, 1]
    for line in texts:
        assert line["request_id"] == "mine"
        assert (line["tokens"], line["stop_reason"], line["compressor"]) == (8, "length", "snapkv")
        assert {"time", "level", "saved", "alarms", "restores"} <= set(line)
        assert (line.get("prompt") == WORD) == ("answer" in line) == verbatim
    assert ("marmalade" in str(lines)) == verbatim
    if verbatim and not stream:
        assert texts[0]["answer"] == answer.json()["choices"][0]["text"]


def test_a_traceback_is_one_line(written):
    try:
        raise ValueError("a fault\nof the test")
    except ValueError:
        logging.getLogger("kvguard.serve.scheduler").exception("a step of %d rows failed", 3)
    [line] = written()
    assert line["event"] == "a step of 3 rows failed"
    assert line["level"] == "error"
    assert "ValueError" in line["exception"]


def test_lines_that_cannot_be_written_are_dropped_and_counted_once_they_can(tmp_path, monkeypatch):
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    handler, write, room = logs.Lines(descriptor), os.write, [10]

    def scarce(target, data):
        if target == descriptor:
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[: room[0]]
            room[0] -= len(data)
        return write(target, data)

    monkeypatch.setattr(os, "write", scarce)
    for number in range(5):
        if number == 3:
            room[0] = 10**6
        handler.handle(logging.makeLogRecord({"msg": "test", "levelname": "INFO", "fields": {"n": number}}))
    torn, *whole = path.read_text().splitlines()
    assert torn.startswith('{"time"')
    assert len(torn) == 10
    told = [(line["event"], line.get("n"), line.get("count")) for line in map(json.loads, whole)]
    assert told == [("lines dropped", None, 3), ("test", 3, None), ("test", 4, None)]
    os.close(descriptor)
