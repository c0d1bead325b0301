"""What a server does not do: it says so in OpenAI's shape, by name, and goes on."""

import contextlib
import json
import math
import socket
import threading
import time

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors_of_openai import is_error
from kvguard.serve import scheduler as scheduler_module

GREEDY = {"model": "reference", "temperature": 0}
CHAT = {**GREEDY, "messages": [{"role": "user", "content": "Two and two?"}], "max_tokens": 2}
TEXT = {**GREEDY, "prompt": "Two and two make what, and three and three? " * 3, "max_tokens": 2}


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("completions", {"echo": "yes"}, "echo"),
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"logprobs": -1}, "logprobs"),
        ("completions", {"logprobs": True}, "logprobs"),
        ("completions", {"top_logprobs": 2}, "top_logprobs"),
        ("completions", {"max_tokens": 0}, None),
        ("completions", {"max_tokens": 0, "echo": False}, None),
        ("completions", {"max_tokens": -1, "echo": True}, "max_tokens"),
        ("completions", {"best_of": 2}, "best_of"),
        ("completions", {"suffix": "x"}, "suffix"),
        ("completions", {"presence_penalty": 2.5}, "presence_penalty"),
        ("completions", {"frequency_penalty": math.nan}, "frequency_penalty"),
        ("completions", {"repetition_penalty": 0}, "repetition_penalty"),
        ("completions", {"repetition_penalty": math.inf}, "repetition_penalty"),
        ("completions", {"top_k": -2}, "top_k"),
        ("completions", {"top_k": 2.5}, "top_k"),
        ("completions", {"min_p": 1.5}, "min_p"),
        ("completions", {"logit_bias": {"5": 101}}, "logit_bias"),
        ("completions", {"logit_bias": {"5": math.nan}}, "logit_bias"),
        ("completions", {"logit_bias": {"five": 1}}, "logit_bias"),
        ("completions", {"logit_bias": {"-5": 1}}, "logit_bias"),
        ("completions", {"logit_bias": {"99999999": 1}}, "logit_bias"),
        ("completions", {"logit_bias": [1]}, "logit_bias"),
        ("completions", {"max_tokens": 10**9}, "max_tokens"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": [10**6]}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": 5}, "prompt"),
        ("completions", {"stop": ["a"] * 5}, "stop"),
        ("completions", {"stop": ["a"] * 10_000}, "stop"),
        ("completions", {"stop": ""}, "stop"),
        ("completions", {"n": 9}, "n"),
        ("completions", {"n": 0}, "n"),
        ("completions", {"temperature": -1}, "temperature"),
        ("completions", {"temperature": math.nan}, "temperature"),
        ("completions", {"temperature": math.inf}, "temperature"),
        ("completions", {"top_p": 0}, "top_p"),
        ("completions", {"seed": 1.5}, "seed"),
        ("completions", {"max_tokens": "5"}, "max_tokens"),
        ("completions", {"max_tokens": True}, "max_tokens"),
        ("completions", {"stream_options": {"include_usage": True}}, None),
        ("completions", {"bogus": 1}, "bogus"),
        ("completions", {"kv": {"ratio": 1.0}}, "kv"),
        ("completions", {"kv": {"point": "bold"}}, "kv"),
        ("completions", {"kv": {"point": "aggressive"}}, "kv"),  # this server was given no points
        ("completions", {"kv": {"guard": False, "point": "balanced"}}, "kv"),
        ("completions", {"kv": {"compressor": "nonesuch", "ratio": 0.5}}, "kv"),
        ("completions", {"kv": {"compressor": "knorm"}}, "kv"),
        ("completions", {"kv": {"action": "hold"}}, "kv"),
        ("completions", {"kv": {"guard": False, "action": "rollback"}}, "kv"),
        ("completions", {"kv": {"compressor": "none", "ratio": 0.5}}, "kv"),
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools"),
        ("chat/completions", {"response_format": {"type": "json_schema"}}, "response_format"),
        ("chat/completions", {"logprobs": 1}, "logprobs"),
        ("chat/completions", {"top_logprobs": 1}, None),
        ("chat/completions", {"logprobs": False, "top_logprobs": 1}, None),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"echo": True}, "echo"),
        ("chat/completions", {"max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ("chat/completions", {"max_completion_tokens": 3}, None),
    ],
)
def test_what_is_not_supported_is_rejected_by_name(server, path, change, param):
    body = {**(TEXT if path == "completions" else CHAT), **change}
    answer = httpx.post(f"{server.base}/v1/{path}", content=json.dumps(body), timeout=60)
    said = is_error(answer, 400)
    assert said["param"] == param
    assert said["type"] == "invalid_request_error"


