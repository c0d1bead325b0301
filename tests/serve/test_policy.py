"""A server that keeps to a certificate: what it covers is served, what it does not is rejected by name."""

from dataclasses import replace

import httpx
import pytest

import bundles
from kvguard import Guard
from kvguard.engine.presses import Condition
from kvguard.errors import KvguardError
from kvguard.guard.certificate import Bounds, Certificate, Certified, PressOf
from kvguard.guard.settings import Action
from kvguard.models.identity import weights_digest

SCORES = (0.01, 0.02) * 40


@pytest.fixture(scope="module")
def guard(tmp_path_factory, loaded):
    """A guard that alarms on every compressed text."""
    return Guard.load(
        bundles.write_bundle(tmp_path_factory.mktemp("policy") / "late", loaded.model, position=0.4)
    )


@pytest.fixture(scope="module")
def policy(loaded, guard):
    """SnapKV at 0.5 under restore, and at 0.25 without a guard."""
    entries = [(0.25, Action.NONE, ()), (0.5, Action.RESTORE, SCORES)]
    return Certificate(
        model="reference",
        weights=weights_digest(loaded.model),
        task="arithmetic",
        n=300,
        n_scored=300,
        max_new_tokens=64,
        bounds=Bounds(max_added_cbr=0.02, max_lost_answers=0.05, confidence=0.95),
        promise="as it says",
        compressors={"snapkv": PressOf(press="SnapKVPress", params={"window_size": 16})},
        guard=guard.identity,
        certified=tuple(
            Certified(
                compressor="snapkv", ratio=ratio, action=action, added=0, lost=0, kv_saved=0.4, scores=scores
            )
            for ratio, action, scores in entries
        ),
        recommended=1,
    )


def asked(server, **fields):
    body = {"model": "reference", "prompt": "Two and two make what? " * 4, "max_tokens": 8, **fields}
    return httpx.post(f"{server.base}/v1/completions", json=body, timeout=120)


def gauge(server, name):
    text = httpx.get(f"{server.base}/metrics", timeout=60).text
    found = [line for line in text.splitlines() if line.startswith(f"kvguard:drift_{name}")]
    return float(found[0].split()[-1]) if found else None


def test_what_is_certified_is_served_greedily_and_the_rest_rejected(serving, guard, policy):
    server = serving(guard=guard, policy=policy)
    first = asked(server)
    assert first.status_code == 200
    assert first.json()["choices"][0]["text"] == asked(server).json()["choices"][0]["text"]
    rejected = {
        "0.75": {"kv": {"ratio": 0.75}},
        "knorm": {"kv": {"compressor": "knorm", "ratio": 0.5}},
        "rollback": {"kv": {"action": "rollback"}},
        "aggressive": {"kv": {"point": "aggressive"}},
        "no guard": {"kv": {"guard": False}},
        "64": {"max_tokens": 65},
        "temperature": {"temperature": 0.7},
    }
    for word, fields in rejected.items():
        answer = asked(server, **fields)
        assert answer.status_code == 400, word
        assert word in answer.json()["error"]["message"].lower() or word == "knorm", answer.text
    for fields in (
        {"kv": {"ratio": 0.25, "guard": False}},
        {"kv": {"compressor": "none"}},
        {"temperature": 0},
    ):
        assert asked(server, **fields).status_code == 200, fields
    assert server.idle()


def test_drift_is_told_in_the_metrics_of_a_server_whose_texts_all_alarm(serving, guard, policy):
    server = serving(guard=guard, policy=policy)
    assert gauge(server, "texts") is None
    client = server.client()
    for _ in range(3):
        client.completions.create(
            model="reference", prompt=["Two and two make what? " * 4] * 8, max_tokens=64, n=1
        )
    assert gauge(server, "texts") == 24
    assert gauge(server, "told") in (0.0, 1.0)
    assert gauge(server, "log10_wealth") > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"condition": Condition("snapkv", 0.75)}, ["0.75", "snapkv@0.5 under restore"]),
        ({"condition": Condition("knorm", 0.5)}, ["KnormPress"]),
        ({"action": Action.ROLLBACK}, ["rollback"]),
        ({"guard": None, "action": Action.NONE}, ["no guard"]),
    ],
)
def test_a_server_of_what_is_not_certified_does_not_start(calm, guard, policy, changes, words):
    served = replace(calm, **{"guard": guard, "policy": policy, **changes})
    with pytest.raises(KvguardError) as error:
        served.check()
    for word in ("policy", *words):
        assert word in str(error.value)


def test_another_models_certificate_does_not_start(calm, guard, policy):
    other = policy.model_copy(update={"weights": "others"})
    with pytest.raises(KvguardError, match="whose weights are others"):
        replace(calm, guard=guard, policy=other).check()


def test_a_chat_that_says_nothing_of_its_length_gets_what_was_certified(calm, guard, policy):
    assert replace(calm, guard=guard, policy=policy).usual_tokens == 64
