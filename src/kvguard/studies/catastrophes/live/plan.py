"""What is run live: fresh prompts, conditions and policies, cut into parts.

Compressed once, a policy that acts is run as branches of the ``static`` rows, see :mod:`.branches`.

====================== ======================================================================================
regime                 compression
====================== ======================================================================================
prefill                once, after the prefill
decoding               that, and a budget while decoding
switch                 once; then the full cache is restored at a given token, see :mod:`.switch`
====================== ======================================================================================
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd

from kvguard.engine.presses import NONE, Condition, Presses
from kvguard.engine.scorers import scorer_for
from kvguard.errors import KvguardError
from kvguard.guard import VERSION
from kvguard.guard.actions import Action, GuardParams
from kvguard.guard.bundle import load_operating_point
from kvguard.guard.calibration import as_card
from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel
from kvguard.judging.catastrophes import is_catastrophic
from kvguard.judging.judge import read_judged
from kvguard.models.load import LoadedModel, vocabulary_size
from kvguard.models.spec import ModelSpec
from kvguard.store.parts import Part, digest, fingerprint, slices
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.live.baselines import loop_setting, matched_setting
from kvguard.studies.catastrophes.live.names import (
    BY_TRIGGER,
    DECODING,
    PREFILL,
    ROLLBACK,
    ROLLBACK_BEFORE,
    STATIC,
    STOP_AT_ANSWER,
    UNCOMPRESSED,
)
from kvguard.studies.catastrophes.params import FeaturizeParams, LiveValidateParams, Params
from kvguard.studies.catastrophes.protocols import BEFORE, HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.splits import read_split
from kvguard.sweep.plan import Plan, Sweep
from kvguard.tasks.base import Task

_log = logging.getLogger(__name__)

Trigger = Literal["hazard", "hazard_before", "entropy", "clock", "loop", "answer"]


@dataclass(frozen=True)
class Policy:
    """What watches a row, and what the row does in SAFE."""

    trigger: Trigger
    action: Action


POLICIES: dict[str, Policy] = {
    UNCOMPRESSED: Policy("hazard", Action.NONE),
    STATIC: Policy("hazard", Action.NONE),
    "hold": Policy("hazard", Action.HOLD),
    "restore": Policy("hazard", Action.RESTORE),
    ROLLBACK: Policy("hazard", Action.ROLLBACK),
    "restart": Policy("hazard", Action.RESTART),
    "stop": Policy("hazard", Action.STOP),
    ROLLBACK_BEFORE: Policy("hazard_before", Action.ROLLBACK),
    STOP_AT_ANSWER: Policy("answer", Action.STOP),
    **{trigger: Policy(trigger, Action.ROLLBACK) for trigger in BY_TRIGGER},
}


@dataclass(frozen=True)
class Live:
    """All that the rows depend on besides the sweep's plan; it travels to the workers.

    Attributes
    ----------
    sweep
        The fresh prompts, and the conditions: ``none`` first.
    triggers
        The controller's setting under each trigger that has one.
    hazard_models
        The fits of the hazard; the first is the one that the guard is exported with.
    hazard_before
        That of the protocol before, if it is to be compared.
    """

    sweep: Sweep
    settings: LiveValidateParams
    guard: GuardParams
    featurize: FeaturizeParams
    triggers: Mapping[str, ControllerParams]
    hazard_models: tuple[HazardModel, ...]
    hazard_before: HazardModel | None = None

    @property
    def name(self) -> str:
        """The model's name in the params."""
        return self.sweep.name

    @property
    def spec(self) -> ModelSpec:
        """The model's spec."""
        return self.sweep.spec

    @property
    def task(self) -> Task:
        """What the model is asked."""
        return self.sweep.task

    @classmethod
    def load(cls, params: Params, model: str) -> Live:
        """Draw the prompts, and read what the earlier stages left of ``model``.

        Raises
        ------
        KvguardError
            An earlier stage has not been run, or a condition names what is not known.
        """
        settings, spec, task = params.live_validate, params.spec(model), params.task(model)
        trained, evaluated = layout.trained(model, HEADLINE), layout.evaluated(model, HEADLINE)
        traces = read_judged(layout.traces(model))
        fits = [HazardModel.load(trained)]
        while (folder := layout.fit(trained, len(fits) + 1)).is_dir():
            fits.append(HazardModel.load(folder))
        point = load_operating_point(evaluated, settings.point)
        conditions = chosen_conditions(settings, traces)
        triggers = {"hazard": point, "loop": loop_setting(point)}
        before = None
        if ROLLBACK_BEFORE in settings.baselines:
            before = HazardModel.load(layout.trained(model, BEFORE))
            triggers["hazard_before"] = load_operating_point(layout.evaluated(model, BEFORE), settings.point)
        split = read_split(PROTOCOLS[HEADLINE], trained)

        def matched(feature: str, largest: float) -> ControllerParams:
            path = layout.features(model)
            return matched_setting(feature, largest, path, traces, split, fits[0], point, conditions)

        if "entropy" in settings.baselines:
            triggers["entropy"] = matched("entropy", math.log(vocabulary_size(model, spec)))
        if "clock" in settings.baselines:
            triggers["clock"] = matched("token_position", 1.0)
        sweep = Sweep(
            name=model,
            spec=spec,
            task=task,
            prompts=fresh_prompts(task, settings, read_table("prompts", layout.prompts(model))),
            conditions=conditions,
            compressors=params.compressors,
            settings=params.generate,
            catastrophes=params.catastrophes,
            device=params.device,
        )
        return cls(sweep, settings, params.guard, params.featurize, triggers, tuple(fits), before)

    def hazard(self, trigger: Trigger, fit: int = 1) -> HazardModel | None:
        """Return the hazard model of a trigger, a fit of it counted from 1; None where it has none."""
        if trigger == "hazard_before":
            return self.hazard_before
        return self.hazard_models[fit - 1] if trigger == "hazard" else None

    def hazard_digest(self, trigger: Trigger, fit: int) -> str | None:
        """Return what names the hazard model of a trigger in fingerprints."""
        model = self.hazard(trigger, fit)
        if model is None:
            return None
        booster = hashlib.sha256(model.booster.save_raw("json")).hexdigest()
        return digest([booster, model.features, as_card(model.calibration)])