def test_what_asks_for_nothing_is_taken(server):
    nothing = {"tools": None, "response_format": {"type": "text"}, "logprobs": False, "presence_penalty": 0.0}
    nothing |= {
        "parallel_tool_calls": True,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "user": "me",
        "stop": None,
    }
    parts = [
        {"type": "text", "text": "Two and two make what, "},
        {"type": "text", "text": "and three and three?"},
    ]
    past = {"role": "assistant", "content": "Yes?", "tool_calls": None}
    messages = [{"role": "user", "content": "Hello!"}, past, {"role": "user", "content": parts}]
    answer = httpx.post(
        f"{server.base}/v1/chat/completions", json={**CHAT, **nothing, "messages": messages}, timeout=60
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "\xff"}', b"[" * 100_000),
        *(b'{"n": ' + b"9" * 9999 + b"}", b'{"model": "\\ud800", "prompt": "x"}', b'{"\\ud800": 1}'),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_a_malformed_body_is_a_clear_4xx(server, path, body):
    answer = httpx.post(server.base + path, content=body, timeout=60)
    is_error(answer)
    assert 400 <= answer.status_code < 500


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["temperature", "top_p", "seed", "stop", "n", "stream_options", "logprobs", "echo", "tools", "kv"]
FIELDS += ["ignore_eos", "user", "prompt", "messages", "max_completion_tokens", "model", "logit_bias"]


@settings(max_examples=40)
@given(
    path=st.sampled_from(["completions", "chat/completions"]),
    change=st.dictionaries(st.sampled_from(FIELDS), ANY, min_size=1, max_size=2),
)
def test_no_body_makes_the_server_fail(server, path, change):
    body = {**(TEXT if path == "completions" else CHAT), **change}
    answer = httpx.post(f"{server.base}/v1/{path}", content=json.dumps(body), timeout=60)
    assert answer.status_code < 500, (change, answer.text)
    if answer.status_code != 200:
        is_error(answer)


def test_routes_that_are_not_there_are_errors_in_shape(server):
    is_error(httpx.get(f"{server.base}/v1/nothing"), 404)
    is_error(httpx.get(f"{server.base}/v1/completions"), 405)
    client = server.client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**CHAT, "model": "gpt-4"})
    assert caught.value.code == "model_not_found"


def test_a_huge_body_is_rejected_and_the_server_goes_on(serving):
    small = serving(limits={"body": 2000})
    is_error(httpx.post(f"{small.base}/v1/completions", json={**TEXT, "prompt": "x" * 3000}), 413)

    def pieces():
        yield from [b"x" * 500] * 20

    is_error(httpx.post(f"{small.base}/v1/completions", content=pieces()), 413)  # without a Content-Length
    assert httpx.post(f"{small.base}/v1/completions", json=TEXT, timeout=60).status_code == 200


def test_half_a_request_does_no_harm(server):
    for half in (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"GARBAGE\r\n\r\n",
        b"PO",
    ):
        with socket.create_connection(("127.0.0.1", int(server.base.rpartition(":")[2]))) as client:
            client.sendall(half)
    assert httpx.post(f"{server.base}/v1/completions", json=TEXT, timeout=60).status_code == 200


def test_a_key_is_asked_for_everywhere_but_at_health(serving):
    locked = serving(keys=["first-key", "second-key"])
    assert httpx.get(f"{locked.base}/health").status_code == 200
    for path in ("/v1/models", "/metrics", "/version", "/tokenizer_info", "/nothing", "/v1/completions"):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-key"}):
            said = is_error(httpx.get(locked.base + path, headers=header), 401)
            assert said["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        locked.client("wrong").models.list()
    for key in ("first-key", "second-key"):
        assert locked.client(key).models.list().data[0].id == "reference"


def test_a_full_queue_is_429_and_what_waits_is_served(serving):
    narrow = serving(limits={"rows": 1, "queue": 2})
    body = {**TEXT, "max_tokens": 60, "ignore_eos": True}
    answers = []

    def ask():
        answers.append(httpx.post(f"{narrow.base}/v1/completions", json=body, timeout=120))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    busy = [answer for answer in answers if answer.status_code == 429]
    assert busy
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in busy)
    assert {is_error(answer, 429)["type"] for answer in busy} == {"rate_limit_error"}
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(served) + len(busy) == 6
    assert all(answer.json()["usage"]["completion_tokens"] == 60 for answer in served)


