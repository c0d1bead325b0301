"""A certificate: which compression of which model is certified to stay within which losses, and for what.

``kvguard recommend`` writes it. A guard or a server that is given one rejects what it does not cover: another
model, press, ratio, guard or token budget. So what is promised is asked of exactly what was measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kvguard.config import Count, Natural, Ratio, Section, Share, Text
from kvguard.engine.presses import asked_ratio, build_press
from kvguard.errors import KvguardError
from kvguard.guard.settings import Action

if TYPE_CHECKING:
    from kvpress import BasePress

FILE = "certificate.json"
_AGAIN = "make it again with `kvguard recommend`"


class PressOf(Section):
    """A kvpress press by class name, and the arguments it is built with (all but the ratio)."""

    press: Text
    params: dict[str, Any]


class Bounds(Section):
    """What was asked for: rates of at most so much, with this confidence."""

    max_added_cbr: Share
    max_lost_answers: Share | None
    confidence: Share


class Certified(Section):
    """One setting that is certified: a compressor at a ratio, with or without the guard.

    ``action`` is ``none`` without a guard. ``added`` and ``lost`` are the calibration prompts with an added
    catastrophe and with a lost answer (null: not scored), ``kv_saved`` the mean share of memory. ``scores``
    are what the guard thought of each prompt, for :mod:`.drift`; empty where nothing watched.
    """

    compressor: Text
    ratio: Ratio
    action: Action
    added: Natural
    lost: Natural | None
    kv_saved: float
    scores: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.compressor}@{self.ratio:g}" + (f" under {self.action}" if self.guarded else "")

    @property
    def guarded(self) -> bool:
        """Whether it was certified with a guard."""
        return self.action is not Action.NONE


class GuardOf(Section):
    """The guard that the guarded settings were certified with."""

    digest: Text
    point: Text
    max_rewinds: Natural
    resume: bool
    rewind_below: Share


@dataclasses.dataclass(frozen=True)
class Use:
    """How a model is about to be used.

    Attributes
    ----------
    weights
        See :func:`kvguard.models.identity.weights_digest`.
    press
        None: nothing is compressed.
    action
        ``none`` without a guard.
    guard
        Of the guard in use, if any.
    """

    weights: str
    press: BasePress | None
    action: Action
    max_new_tokens: int
    guard: GuardOf | None = None
    interval: int | None = None
    greedy: bool = True


class Certificate(Section):
    """What was certified of one model.

    Attributes
    ----------
    model, weights
        Its name in the settings, and :func:`kvguard.models.identity.weights_digest`.
    n, n_scored
        Calibration prompts, and those of them whose answers were scored.
    max_new_tokens
        The token budget of a text.
    promise
        In words.
    compressors
        The press of each compressor that ``certified`` names.
    certified
        Every certified setting; ``recommended`` is the place of the one that saves most.
    """

    model: Text
    weights: Text
    task: Text
    n: Count
    n_scored: Natural
    max_new_tokens: Count
    bounds: Bounds
    promise: Text
    compressors: dict[str, PressOf]
    guard: GuardOf | None
    certified: tuple[Certified, ...]
    recommended: Natural | None

    @classmethod
    def load(cls, path: Path | str) -> Certificate:
        """Read a certificate.

        Raises
        ------
        KvguardError
            The file cannot be read, or is none.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError("it is no object")
            found = cls.model_validate(data)
            unknown = [one.compressor for one in found.certified if one.compressor not in found.compressors]
            if unknown:
                raise ValueError(f"it does not say what {unknown[0]} is")
            if found.recommended is not None and found.recommended >= len(found.certified):
                raise ValueError("it recommends what it does not certify")
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise KvguardError(f"{path}: no certificate ({where}: {wrong['msg']}): {_AGAIN}") from None
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())[:160]
            raise KvguardError(f"{path}: no certificate ({said}): {_AGAIN}") from None
        return found

    def check(self, use: Use) -> Certified | None:
        """Reject a use that is not certified; return the setting that covers it, None for no compression.

        Raises
        ------
        KvguardError
            Naming what differs, what was certified, and the fix.
        """
        if use.weights != self.weights:
            raise KvguardError(
                f"policy: it was certified for the model {self.model}, whose weights are others: load that "
                f"model, or certify this one ({_AGAIN})"
            )
        if use.press is None:
            return None
        if use.max_new_tokens > self.max_new_tokens:
            raise KvguardError(
                f"policy: texts of at most {self.max_new_tokens} new tokens were certified, not of "
                f"{use.max_new_tokens}: pass max_new_tokens={self.max_new_tokens} or less"
            )
        if use.interval is not None:
            raise KvguardError(
                "policy: compression while decoding was not certified: leave compression_interval out"
            )
        if not use.greedy:
            raise KvguardError("policy: greedy texts were certified, not sampled ones: pass temperature=0")
        name = self._compressor(use.press)
        ratio, known = asked_ratio(use.press), [one for one in self.certified if one.compressor == name]
        at = [one for one in known if ratio is not None and abs(one.ratio - ratio) < 1e-9]
        if not at:
            listed = ", ".join(map(str, known)) or "no ratio of it"
            listed += " are" if len(known) > 1 else " is"
            shown = "unknown" if ratio is None else f"{ratio:g}"
            raise KvguardError(f"policy: {name} at ratio {shown} is not certified: {listed}")
        return self._with_guard(use, at)

    def _with_guard(self, use: Use, at: list[Certified]) -> Certified:
        """Return the setting that has the use's guard, or none at all."""
        for one in at:
            if one.action is use.action and (not one.guarded or use.guard == self.guard):
                return one
        if not any(one.action is use.action for one in at):
            did = f"the action {use.action}" if use.action is not Action.NONE else "no guard"
            raise KvguardError(f"policy: certified is {' or '.join(map(str, at))}, not with {did}: use that")
        assert self.guard is not None
        theirs, own = self.guard.model_dump(), use.guard.model_dump() if use.guard is not None else {}
        name = next(name for name, value in theirs.items() if own.get(name) != value)
        said = (
            "the guard's files differ"
            if name == "digest"
            else f"{name} is {own.get(name)}, not {theirs[name]}"
        )
        raise KvguardError(
            f"policy: {at[0]} was certified with another guard ({said}): use that one, or {_AGAIN}"
        )

    def _compressor(self, press: BasePress) -> str:
        """Return the name of the compressor that a press is; reject one that is none of them."""
        differing: list[str] = []
        for name, spec in self.compressors.items():
            if spec.press == type(press).__name__:
                found = _difference(press, build_press(spec, asked_ratio(press) or 0.0))
                if found is None:
                    return name
                differing.append(f"{name} has {found}")
        if differing:
            raise KvguardError(f"policy: press {type(press).__name__}: {'; '.join(differing)}: build it so")
        known = ", ".join(f"{name} ({spec.press})" for name, spec in self.compressors.items()) or "nothing"
        raise KvguardError(f"policy: press {type(press).__name__} is not certified: {known} is")


