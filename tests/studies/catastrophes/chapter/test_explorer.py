"""The trace explorer's data: which traces, and that unpacking gives back what was packed."""

import base64
import zlib

import numpy as np
import pytest
from made_up import decode, explored

import synthetic
from kvguard.guard.controller import State, states_of
from kvguard.judging.catastrophes import is_catastrophic
from kvguard.studies.catastrophes.chapter.explorer import sample
from kvguard.studies.catastrophes.chapter.onset_tables import RULES


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return explored(tmp_path_factory.mktemp("data"), "one", seed=0)


def unpack(packed):
    block, n = zlib.decompress(base64.b64decode(packed["block"])), packed["n"]
    return {
        "piece": np.frombuffer(block, "<u2", n),
        "entropy": np.frombuffer(block, "<u2", n, 2 * n) / 1000,
        "top1_prob": np.frombuffer(block, "u1", n, 4 * n) / 255,
        "hazard": np.frombuffer(block, "u1", n, 5 * n) / 255,
        "state": np.frombuffer(block, "u1", n, 6 * n),
    }


def test_unpacked_signals_are_those_of_the_tokens(shown):
    packed, _, tokens = shown
    found = unpack(packed)
    assert packed["n"] == len(tokens)
    for name, step in (("entropy", 1 / 1000), ("top1_prob", 1 / 255), ("hazard", 1 / 255)):
        np.testing.assert_allclose(found[name], tokens[name], atol=step / 2 + 1e-6)
    pieces = np.array(packed["pieces"])[found["piece"]]
    assert list(pieces) == decode(list(tokens["token_id"]))


def test_states_and_onsets_are_those_of_the_balanced_point(shown):
    packed, chosen, tokens = shown
    lengths = chosen["token_ids"].map(len).to_numpy()
    states = states_of(tokens["hazard"].to_numpy(), lengths, synthetic.CONTROLLER)
    np.testing.assert_array_equal(unpack(packed)["state"], states)
    for trace, (_, row) in zip(packed["traces"], chosen.iterrows(), strict=True):
        its = states[trace["start"] : trace["start"] + trace["n"]]
        fired = np.flatnonzero(its == State.SAFE)
        assert trace["safe"] == (fired[0] if len(fired) else None)
        assert (trace["onset"] is None) == (not row["catastrophes"])
        assert trace["onset"] is None or trace["onset"] == row["onset"]
        assert trace["rule"] == RULES.get(f"by_{row['onset_by']}", "")
        assert bool(trace["rule"]) == bool(row["catastrophes"])
        assert trace["n"] == len(row["token_ids"])


def test_each_trace_has_its_question_and_the_uncompressed_answer(shown):
    packed, chosen, _ = shown
    for trace, prompt_id in zip(packed["traces"], chosen["prompt_id"], strict=True):
        prompt = packed["prompts"][trace["prompt"]]
        assert prompt["id"] == prompt_id
        assert prompt["uncompressed"]["catastrophes"] == []
        assert prompt["uncompressed"]["text"].startswith("Ana has")


def test_the_sample_is_bounded_and_takes_catastrophes_first(tmp_path):
    traces = synthetic.build(tmp_path, n_prompts=12)
    chosen = sample(traces, per_condition=3)
    compressed = traces[traces["compressor"] != "none"]
    for condition, group in chosen.groupby(["compressor", "ratio"]):
        everything = compressed[
            (compressed["compressor"] == condition[0]) & (compressed["ratio"] == condition[1])
        ]
        failures = int(is_catastrophic(everything).sum())
        assert len(group) == 3
        assert is_catastrophic(group).sum() == min(failures, 3)
    assert "none" not in set(chosen["compressor"])
    assert len(sample(traces, per_condition=1000)) == len(compressed)