@dataclass(frozen=True)
class LivePart(Part):
    """A slice of the prompts x conditions under one policy.

    Parameters
    ----------
    start, stop : int
        The part's prompts, as positions in the prompts table.
    """

    regime: str
    policy: str
    start: int
    stop: int
    conditions: tuple[Condition, ...]

    kinds: ClassVar[Mapping[str, str]] = {"live_parts": "part"}


@dataclass(frozen=True)
class Trunk(LivePart):
    """One whose signals are stored too, so that other policies can branch from its rows."""

    kinds: ClassVar[Mapping[str, str]] = {"tokens": "tokens", "live_parts": "part"}


def fresh_prompts(task: Task, settings: LiveValidateParams, sampled: pd.DataFrame) -> pd.DataFrame:
    """Draw a prompts table that shares no question with ``sampled``, the prompts of the sweep."""
    wanted = settings.n + len(sampled)
    drawn = task.prompts(wanted, settings.seed)
    known = drawn["question"].isin(sampled["question"])
    return drawn[~known].iloc[: settings.n].reset_index(drop=True)


def chosen_conditions(settings: LiveValidateParams, traces: pd.DataFrame) -> list[Condition]:
    """Return the conditions, ``none`` first, each once.

    Parameters
    ----------
    traces
        The sweep's judged traces, which tell the worst.
    """
    named = [worst_condition(traces) if pair is None else Condition(*pair) for pair in settings.pairs]
    return list(dict.fromkeys([Condition(NONE, 0.0), *named]))


