"""From an arm to the press that evicts from one prompt."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvguard.engine.controls import KeepEndsPress, LayerwiseRandomPress
from kvguard.engine.presses import PressSpec, build_press, shortest_prompt
from kvguard.engine.rules import Fair, Protected, Rule, ruled, unmet
from kvguard.errors import KvguardError
from kvguard.studies.instructions.arms import FAIR, PROTECTED, RANDOM, STREAMING, SYSTEM, Arm
from kvguard.studies.instructions.places import Encoded

if TYPE_CHECKING:
    from kvpress import BasePress
    from transformers import PreTrainedModel


class Unfit(Exception):
    """An arm cannot be had on an example; its message says why."""


def press_for(
    model: PreTrainedModel, arm: Arm, asked: Encoded, specs: Mapping[str, PressSpec], seed: int
) -> BasePress:
    """Build the press of an arm for one prompt.

    Random eviction is drawn anew for each prompt, and alike in all arms that evict at random.

    Raises
    ------
    Unfit
        The words to be protected are not known, or take more than the budget; or the press wants a longer
        prompt.
    KvguardError
        The press does not take its parameters, or cannot be held to a rule.
    """
    n = len(asked.ids)
    press = _press(arm, n, specs, zlib.crc32(f"{seed} {asked.example.key}".encode()))
    if n < shortest_prompt(press):
        raise Unfit(f"the press needs {shortest_prompt(press)} tokens")
    rule = _rule(arm, asked)
    if rule is None:
        return press
    held = ruled(press, rule)
    why = unmet(model, press, rule, n)
    if why is not None:
        raise Unfit(why.partition(":")[0])
    return held


def check_press_of(arm: Arm, specs: Mapping[str, PressSpec]) -> None:
    """Check that an arm's press can be built, and be held to the arm's rule, before anything runs.

    Raises
    ------
    KvguardError
        It cannot.
    """
    if not arm.evicts:
        return
    press = _press(arm, 1000, specs, 0)
    try:
        if arm.treatment in (PROTECTED, SYSTEM):
            ruled(press, Protected(()))
        elif arm.treatment == FAIR:
            ruled(press, Fair(()))
    except KvguardError as error:
        raise KvguardError(f"conditions: {arm}: {error}") from None


def protected_by(arm: Arm, asked: Encoded) -> int:
    """Return how many tokens of a prompt an arm never evicts."""
    rule = _rule(arm, asked)
    return rule.needed(len(asked.ids)) if rule is not None else 0


def keep_ends(arm: Arm, n_tokens: int) -> KeepEndsPress:
    """Build the press that keeps both ends of a prompt of ``n_tokens``, within the arm's budget."""
    return KeepEndsPress(arm.ratio_of(n_tokens), 0.5 if arm.initial is None else arm.initial)


def _press(arm: Arm, n_tokens: int, specs: Mapping[str, PressSpec], seed: int) -> BasePress:
    ratio = arm.ratio_of(n_tokens)
    if arm.press == STREAMING:
        return keep_ends(arm, n_tokens)
    if arm.press == RANDOM:
        return LayerwiseRandomPress(ratio, seed)
    return build_press(specs[arm.press], ratio)


def _rule(arm: Arm, asked: Encoded) -> Rule | None:
    if arm.treatment == SYSTEM:
        if asked.system is None:
            raise Unfit("it has no system prompt")
        return Protected(asked.system)
    if arm.treatment not in (PROTECTED, FAIR):
        return None
    known = [place for place in asked.instructions if place is not None]
    if len(known) < len(asked.instructions):
        raise Unfit("the words of an instruction cannot be told apart")
    if arm.treatment == FAIR:
        return Fair(tuple(known))
    return Protected(tuple(sorted({place for places in known for place in places})))
