"""From settings to the study that is run, and what its results depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from kvguard.studies.instructions.arms import Arm, all_arms
from kvguard.studies.instructions.eviction import check_press_of
from kvguard.studies.instructions.examples import Example
from kvguard.studies.instructions.generation import How, Watched
from kvguard.studies.instructions.params import Params
from kvguard.studies.instructions.run import Study
from kvguard.studies.instructions.scoring import Judges, Scoring, Verifier
from kvguard.sweep.settings import CompressorSpec

_LIBRARIES = ("kvpress", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Plan:
    """What is asked, and who judges it, before there is a model."""

    params: Params
    compressors: Mapping[str, CompressorSpec]
    arms: tuple[Arm, ...]
    examples: Sequence[Example]
    verify: Verifier
    judge: Judges | None


def plan(params: Params, compressors: Mapping[str, CompressorSpec]) -> Plan:
    """Return what the settings ask for, checked as far as that can be without a model.

    Raises
    ------
    KvguardError
        An arm, the suite or the judge cannot be had.
    """
    from kvguard.studies.instructions.judge import make_judge
    from kvguard.studies.instructions.suites import load_suite, verifier

    arms = all_arms(params.conditions, params.treatments, compressors)
    for arm in arms:
        check_press_of(arm, compressors)
        if arm.guarded and params.bundle is None:
            raise KvguardError(
                f"conditions: {arm}: name the guard's folder with --bundle, models/reference say"
            )
    verify = verifier(params.suite)
    path = Path(params.suite_path) if params.suite_path else None
    examples = load_suite(params.suite, path, params.n, params.seed, params.placement)
    asked = params.judge
    judge = make_judge(asked.url, asked.command, asked.model, None, asked.max_calls, asked.max_cost)
    return Plan(params, compressors, arms, examples, verify, judge)


def prepare(
    planned: Plan, loaded: LoadedModel, catastrophes: CatastropheParams
) -> tuple[Study, dict[str, Any]]:
    """Return the study of a model, and what its results depend on.

    Raises
    ------
    KvguardError
        The guard cannot be had, or the model's end tokens.
    """
    params = planned.params
    stops = StopStrings(loaded.tokenizer, params.stop_strings) if params.stop_strings else None
    how = How(
        loaded,
        planned.compressors,
        params.max_new_tokens,
        params.batch_size,
        params.seed,
        stops=stops,
        guard=_watched(params, loaded),
    )
    both = params.judge.both if planned.judge is not None else 0.0
    scoring = Scoring(planned.verify, catastrophes, params.max_new_tokens, planned.judge, both)
    study = Study(planned.examples, planned.arms, how, scoring, params.together, params.stop_when)
    return study, _settings(planned, loaded, catastrophes)


def _settings(planned: Plan, loaded: LoadedModel, catastrophes: CatastropheParams) -> dict[str, Any]:
    """Return what results depend on beside example and arm: those of other settings may not be joined."""
    params = planned.params
    presses = str(sorted(planned.compressors.items()))
    return {
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
        "presses": hashlib.sha256(presses.encode()).hexdigest(),
        "catastrophes": catastrophes.model_dump(mode="json"),
    }  # fmt: skip


def _watched(params: Params, loaded: LoadedModel) -> Watched | None:
    if params.bundle is None:
        loaded.warn_of_doubts()
        return None
    guard = Guard.load(params.bundle, params.point, params.guard)
    guard.warn_of_doubts(loaded)
    mask = thinking_mask(loaded.tokenizer, guard.card.thinking_words)
    return Watched(guard.hazard, guard.point, guard.params, mask)
