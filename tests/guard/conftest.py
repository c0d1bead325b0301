"""A reference model, prompts for it, and guards that alarm when they are told to."""

import pytest
import torch

import bundles
from kvguard import Guard
from kvguard.guard.controller import ControllerParams
from kvguard.models.reference import REFERENCE_PATHS
from kvguard.tasks import sample_prompts

AT_ONCE = ControllerParams(tau_low=0.0, tau_high=0.0, k_escalate=1, j_deescalate=1000)


@pytest.fixture(scope="session")
def reference():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = REFERENCE_PATHS["reference"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def prompts():
    asked = sample_prompts("arithmetic", 4, 99, n_shots=1)["prompt"]
    return [forms["messages"][0]["content"] for forms in asked]


@pytest.fixture(scope="session")
def guards(tmp_path_factory, reference):
    """Guards that never alarm, that alarm late, that alarm late whatever is compressed, and at once."""
    folder, model = tmp_path_factory.mktemp("guards"), reference[0]
    kinds = {
        "calm": {},
        "late": {"position": 0.4},
        "stubborn": {"position": 0.4, "uncompressed": True},
        "at once": {"params": AT_ONCE},
    }
    return {
        name: Guard.load(bundles.write_bundle(folder / name, model, **kind)) for name, kind in kinds.items()
    }
