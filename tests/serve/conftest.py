"""Servers of the reference model in this process, on ports of their own, and what they are compared with."""

import contextlib
from dataclasses import replace

import pytest
import torch
from in_process import running
from kvpress import KnormPress, SnapKVPress

import bundles
from kvguard import Guard
from kvguard.config import check_known
from kvguard.engine.presses import Condition
from kvguard.guard.controller import ControllerParams
from kvguard.guard.settings import Action
from kvguard.models.load import LoadedModel
from kvguard.models.reference import REFERENCE_PATHS
from kvguard.serve.limits import Limits
from kvguard.serve.served import Served
from kvguard.tasks import sample_prompts

PRESSES = {"snapkv": lambda ratio: SnapKVPress(ratio, window_size=16), "knorm": KnormPress}
AT_ONCE = ControllerParams(tau_low=0.0, tau_high=0.0, k_escalate=1, j_deescalate=1000)


def build(name, ratio):
    check_known("compressor", name, PRESSES)
    return PRESSES[name](ratio)


@pytest.fixture(scope="session")
def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = REFERENCE_PATHS["reference"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return LoadedModel("reference", model, AutoTokenizer.from_pretrained(folder), "")


@pytest.fixture(scope="session")
def offline(loaded):
    """A model of its own, so that what is compared with a server does not share one with it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(REFERENCE_PATHS["reference"], dtype=torch.float32)
    return model.eval(), loaded.tokenizer


@pytest.fixture(scope="session")
def prompts():
    asked = sample_prompts("arithmetic", 8, 99, n_shots=1)["prompt"]
    return [forms["messages"][0]["content"] for forms in asked]


@pytest.fixture(scope="session")
def guards(tmp_path_factory, loaded):
    folder = tmp_path_factory.mktemp("guards")
    kinds = {"calm": {}, "late": {"position": 0.4}, "at once": {"params": AT_ONCE}}
    return {
        name: Guard.load(bundles.write_bundle(folder / name, loaded.model, **kind))
        for name, kind in kinds.items()
    }


@pytest.fixture(scope="session")
def calm(loaded, guards):
    """What is served by default: SnapKV, watched by a guard that never alarms, whose requests may choose."""
    return Served(
        name="reference",
        loaded=loaded,
        condition=Condition("snapkv", 0.5),
        build=build,
        guard=guards["calm"],
        action=Action.RESTORE,
        limits=Limits(choosing=True),
        window=loaded.window,
    )


@pytest.fixture(scope="module")
def server(calm):
    with running(calm) as found:
        yield found


@pytest.fixture
def serving(calm):
    """Run a server with other settings: fields of Served, limits as a dict, keys, its log."""
    stack = contextlib.ExitStack()

    def start(keys=(), limits=None, log_text=False, **changes):
        bounds = replace(calm.limits, **(limits or {}))
        return stack.enter_context(running(replace(calm, limits=bounds, **changes), keys, log_text))

    with stack:
        yield start