def worst_condition(traces: pd.DataFrame) -> Condition:
    """Return the condition with the highest CBR; of equals the lower ratio, then the earlier name.

    Raises
    ------
    KvguardError
        No trace is compressed, or none of those failed.
    """
    compressed = traces[traces["compressor"] != NONE]
    if compressed.empty:
        raise KvguardError(
            "live_validate.conditions: `worst` needs a sweep with compressed traces; add some to its preset"
        )
    failed = pd.Series(is_catastrophic(compressed), index=compressed.index)
    if not failed.any():
        raise KvguardError(
            "live_validate.conditions: `worst`: no compressed trace of the sweep fails; name a condition "
            "(snapkv@0.75, say), or add higher ratios to its preset"
        )
    cbr = failed.groupby([compressed["compressor"], compressed["ratio"]]).mean()
    _, ratio, name = min((-share, ratio, name) for (name, ratio), share in cbr.items())
    return Condition(name, ratio)


def decoding_conditions(live: Live, presses: Presses, loaded: LoadedModel) -> list[Condition]:
    """Return the compressed conditions that can also be held to a budget while decoding.

    The worst of the sweep is left out, with a warning, if its press cannot.

    Raises
    ------
    KvguardError
        A condition that was asked for by name cannot.
    """
    named = [Condition(*pair) for pair in live.settings.pairs if pair is not None]
    able = []
    for condition in live.sweep.conditions[1:]:
        press = presses[condition].press
        assert press is not None
        try:
            scorer_for(loaded.model, press, live.settings.compression_interval)
        except KvguardError as error:
            if condition in named:
                raise KvguardError(f"live_validate.conditions: {condition}: {error}") from None
            _log.warning("%s: no budget while decoding: %s", condition, error)
        else:
            able.append(condition)
    return able


def cut_by_policy(live: Live, loaded: LoadedModel, plan: Plan[Any]) -> list[LivePart]:
    """Cut what is run from the start into parts; those of a slice of prompts and one attention are a unit.

    Raises
    ------
    KvguardError
        A condition that was asked for by name cannot be held to a budget while decoding.
    """
    settings = live.settings
    budgeted = decoding_conditions(live, plan.presses, loaded) if settings.decoding_n else []
    asked = [
        (PREFILL, settings.n, [live.sweep.conditions[0]], [UNCOMPRESSED]),
        (PREFILL, settings.n, live.sweep.conditions[1:], [STATIC]),
        (DECODING, settings.decoding_n, budgeted, [STATIC, *settings.actions]),
    ]
    parts: list[LivePart] = []
    n_traces = 0
    for regime, n_prompts, conditions, policies in asked:
        for number, (start, stop) in enumerate(slices(n_prompts, settings.prompts_per_part)):
            for implementation, own in plan.presses.by_attention(conditions).items():
                unit = f"{regime}-{number:04d}-{implementation}"
                for policy in policies:
                    n_own = (stop - start) * len(own)
                    made_of = plan.made_of(range(start, stop), own)
                    kind = Trunk if (regime, policy) == (PREFILL, STATIC) else LivePart
                    parts.append(
                        kind(
                            name=f"{unit}-{policy}",
                            trace_ids=tuple(range(n_traces, n_traces + n_own)),
                            unit=unit,
                            fingerprint=policy_fingerprint(live, regime, policy, made_of),
                            regime=regime,
                            policy=policy,
                            start=start,
                            stop=stop,
                            conditions=tuple(own),
                        )
                    )
                    n_traces += n_own
    return parts


def policy_fingerprint(live: Live, regime: str, policy: str, made_of: Mapping[str, Any], fit: int = 1) -> str:
    """Return the fingerprint of a part that a policy makes of what ``made_of`` tells."""
    trigger = POLICIES[policy].trigger
    return fingerprint(
        {
            **made_of,
            "policy": policy,
            "controller": live.triggers[trigger].model_dump() if trigger in live.triggers else None,
            "hazard_model": live.hazard_digest(trigger, fit),
            "guard": live.guard.model_dump(),
            "thinking_words": live.featurize.thinking_words,
            "interval": live.settings.compression_interval if regime == DECODING else None,
            "guard_version": VERSION,
        }
    )
