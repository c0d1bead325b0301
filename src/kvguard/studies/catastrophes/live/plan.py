"""What is run live: fresh prompts, conditions and policies, cut into parts.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd

from kvguard.engine.budget import scorer_for
from kvguard.engine.presses import NONE, Condition, attention_for
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
from kvguard.store.parts import Part, blocks, digest, fingerprint
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.live.baselines import entropy_setting, loop_setting
from kvguard.studies.catastrophes.params import FeaturizeParams, LiveValidateParams, Params
from kvguard.studies.catastrophes.train.protocols import PROTOCOLS
from kvguard.studies.catastrophes.train.splits import read_split
from kvguard.sweep.parts import describe
from kvguard.sweep.plan import Sweep
from kvguard.tasks.base import Task

_log = logging.getLogger(__name__)

UNCOMPRESSED, STATIC, ROLLBACK = "uncompressed", "static", "rollback"
PREFILL, DECODING, SWITCH = "prefill", "decoding", "switch"
PROTOCOL: Literal["v2"] = "v2"  # whose hazard model and operating point
Trigger = Literal["hazard", "entropy", "loop"]


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
    "entropy": Policy("entropy", Action.ROLLBACK),
    "loop": Policy("loop", Action.ROLLBACK),
}


@dataclass(frozen=True)
class SweepJob:
    """What workers make of a sweep's prompts, with its model.

    Attributes
    ----------
    sweep
        The fresh prompts, and the conditions: ``none`` first.
    """

    sweep: Sweep

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

    @property
    def device(self) -> str:
        """Where the model runs."""
        return self.sweep.device


@dataclass(frozen=True)
class Live(SweepJob):
    """All that the rows depend on; it travels to the workers.

    Attributes
    ----------
    triggers
        The controller's setting under each trigger.
    """

    settings: LiveValidateParams
    guard: GuardParams
    featurize: FeaturizeParams
    triggers: Mapping[str, ControllerParams]
    hazard_model: HazardModel

    @classmethod
    def load(cls, params: Params, model: str) -> Live:
        """Draw the prompts, and read what the earlier stages left of ``model``.

        Raises
        ------
        KvguardError
            An earlier stage has not been run, or a condition names what is not known.
        """
        settings, spec, task = params.live_validate, params.spec(model), params.task(model)
        trained, evaluated = layout.trained(model, PROTOCOL), layout.evaluated(model, PROTOCOL)
        traces = read_judged(layout.traces(model))
        hazard_model = HazardModel.load(trained)
        point = load_operating_point(evaluated, settings.point)
        conditions = chosen_conditions(settings, traces)
        triggers = {"hazard": point, "loop": loop_setting(point)}
        if "entropy" in settings.baselines:
            triggers["entropy"] = entropy_setting(
                layout.features(model),
                traces,
                read_split(PROTOCOLS[PROTOCOL], trained),
                hazard_model,
                point,
                conditions,
                vocabulary_size(model, spec),
            )
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
        return cls(sweep, settings, params.guard, params.featurize, triggers, hazard_model)

    @property
    def hazard_digest(self) -> str:
        """What names the hazard model in fingerprints."""
        booster = hashlib.sha256(self.hazard_model.booster.save_raw("json")).hexdigest()
        return digest([booster, self.hazard_model.features, as_card(self.hazard_model.calibration)])


@dataclass(frozen=True)
class LivePart(Part):
    """A block of prompts x conditions under one policy.

    Parameters
    ----------
    start, stop : int
        The block's prompts, as positions in the prompts table.
    """

    regime: str
    policy: str
    start: int
    stop: int
    conditions: tuple[Condition, ...]

    kinds: ClassVar[Mapping[str, str]] = {"live_parts": "part"}


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


def decoding_conditions(live: Live, loaded: LoadedModel) -> list[Condition]:
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
        press = live.sweep.press(condition)
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


def plan_live_parts(
    live: Live, budgeted: Sequence[Condition], depends_on: Mapping[str, Any]
) -> list[LivePart]:
    """Cut the runs under all policies into parts.

    Parameters
    ----------
    budgeted
        The conditions that are also held to a budget while decoding.
    depends_on
        What every part's bytes depend on besides: weights, batch plan, the hazard model, ...
    """
    settings = live.settings
    acting = [*(action for action in settings.actions if action != Action.HOLD), *settings.baselines]
    asked = [
        (PREFILL, settings.n, [live.sweep.conditions[0]], [UNCOMPRESSED]),
        (PREFILL, settings.n, live.sweep.conditions[1:], [STATIC, *acting]),
        (DECODING, settings.decoding_n, budgeted, [STATIC, *settings.actions]),
    ]
    parts: list[LivePart] = []
    n_traces = 0
    for regime, n_prompts, conditions, policies in asked:
        for block, (start, stop) in enumerate(blocks(n_prompts, settings.prompts_per_part)):
            for implementation, own in by_attention(live.sweep, conditions).items():
                for policy in policies:
                    n_own = (stop - start) * len(own)
                    parts.append(
                        LivePart(
                            name=f"{regime}-{block:04d}-{implementation}-{policy}",
                            trace_ids=tuple(range(n_traces, n_traces + n_own)),
                            fingerprint=_fingerprint(live, regime, policy, start, stop, own, depends_on),
                            regime=regime,
                            policy=policy,
                            start=start,
                            stop=stop,
                            conditions=tuple(own),
                        )
                    )
                    n_traces += n_own
    return parts


def by_attention(sweep: Sweep, conditions: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Group conditions by the attention implementation of their prefill: one pass serves a group."""
    groups: dict[str, list[Condition]] = {}
    for condition in conditions:
        groups.setdefault(attention_for(sweep.press(condition)), []).append(condition)
    return groups


def units(sweep: Sweep, parts: Sequence[LivePart]) -> list[list[LivePart]]:
    """Group parts that one prefill can serve."""
    groups: dict[tuple[str, int, str], list[LivePart]] = {}
    for part in parts:
        implementation = attention_for(sweep.press(part.conditions[0]))
        groups.setdefault((part.regime, part.start, implementation), []).append(part)
    return list(groups.values())


def _fingerprint(
    live: Live,
    regime: str,
    policy: str,
    start: int,
    stop: int,
    conditions: Sequence[Condition],
    depends_on: Mapping[str, Any],
) -> str:
    trigger = POLICIES[policy].trigger
    made_of = {
        **describe(live.sweep.prompts.iloc[start:stop], conditions, live.sweep.compressors),
        "policy": policy,
        "controller": live.triggers[trigger].model_dump(),
        "hazard_model": live.hazard_digest if trigger == "hazard" else None,
        "guard": live.guard.model_dump(),
        "thinking_words": live.featurize.thinking_words,
        "interval": live.settings.compression_interval if regime == DECODING else None,
    }
    return fingerprint({**made_of, **depends_on, "guard_version": VERSION})
