"""Servers of the reference model in this process, on ports of their own, and what they are compared with."""

import contextlib
import threading
import time
from dataclasses import replace

import openai
import pytest
import torch
import uvicorn
from kvpress import KnormPress, SnapKVPress

import bundles
from kvguard import Guard
from kvguard.config import check_known
from kvguard.engine.presses import Condition
from kvguard.guard.controller import ControllerParams
from kvguard.guard.settings import Action
from kvguard.models.load import LoadedModel
from kvguard.models.reference import REFERENCE_PATHS
from kvguard.serve.app import create_app
from kvguard.serve.limits import Limits
from kvguard.serve.punctual import Punctual
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


class Running:
    """A server under way."""

    def __init__(self, app, port):
        self.app, self.base = app, f"http://127.0.0.1:{port}"
        self.scheduler = app.state.service.scheduler

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key=key, max_retries=0, timeout=60)

    def asynchronous(self):
        return openai.AsyncOpenAI(base_url=f"{self.base}/v1", api_key="none", max_retries=0, timeout=60)

    def idle(self):
        """Wait until nothing is under way; tell whether that came to be."""
        for _ in range(500):
            if not self.scheduler._rows and not self.scheduler._waiting:
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def running(served, keys=(), log_text=False):
    app = create_app(served, keys, log_text)
    how = {"http": Punctual, "ws": "none"}
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="on", **how)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(app, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


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
