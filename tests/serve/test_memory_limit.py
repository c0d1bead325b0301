"""The memory limit: rows count compressed, and one taken back for a restore comes to the same text."""

import threading

import httpx
import pytest

from errors_of_openai import is_error

GREEDY = {"model": "reference", "temperature": 0}


@pytest.fixture
def tight(serving, guards):
    """A server with room for six compressed texts, or for three restored ones; and what it came to hold."""

    def start(action, **limits):
        bytes_per_entry = serving(limits={"rows": 1}).scheduler.room.bytes_per_entry
        limit = 3.5 * (200 + 20)
        bounds = {"kv_bytes": int(limit * bytes_per_entry), **limits}
        found = serving(limits=bounds, guard=guards["late"], action=action)
        found.seen, turn = [], found.scheduler._turn

        def watched():
            turn()
            rows, batch = len(found.scheduler._rows), found.scheduler._batch
            found.seen.append((rows, float(batch.kv_tokens().sum()) if rows else 0.0))

        found.scheduler._turn, found.entries = watched, limit
        return found

    return start


IDS = list(range(20, 220))
SEVEN = {**GREEDY, "prompt": [IDS] * 7, "max_tokens": 20, "ignore_eos": True}


@pytest.mark.parametrize("action", ["none", "restore"])
def test_the_memory_limit_holds_and_rows_are_counted_compressed(tight, action):
    server = tight(action)
    answer = httpx.post(f"{server.base}/v1/completions", json=SEVEN, timeout=120).json()
    assert len({choice["text"] for choice in answer["choices"]}) == 1
    assert max(rows for rows, _ in server.seen) == 6
    assert max(held for _, held in server.seen) <= server.entries
    told = [choice["kvguard"] for choice in answer["choices"]]
    assert {each["restores"] for each in told} == {int(action == "restore")}
    assert (sum(each["preempted"] for each in told) > 0) == (action == "restore")
    assert told[0]["preempted"] == 0  # the oldest never is
    assert server.idle()
    assert server.scheduler.room.taken == 0
    longer = {**SEVEN, "prompt": IDS * 8}
    said = is_error(httpx.post(f"{server.base}/v1/completions", json=longer), 400)
    assert said["code"] == "context_length_exceeded"


@pytest.mark.parametrize("action", ["restore", "rollback"])
def test_a_stream_that_was_preempted_is_the_one_that_was_not(tight, action):
    server = tight(action, hold_back=2)
    client, texts, events, preempted = server.client(), {}, {}, []

    def ask(number):
        chunks = client.completions.create(
            model="reference",
            prompt=IDS,
            max_tokens=20,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
            stream_options={"kvguard": True},
        )
        told = [chunk.choices[0] for chunk in chunks]
        texts[number] = "".join(choice.text for choice in told)
        events[number] = [choice.model_extra["kvguard"].get("events") for choice in told[:-1]]
        preempted.append(told[-1].model_extra["kvguard"]["preempted"])

    ask("alone")
    threads = [threading.Thread(target=ask, args=[number]) for number in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 8
    assert len(set(texts.values())) == 1
    assert len(events["alone"]) == 20
    assert all(each == events["alone"] for each in events.values())  # each token told once, as it was alone
    assert sum(preempted) > 0
    assert "kvguard:num_preemptions_total" in httpx.get(f"{server.base}/metrics").text


def test_a_preempted_text_that_comes_to_other_tokens_says_so(tight):
    server, answers = tight("restore"), []
    taken, scheduler = server.scheduler._take_back, server.scheduler

    def forged(row):
        taken(row)
        row.ticket.sent = tuple(token + 1 for token in row.ticket.sent)

    scheduler._take_back = forged

    def ask():
        body = {**SEVEN, "prompt": IDS, "stream": True}
        answers.append(httpx.post(f"{server.base}/v1/completions", json=body, timeout=60).text)

    threads = [threading.Thread(target=ask) for _ in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [answer for answer in answers if "came to other tokens" in answer]
    assert failed
    assert len(failed) < 7
    assert all("[DONE]" in answer for answer in answers if answer not in failed)
