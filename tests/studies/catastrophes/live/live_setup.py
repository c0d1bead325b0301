"""A live run on a tiny random model: few prompts, a hazard model of three features, every policy."""

from pathlib import Path

import numpy as np
import pandas as pd
import xgboost as xgb

from kvguard.engine.presses import Condition
from kvguard.guard.actions import GuardParams
from kvguard.guard.calibration import Platt
from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.models.spec import ModelSpec
from kvguard.studies.catastrophes.live.plan import Live
from kvguard.studies.catastrophes.params import FeaturizeParams, LiveValidateParams
from kvguard.sweep.plan import Sweep
from kvguard.sweep.settings import CompressorSpec, GenerateParams
from kvguard.tasks import Task, make_task

COMPRESSORS = {
    "streaming_llm": CompressorSpec(press="StreamingLLMPress", params={"n_sink": 4}),
    "knorm": CompressorSpec(press="KnormPress"),
    "snapkv": CompressorSpec(press="SnapKVPress", params={"window_size": 4}),
    "observed_attention": CompressorSpec(press="ObservedAttentionPress"),
}
N_TOKENS = 40
POINT = ControllerParams(tau_low=0.3, tau_high=0.5, k_escalate=2, j_deescalate=4)
NEVER = ControllerParams(tau_low=1.0, tau_high=1.0, k_escalate=1000, j_deescalate=4)
READ = ("compression_ratio", "entropy", "token_position")


def hazard_model(seed: int = 0) -> HazardModel:
    """A model whose hazard is high for uncertain tokens of compressed rows, past the first few."""
    rows = np.random.default_rng(seed).uniform([0, 0, 0], [1, 5, 1], (4000, 3)).astype(np.float32)
    target = (rows[:, 0] > 0.1) & (rows[:, 1] > 1.0) & (rows[:, 2] > 0.15)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, xgb.DMatrix(rows, target), 8
    )
    booster.feature_names = list(READ)
    return HazardModel(booster, READ, Platt(1.0, 0.0), 0.5)


def _questions(task: Task, n: int) -> pd.DataFrame:
    """Prompts as user messages without a cue: after these the tiny model's rows are long enough to act on."""
    prompts = task.prompts(n, seed=11)
    texts = [{**forms, "text": forms["messages"][0]["content"]} for forms in prompts["prompt"]]
    return prompts.assign(prompt=texts)


def live_of(folder: Path, n: int = 4, **changes: object) -> Live:
    """Return a live run of the model in ``folder``; ``changes`` are settings of its section, or workers."""
    workers = changes.pop("workers", 1)
    settings = LiveValidateParams.model_validate(
        {
            "n": n,
            "seed": 5,
            "conditions": ("streaming_llm@0.5", "knorm@0.5"),
            "prompts_per_part": 2,
            "decoding_n": 2,
            "compression_interval": 8,
            "switch_offsets": (8, 0, -4),
            "switch_traces": 3,
            **changes,
        }
    )
    conditions = [Condition("none", 0.0), *(Condition(*pair) for pair in settings.pairs if pair)]
    sweep = Sweep(
        name="tiny",
        spec=ModelSpec(source=f"path:{folder}", task="arithmetic"),
        task=(task := make_task("arithmetic", n_shots=0, max_new_tokens=N_TOKENS)),
        prompts=_questions(task, n),
        conditions=conditions,
        compressors=COMPRESSORS,
        settings=GenerateParams.model_validate({"preset": "x", "batch_size": 4, "workers": workers}),
        catastrophes=CatastropheParams(loop_window=8),
        device="cpu",
    )
    triggers = {
        "hazard": POINT,
        "hazard_before": POINT,
        "entropy": POINT,
        "clock": POINT,
        "loop": POINT.model_copy(update={"tau_low": 0.5, "k_escalate": 1}),
    }
    words = FeaturizeParams(thinking_words=("a", "so"))
    fits = (hazard_model(), hazard_model(seed=1))
    return Live(sweep, settings, GuardParams(), words, triggers, fits, hazard_before=hazard_model(seed=2))
