"""What a stream tells of each token: as the library has it, once for each, with all that the guard did."""

import httpx
import numpy as np
import pytest
from kvpress import SnapKVPress
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvguard.guard.actions import Event
from kvguard.guard.controller import State
from kvguard.serve.histogram import ArrayHistogram
from kvguard.serve.trail import Trail

NEW = 40
GREEDY = {"model": "reference", "temperature": 0, "max_tokens": NEW}
TRACED = {"stream": True, "stream_options": {"kvguard": True, "continuous_usage_stats": True}}


def traced(running, prompt, **change):
    """Return a stream's chunks that have a token, and its last chunk."""
    messages = [{"role": "user", "content": prompt}]
    stream = running.client().chat.completions.create(**GREEDY, **TRACED, messages=messages, **change)
    chunks = [chunk for chunk in stream if chunk.choices]
    return [c for c in chunks[:-1] if "kvguard" in c.model_extra], chunks[-1]


@pytest.mark.parametrize(
    ("action", "hold_back"),
    [("none", 0), ("restore", 0), ("rollback", 4), ("rollback", NEW), ("restart", NEW)],
)
def test_each_token_is_told_as_the_library_has_it(serving, offline, guards, prompts, action, hold_back):
    late = serving(guard=guards["late"], limits={"hold_back": hold_back})
    chunks, last = traced(late, prompts[0], extra_body={"kv": {"action": action}})
    [wanted] = guards["late"].generate(
        *offline, prompts[:1], press=SnapKVPress(0.5, window_size=16), action=action, max_new_tokens=NEW
    )
    seen = [chunk.model_extra["kvguard"] for chunk in chunks]
    assert len(seen) == len(wanted.token_ids) == last.usage.completion_tokens
    assert [chunk.usage.completion_tokens for chunk in chunks] == list(range(1, len(seen) + 1))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == wanted.text
    np.testing.assert_allclose([token["hazard"] for token in seen], wanted.hazard, atol=1e-4)
    np.testing.assert_allclose([token["kv_tokens"] for token in seen], wanted.kv_tokens, atol=0.01)
    assert [token["state"] for token in seen] == [State(state).name.lower() for state in wanted.states]
    assert all(chunk.choices[0].model_extra["kvguard"] == chunk.model_extra["kvguard"] for chunk in chunks)
    events = [(at, event) for at, token in enumerate(seen) for event in token.get("events", [])]
    acted = [event for _, event in events if event["what"] != "alarm"]
    assert [Event(**event) for event in acted] == list(wanted.actions)
    assert all(
        at == event["t"] if event["kept"] > event["t"] else at == event["kept"] for at, event in events
    )
    told = last.model_extra["kvguard"]
    assert len(events) == told["alarms"] > 0
    assert len(acted) == told["restores"] + told["rewinds"]


def test_what_is_not_watched_is_null_and_the_entries_are_told_all_the_same(serving, prompts):
    for running, kv in ((serving(), {"guard": False}), (serving(guard=None, action="none"), {})):
        chunks, _ = traced(running, prompts[0], extra_body={"kv": kv})
        seen = [chunk.model_extra["kvguard"] for chunk in chunks]
        assert all(set(token) == {"hazard", "state", "kv_tokens"} for token in seen)
        assert {(token["hazard"], token["state"]) for token in seen} == {(None, None)}
        assert np.diff([token["kv_tokens"] for token in seen]).tolist() == [1] * (len(seen) - 1)


def test_the_text_of_tokens_that_are_traced_is_that_of_those_that_are_not(server, prompts):
    client = server.client()
    how = {
        "model": "reference",
        "prompt": prompts[:2],
        "max_tokens": 16,
        "temperature": 0,
        "stop": ["\n", "7"],
    }
    whole = client.completions.create(**how)
    texts, tokens = ["", ""], [0, 0]
    for chunk in client.completions.create(stream=True, stream_options={"kvguard": True}, **how):
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        tokens[choice.index] += "hazard" in choice.model_extra.get("kvguard", {})
    assert texts == [choice.text for choice in whole.choices]
    assert sum(tokens) == whole.usage.completion_tokens


def test_a_token_that_is_traced_has_its_own_log_probabilities(server, prompts):
    client = server.client()
    how = {
        "model": "reference",
        "prompt": prompts[0],
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    whole = client.completions.create(**how).choices[0]
    chunks = list(client.completions.create(stream=True, stream_options={"kvguard": True}, **how))
    told = [chunk.choices[0] for chunk in chunks if "hazard" in chunk.model_extra["kvguard"]]
    counts = [len(choice.logprobs.tokens) for choice in told]
    n_prompt = len(whole.logprobs.tokens) - 6
    assert counts == [n_prompt + 1, 1, 1, 1, 1, 1]
    assert [token for choice in told for token in choice.logprobs.tokens] == whole.logprobs.tokens
    assert "".join(choice.text for choice in told) == whole.text


def test_a_prompt_that_is_only_asked_about_has_no_tokens_to_be_told_of(server, prompts):
    how = {"model": "reference", "prompt": prompts[0], "max_tokens": 0, "logprobs": 1, "echo": True}
    stream = server.client().completions.create(stream=True, stream_options={"kvguard": True}, **how)
    chunks = list(stream)
    assert not any("hazard" in chunk.model_extra.get("kvguard", {}) for chunk in chunks)
    assert "".join(chunk.choices[0].text for chunk in chunks) == prompts[0]


def test_what_is_not_asked_for_is_not_told(server, prompts):
    messages = [{"role": "user", "content": prompts[0]}]
    body = {**GREEDY, "messages": messages, "stream": True, "stream_options": {"kvguard": False}}
    answer = httpx.post(f"{server.base}/v1/chat/completions", json=body, timeout=60).text
    assert answer.count('"hazard_max"') == 2  # of the last chunk and its choice
    assert '"hazard":' not in answer


def test_a_rewind_is_told_with_the_next_token_and_loses_no_event():
    trail = Trail(guarded=True)
    for _ in range(4):
        trail.add(0.1, State.NORMAL, 5.0, 0, None)
    trail.add(0.9, State.SAFE, 5.0, 1, Event(4, "rollback", 3))
    assert len(trail.seen) == 3
    trail.add(float("nan"), State.SAFE, 9.0, 1, None)
    trail.add(0.9, State.SAFE, 9.0, 2, Event(4, "rollback", 2))
    trail.add(0.2, State.SAFE, 9.0, 3, None)
    assert [len(token.events) for token in trail.seen] == [0, 0, 3]
    assert [event.what for event in trail.seen[-1].events] == ["rollback", "rollback", "alarm"]


def test_a_histogram_of_arrays_counts_as_one_of_values():
    registry, bounds = CollectorRegistry(), (0.1, 0.5, 1.0)
    histogram = ArrayHistogram("hazard", "About.", bounds, ("model", "m"), registry)
    values = np.array([0.0, 0.1, 0.2, 0.5, 0.7, 1.0, np.nan], dtype=np.float32)
    for part in (values[:3], values[3:], values[:0]):
        histogram.observe(part)
    [family] = text_string_to_metric_families(generate_latest(registry).decode())
    found = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    known = values[~np.isnan(values)].astype(float)
    for bound in bounds:
        assert found["hazard_bucket", f"{bound:g}"] == sum(known <= bound)
    assert found["hazard_bucket", "+Inf"] == found["hazard_count", None] == 6
    assert found["hazard_sum", None] == pytest.approx(known.sum())
