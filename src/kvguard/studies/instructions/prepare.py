"""From settings to the study that is run, and what its results depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kvguard.engine import VERSION
from kvguard.engine.stops import StopStrings
from kvguard.errors import KvguardError
from kvguard.guard.bundle import digest_of
from kvguard.guard.features import thinking_mask
from kvguard.guard.session import Guard
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.models.load import LoadedModel
from kvguard.studies.instructions.arms import all_arms
from kvguard.studies.instructions.eviction import check_press_of
from kvguard.studies.instructions.generation import How, Watched
from kvguard.studies.instructions.params import Params
from kvguard.studies.instructions.run import Study
from kvguard.studies.instructions.scoring import Scoring
from kvguard.sweep.settings import CompressorSpec

_LIBRARIES = ("kvpress", "tokenizers", "torch", "transformers")


def prepare(
    params: Params,
    loaded: LoadedModel,
    compressors: Mapping[str, CompressorSpec],
    catastrophes: CatastropheParams,
) -> tuple[Study, dict[str, Any]]:
    """Return the study, checked, and what its results depend on.

    Raises
    ------
    KvguardError
        The suite, the judge, an arm or the guard cannot be had.
    """
    from kvguard.studies.instructions.judge import make_judge
    from kvguard.studies.instructions.suites import load_suite, verifier

    arms = all_arms(params.conditions, params.treatments, compressors)
    for arm in arms:
        check_press_of(arm, compressors)
    path = Path(params.suite_path) if params.suite_path else None
    examples = load_suite(params.suite, path, params.n, params.seed, params.placement)
    if any(arm.guarded for arm in arms) and params.bundle is None:
        raise KvguardError("conditions: guard: name the guard's folder with --bundle, models/reference say")
    guard = _watched(params, loaded)
    stops = StopStrings(loaded.tokenizer, params.stop_strings) if params.stop_strings else None
    how = How(
        loaded, compressors, params.max_new_tokens, params.batch_size, params.seed, stops=stops, guard=guard
    )
    asked = params.judge
    judge = make_judge(asked.url, asked.command, asked.model, None, asked.max_calls, asked.max_cost)
    scoring = Scoring(
        verifier(params.suite), catastrophes, params.max_new_tokens, judge, params.judge.both if judge else 0
    )
    settings = {
        "model": loaded.name,
        "weights": loaded.fingerprint,
        "device": loaded.model.device.type,
        "dtype": str(loaded.model.dtype),
        "threads": torch.get_num_threads(),
        "engine": VERSION,
        "libraries": {name: version(name) for name in _LIBRARIES},
        **params.model_dump(
            mode="json",
            include={
                "suite", "placement", "seed", "max_new_tokens", "stop_strings", "batch_size", "together",
                "bundle", "point", "guard", "judge",
            },
        ),
        "bundle_digest": digest_of(Path(params.bundle)) if params.bundle else None,
        "presses": hashlib.sha256(str(sorted(compressors.items())).encode()).hexdigest(),
        "catastrophes": catastrophes.model_dump(mode="json"),
    }  # fmt: skip
    return Study(examples, arms, how, scoring, params.together, params.stop_when), settings


def _watched(params: Params, loaded: LoadedModel) -> Watched | None:
    if params.bundle is None:
        loaded.warn_of_doubts()
        return None
    guard = Guard.load(params.bundle, params.point, params.guard)
    guard.warn_of_doubts(loaded)
    mask = thinking_mask(loaded.tokenizer, guard.card.thinking_words)
    return Watched(guard.hazard, guard.point, guard.params, mask)
