"""Whatever comes over the wire is answered by a clear 4xx or a clean close, and the server goes on."""

import json
import math
import socket
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.serve import gate, punctual

TEXT = {"model": "reference", "prompt": "Two and two make what? " * 4, "max_tokens": 2, "temperature": 0}
POST = "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


def goes_on(server):
    return httpx.post(f"{server.base}/v1/completions", json=TEXT, timeout=60).status_code == 200


def connected(server):
    return socket.create_connection(("127.0.0.1", int(server.base.rpartition(":")[2])), timeout=20)


def all_of(client):
    """What the server says until it closes."""
    said = b""
    while piece := client.recv(1 << 16):
        said += piece
    return said


def said_to(server, raw, then=socket.SHUT_WR):
    """Send bytes, end the sending, and return all that the server says."""
    with connected(server) as client:
        try:
            client.sendall(raw)
            client.shutdown(then)
            return all_of(client)
        except OSError:  # it has closed already
            return b""


def is_clear(said):
    """Tell whether it is nothing, or answers of which none is our fault."""
    statuses = [int(part.split()[0]) for part in said.split(b"HTTP/1.1 ")[1:]]
    return not any(status >= 500 for status in statuses) and (bool(statuses) or not said)


NUMBERS = ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "n"]
NUMBERS += ["repetition_penalty", "max_tokens", "logprobs"]


@pytest.mark.parametrize("literal", ["-1e9", "NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400])
@pytest.mark.parametrize("field", NUMBERS)
def test_numbers_that_are_none_are_rejected_by_name(server, field, literal):
    body = json.dumps({**TEXT, field: "HERE"}).replace('"HERE"', literal)
    answer = httpx.post(f"{server.base}/v1/completions", content=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize("value", ["5", [1], {"a": 1}, True, 1.5])
@pytest.mark.parametrize("field", ["n", "max_tokens", "logprobs", "top_k", "seed"])
def test_wrong_types_are_rejected_by_name(server, field, value):
    answer = httpx.post(f"{server.base}/v1/completions", json={**TEXT, field: value}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 5000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/models/%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        POST.encode() + b"Content-Length: -5\r\n\r\n{}",
        POST.encode() + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        POST.encode() + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}   ",
        POST.encode() + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nnothing\r\n",
        POST.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
        POST.encode() + b"Content-Length: 100\r\n\r\n{",
        POST.encode() + b"Content-Length: 4\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00",
        b"GET /v1/completions HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGARBAGE \x00\xff\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
    ],
    ids=lambda raw: repr(raw[:60]),
)
def test_what_is_no_http_does_no_harm(server, raw):
    assert is_clear(said_to(server, raw))
    assert goes_on(server)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"\r\n", b"GET / HTTP/1.1\r\n", POST.encode()])))
@settings(max_examples=40, deadline=None)
def test_any_bytes_do_no_harm(server, pieces):
    assert is_clear(said_to(server, b"".join(pieces)))


def test_a_request_whose_sender_has_finished_sending_is_answered_or_closed(server):
    body = json.dumps(TEXT).encode()
    head = f"{POST}Content-Length: {len(body)}\r\n\r\n".encode()
    said = said_to(server, head + body)
    assert said == b"" or said.startswith(b"HTTP/1.1 200")
    assert goes_on(server)
    assert server.idle()


def test_a_body_that_comes_too_slowly_is_408(server, monkeypatch):
    monkeypatch.setattr(gate, "_SLOW", 0.5)
    with connected(server) as client:
        client.sendall(f"{POST}Content-Length: 1000\r\n\r\n{{".encode())
        begun = time.monotonic()
        said = all_of(client)
    assert said.startswith(b"HTTP/1.1 408")
    assert b'"message"' in said
    assert time.monotonic() - begun < 15
    assert goes_on(server)


@pytest.mark.parametrize(
    ("first", "drop"), [(b"", b""), (b"", b"G"), (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"G")]
)  # of a connection that is silent after an answer timeout_keep_alive takes care
def test_a_head_that_comes_too_slowly_is_closed(server, monkeypatch, first, drop):
    monkeypatch.setattr(punctual, "SLOW", 0.5)
    with connected(server) as client:
        client.sendall(first)
        while first and b"ok" not in client.recv(1 << 16):
            pass
        begun = time.monotonic()
        try:
            while time.monotonic() - begun < 15:
                client.sendall(drop)
                client.settimeout(0.1)
                try:
                    if client.recv(1 << 16) == b"":
                        break
                except TimeoutError:
                    pass
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert time.monotonic() - begun < 10
    assert goes_on(server)


def test_a_slow_but_steady_head_and_a_long_answer_are_served(server, monkeypatch):
    monkeypatch.setattr(punctual, "SLOW", 0.6)
    body = json.dumps({**TEXT, "max_tokens": 150, "ignore_eos": True}).encode()
    with connected(server) as client:
        for piece in (
            POST.encode(),
            f"Content-Length: {len(body)}\r\n".encode(),
            b"Connection: close\r\n\r\n",
        ):
            client.sendall(piece)
            time.sleep(0.1)
        client.sendall(body)
        assert all_of(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "NONSENSE"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/health", "/nothing/at/all"])
def test_other_methods_are_405_and_other_paths_404(server, method, path):
    answer = httpx.request(method, server.base + path, timeout=60)
    assert answer.status_code in (404, 405)
    if method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_deep_and_wide_values_are_rejected(server):
    deep = math.floor(1e5) * "["
    for name in ("prompt", "stop", "logit_bias", "kv", "stream_options", "user"):
        for value in (deep + deep.replace("[", "]"), json.dumps({str(n): [n] for n in range(20_000)})):
            body = json.dumps({**TEXT, name: "HERE"}).replace('"HERE"', value)
            answer = httpx.post(f"{server.base}/v1/completions", content=body, timeout=60)
            assert answer.status_code == 400, (name, answer.text[:200])
    assert goes_on(server)
