"""The exactness gate: passes for every listed architecture, and for none with a fault."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvguard.engine.surgery.gate import KEYS, NLL, gate
from kvguard.errors import KvguardError
from rotary_zoo import LISTED, OTHERS, SCALED, UNMOVABLE, build
from surgery_faults import FAULTS, historic_answer_nll

BOS = 1


@pytest.mark.parametrize("name", [*LISTED, *OTHERS, *(f"rope/{kind}" for kind in SCALED)])
def test_a_model_with_rotary_positions_passes(name):
    report = gate(build(name), bos=BOS)
    assert report.passed, report
    assert report.error("nats") <= NLL
    assert report.error("relative") <= KEYS
    assert {check.number for check in report.checks} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_model_without_bos_passes(name):
    assert gate(build(name), bos=None).passed


QUICK = {"llama", "gemma3", "gpt_neox"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LISTED]
)
def test_a_planted_fault_fails(name, fault):
    model = build(name)
    if fault == "window_off_by_one" and name not in {"gemma2", "gemma3", "mistral"}:
        pytest.skip("no sliding windows")
    with FAULTS[fault]():
        report = gate(model, bos=BOS)
    assert not report.passed


@pytest.mark.parametrize(
    ("fault", "numbers"),
    [
        ("look_ahead", {1, 2, 4}),
        ("bos_dropped", {1, 5}),
        ("positions_off_by_one", {1}),
        ("wrong_base", {2}),
        ("window_off_by_one", {1, 5, 6}),
        ("prefix_leak", {2, 5}),
    ],
)
def test_a_fault_is_seen_by_the_checks_it_concerns(fault, numbers):
    with FAULTS[fault]():
        report = gate(build("gemma3"), bos=BOS)
    assert numbers <= {check.number for check in report.checks if not check.passed}


def test_the_historic_bug_is_caught_as_look_ahead():
    report = gate(build("llama"), bos=BOS, answer_nll=historic_answer_nll)
    assert {1, 4} <= {check.number for check in report.checks if not check.passed}


def test_a_window_wider_than_minutes_is_narrowed_and_comes_back():
    model = build("mistral", sliding_window=2048, max_position_embeddings=4096)
    report = gate(model, bos=BOS)
    assert report.passed
    assert (report.windows, report.narrowed_from) == ((64,), 2048)
    assert model.config.sliding_window == 2048


@pytest.mark.parametrize("name", UNMOVABLE)
def test_a_model_whose_keys_cannot_be_moved_is_rejected_by_name(name):
    with pytest.raises(KvguardError, match=name) as raised:
        gate(build(name), bos=BOS)
    assert "\n" not in str(raised.value)


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_a_real_model_passes(real_model, name):
    model = AutoModelForCausalLM.from_pretrained(real_model(name), dtype=torch.float32).eval()
    report = gate(model, bos=model.config.bos_token_id)
    assert report.passed, report