def _difference(press: Any, certified: Any) -> str | None:
    """Return an argument of a press that differs from the certified one's, as it was certified."""
    if type(press) is not type(certified):
        return f"the class {type(certified).__module__}.{type(certified).__name__}"
    for field in dataclasses.fields(certified):
        if not field.init or field.name == "compression_ratio":
            continue
        theirs, own = getattr(certified, field.name), getattr(press, field.name, None)
        nested = dataclasses.is_dataclass(theirs)
        if (_difference(own, theirs) is not None) if nested else theirs != own:
            return f"{field.name}={theirs!r}, not {own!r}"
    return None


def promise(model: str, task: str, n: int, bounds: Bounds) -> str:
    """Say in one sentence what a certificate promises."""
    lost = (
        ""
        if bounds.max_lost_answers is None
        else (f" and turns a right answer wrong in at most {bounds.max_lost_answers:g} of them")
    )
    return (
        f"With {bounds.confidence:.6g} confidence over the draw of the {n} calibration prompts, every "
        f"certified setting of {model} adds a catastrophe to at most {bounds.max_added_cbr:g} of the texts"
        f"{lost}, on prompts that are exchangeable with those of {task}; it says nothing of others."
    )


def usage(entry: Certified, compressors: Mapping[str, PressOf]) -> str:
    """Return the press of a setting as Python builds it."""
    spec = compressors[entry.compressor]
    arguments = "".join(f", {name}={value!r}" for name, value in spec.params.items())
    return f"{spec.press}(compression_ratio={entry.ratio:g}{arguments})"
