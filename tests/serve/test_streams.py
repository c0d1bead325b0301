"""Streams: the pieces are the text, what was sent stays, and a client that leaves costs nothing."""

import json
import socket
import time

import httpx
import pytest
from kvpress import SnapKVPress

NEW = 40
GREEDY = {"model": "reference", "temperature": 0}


def message(prompt):
    return [{"role": "user", "content": prompt}]


def pieces(stream):
    chunks = list(stream)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


def test_the_pieces_of_a_chat_are_its_text(server, prompts):
    client = server.client()
    how = {**GREEDY, "messages": message(prompts[1]), "max_tokens": NEW}
    whole = client.chat.completions.create(**how)
    text, chunks = pieces(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **how)
    )
    assert text == whole.choices[0].message.content
    *told, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in told)
    assert told[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert told[-1].model_extra["kvguard"] == whole.model_extra["kvguard"]
    assert len(told) > 10
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_pieces_of_completions_are_their_texts(server, prompts):
    client = server.client()
    how = {**GREEDY, "prompt": prompts[:2], "max_tokens": 16, "stop": ["\n", "7"]}
    whole = client.completions.create(**how)
    texts = ["", ""]
    for chunk in client.completions.create(
        stream=True, stream_options={"continuous_usage_stats": True}, **how
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        used = chunk.usage
    assert texts == [choice.text for choice in whole.choices]
    assert used == whole.usage


def test_a_stream_ends_as_openai_ends_it(server, prompts):
    body = {**GREEDY, "messages": message(prompts[0]), "max_tokens": 4, "stream": True}
    answer = httpx.post(f"{server.base}/v1/chat/completions", json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(
        json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-2]
    )


def test_a_stop_string_ends_a_text_and_is_no_part_of_it(server, prompts):
    client = server.client()
    how = {**GREEDY, "messages": message(prompts[0]), "max_tokens": NEW}
    free = client.chat.completions.create(**how).choices[0].message.content
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    ended = client.chat.completions.create(stop=stop, **how).choices[0]
    assert ended.message.content == free[: free.index(stop)]
    assert ended.finish_reason == "stop"
    assert pieces(client.chat.completions.create(stop=[stop], stream=True, **how))[0] == ended.message.content


@pytest.mark.parametrize(
    ("action", "hold_back"), [("restore", 0), ("rollback", 4), ("rollback", NEW), ("rollback", 0)]
)
def test_what_was_sent_is_never_taken_back(serving, offline, guards, prompts, action, hold_back):
    late = serving(guard=guards["late"], limits={"hold_back": hold_back})
    how = {
        **GREEDY,
        "messages": message(prompts[0]),
        "max_tokens": NEW,
        "extra_body": {"kv": {"action": action}},
    }
    text, chunks = pieces(late.client().chat.completions.create(stream=True, **how))
    told = chunks[-1].model_extra["kvguard"]
    withheld = told["rewinds_withheld"]
    [wanted] = guards["late"].generate(
        *offline,
        prompts[:1],
        press=SnapKVPress(0.5, window_size=16),
        action="restore" if withheld else action,
        max_new_tokens=NEW,
    )
    assert wanted.actions
    assert text == wanted.text  # one coherent text: that of the rewind, or of the restore in its place
    assert withheld == (1 if hold_back == 0 and action == "rollback" else 0)
    assert told["restores"] + told["rewinds"] == len(wanted.actions)


def test_a_client_that_leaves_frees_its_row(server, prompts):
    steps = []
    scheduler = server.scheduler
    turn = scheduler._turn
    scheduler._turn = lambda: (steps.append(time.monotonic()), turn())[1]
    try:
        for stream in (True, False):
            body = json.dumps(
                {
                    **GREEDY,
                    "messages": message(prompts[0]),
                    "max_tokens": 800,
                    "ignore_eos": True,
                    "stream": stream,
                }
            )
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client = socket.create_connection(("127.0.0.1", int(server.base.rpartition(":")[2])))
            client.sendall((head + body).encode())
            while not scheduler._rows:
                time.sleep(0.005)
            time.sleep(0.1)
            [row] = scheduler._rows.values()
            client.close()
            while not row.ticket.cancelled:
                time.sleep(0.0005)
            noticed = time.monotonic()
            assert server.idle()
            assert sum(moment > noticed for moment in steps) <= 2
            assert scheduler.room.taken == 0
    finally:
        del scheduler._turn
    answer = server.client().chat.completions.create(messages=message(prompts[0]), max_tokens=4, **GREEDY)
    assert answer.choices[0].finish_reason == "length"
