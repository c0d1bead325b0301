"""The settings of the study: what may stand in its params.yaml, and what a command may say in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from kvguard.config import Count, Natural, Positive, Section, Share, Text, first_mistake, read_settings
from kvguard.errors import KvguardError
from kvguard.guard.settings import GuardParams
from kvguard.studies.instructions.arms import Treatment


class JudgeParams(Section):
    """Who judges what no rule can check: an endpoint or a command; nobody by default.

    ``max_calls`` and ``max_cost`` (dollars) bound one run; ``both`` is the share of answers that rules and
    judge both judge, to see whether they agree.
    """

    url: Text | None = None
    command: Text | None = None
    model: Text | None = None
    max_calls: Natural | None = None
    max_cost: Positive | None = None
    both: Share = 0.1


class Params(Section):
    """What is asked, under which arms, and how.

    ``placement`` puts the instructions where the suite has them (``user``) or into a system prompt.
    ``treatments`` are added to every condition that evicts. ``together`` is how many examples are decoded
    together, ``batch_size`` how many of their rows at a time. ``bundle`` is the folder of the guard that
    watches all answers, and acts in the arms that say so. ``stop_when`` ends the run once the interval of
    every difference to the baseline is this narrow.
    """

    suite: Text = "embedded"
    suite_path: Text | None = None
    placement: Literal["user", "system"] = "user"
    n: Count | None = 30
    seed: Natural = 17
    conditions: tuple[Text, ...] = ("streaming_llm@0.5", "random@0.5")
    treatments: tuple[Treatment, ...] = ()
    max_new_tokens: Count = 512
    stop_strings: tuple[Text, ...] = ()
    batch_size: Count = 64
    together: Count = 8
    bundle: Text | None = None
    point: Literal["conservative", "balanced", "aggressive"] = "balanced"
    guard: GuardParams = GuardParams()
    judge: JudgeParams = JudgeParams()
    stop_when: Positive | None = None
    n_resamples: Annotated[int, Field(strict=True, ge=100)] = 1000


def load_params(path: Path | None, given: Mapping[str, Any]) -> Params:
    """Open a file of settings, and put what a command says in their place.

    Raises
    ------
    KvguardError
        One line: the file or option, the key, the value, and how to fix it.
    """
    found = read_settings(path, "--settings") if path is not None else {}
    judge = {**(found.get("judge") or {}), **given.get("judge", {})}
    try:
        return Params(**{**found, **given, "judge": judge})
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise KvguardError(f"{where}{first_mistake(error, Params)}") from None