def test_one_key_has_so_many_requests_under_way_and_others_have_theirs(serving):
    shared = serving(keys=["mine", "yours"], limits={"per_key": 2})
    body = {**TEXT, "max_tokens": 400, "ignore_eos": True, "stream": True}
    url = f"{shared.base}/v1/completions"

    def headers(key):
        return {"Authorization": f"Bearer {key}"}

    with contextlib.ExitStack() as stack:
        for _ in range(2):
            under_way = stack.enter_context(
                httpx.stream("POST", url, json=body, headers=headers("mine"), timeout=60)
            )
            assert under_way.status_code == 200
        refused = httpx.post(url, json=TEXT, headers=headers("mine"), timeout=60)
        assert is_error(refused, 429)["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.post(url, json=TEXT, headers=headers("yours"), timeout=60).status_code == 200
        assert httpx.get(f"{shared.base}/metrics", headers=headers("mine")).status_code == 200
    assert shared.idle()  # their clients have left
    for change in (
        {},
        {"n": 99},
        {"stream": True},
        {},
    ):  # whatever becomes of them they are no more under way
        httpx.post(url, json={**TEXT, **change}, headers=headers("mine"), timeout=60)
    for _ in range(3):
        assert httpx.post(url, json=TEXT, headers=headers("mine"), timeout=60).status_code == 200


def test_a_prompt_and_its_text_fit_the_window_together(serving):
    small = serving(window=64)
    for n_prompt, most, status in ((60, 4, 200), (60, 5, 400), (63, 1, 200), (64, 1, 400), (90, 1, 400)):
        body = {"model": "reference", "prompt": list(range(20, 20 + n_prompt)), "max_tokens": most}
        answer = httpx.post(f"{small.base}/v1/completions", json=body, timeout=60)
        assert answer.status_code == status, answer.text
        if status == 400:
            assert is_error(answer)["code"] == "context_length_exceeded"


def test_a_request_that_takes_too_long_is_504(serving):
    hasty = serving(limits={"timeout": 0.3})
    is_error(
        httpx.post(f"{hasty.base}/v1/completions", json={**TEXT, "max_tokens": 900, "ignore_eos": True}), 504
    )
    assert hasty.idle()
    assert hasty.scheduler.room.taken == 0


def test_a_request_that_waits_too_long_is_504_too(serving):
    hasty, answers = serving(limits={"timeout": 0.5, "rows": 1}), []
    body = {**TEXT, "max_tokens": 900, "ignore_eos": True}

    def ask():
        answers.append(httpx.post(f"{hasty.base}/v1/completions", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {is_error(answer, 504)["code"] for answer in answers} == {"timeout"}
    assert hasty.idle()
    assert httpx.post(f"{hasty.base}/v1/completions", json=TEXT, timeout=60).status_code == 200


def test_requests_choose_nothing_unless_the_server_lets_them(serving):
    strict = serving(limits={"choosing": False})
    said = is_error(httpx.post(f"{strict.base}/v1/completions", json={**TEXT, "kv": {"ratio": 0.1}}), 400)
    assert said["param"] == "kv"


def test_a_step_that_fails_fails_its_requests_and_no_others(server, monkeypatch):
    def broken(*_):
        raise RuntimeError("a fault of the test")

    monkeypatch.setattr(server.scheduler._batch, "draw", broken)
    is_error(httpx.post(f"{server.base}/v1/completions", json=TEXT, timeout=60), 500)
    assert httpx.post(f"{server.base}/v1/completions", json=TEXT, timeout=60).status_code == 200
    monkeypatch.setattr(scheduler_module, "Prefilling", broken)
    is_error(httpx.post(f"{server.base}/v1/completions", json=TEXT, timeout=60), 500)
    monkeypatch.undo()
    assert httpx.post(f"{server.base}/v1/completions", json=TEXT, timeout=60).status_code == 200


def test_logits_that_are_nan_fail_their_request_and_no_other(server):
    scheduler, answers = server.scheduler, {}
    tell = scheduler._tell

    def poisoned(step):
        tell(step)
        for slot, row in enumerate(scheduler._batch.row.tolist()):
            if len(scheduler._rows[row].ticket.ask.ids) == 77:
                for keys in scheduler._batch.cache.read(0, slot):
                    keys.fill_(math.nan)

    def ask(name, n):
        body = {**TEXT, "prompt": list(range(20, 20 + n)), "max_tokens": 12, "ignore_eos": True}
        answers[name] = httpx.post(f"{server.base}/v1/completions", json=body, timeout=60)

    scheduler._tell = poisoned
    try:
        threads = [threading.Thread(target=ask, args=pair) for pair in [("sound", 60), ("broken", 77)]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        del scheduler._tell
    assert is_error(answers["broken"], 500)["code"] == "invalid_logits"
    assert answers["sound"].json()["usage"]["completion_tokens"] == 12
