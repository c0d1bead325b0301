"""Which compression is safe for a workload: the library call behind ``kvguard recommend``.

found = recommend(read_judged(folder / "traces.parquet"), Limits(max_added_cbr=0.02))
found.best.setting, found.best.kv_saved
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.errors import KvguardError
from kvguard.stats.binomial import p_below, prompts_needed
from kvguard.stats.certify import both, certify
from kvguard.studies.catastrophes.certify.losses import (
    UNGUARDED,
    Floats,
    Losses,
    Setting,
    losses_of,
    outcomes_of,
)


@dataclass(frozen=True)
class Limits:
    """What a certified setting keeps to.

    Attributes
    ----------
    max_added_cbr
        The share of prompts to which compression may add a catastrophe.
    max_lost_answers
        The share of prompts whose right answer it may turn wrong; None where nothing is scored.
    confidence
        With which all certified settings together keep to them.

    Raises
    ------
    KvguardError
        One is not between 0 and 1.
    """

    max_added_cbr: float = 0.02
    max_lost_answers: float | None = 0.05
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name, why in {
            "max_added_cbr": "no sample shows that a thing never happens",
            "max_lost_answers": "no sample shows that a thing never happens",
            "confidence": "no sample makes certain",
        }.items():
            value = getattr(self, name)
            if value is None and name == "max_lost_answers":
                continue
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise KvguardError(f"{name}: {value!r} lies not between 0 and 1, both left out: {why}")

    def with_default_lost(self, limit: float | None) -> Limits:
        """Return these limits, with one on lost answers where none was given."""
        return self if self.max_lost_answers is not None else replace(self, max_lost_answers=limit)

    @property
    def delta(self) -> float:
        """The probability that is left for being wrong."""
        return 1 - self.confidence


@dataclass(frozen=True)
class Row:
    """What was counted of one setting, and whether it is certified.

    Attributes
    ----------
    n, n_scored
        Prompts, and those of them that are scored.
    added, lost
        Prompts with an added catastrophe; with a lost answer, None where nothing is asked of answers.
    kv_saved, n_tokens, n_steps, n_rewound, acted
        Means over prompts: see :class:`~.losses.Losses`.
    """

    setting: Setting
    n: int
    n_scored: int
    added: int
    lost: int | None
    certified: bool
    kv_saved: float
    n_tokens: float
    n_steps: float
    n_rewound: float
    acted: float


@dataclass(frozen=True)
class Recommendation:
    """Everything that was tested, and what is certified.

    Attributes
    ----------
    rows
        Policy by policy, each from mild to severe.
    with_twice
        What would be certified if twice the prompts had the same rates of loss.
    """

    limits: Limits
    n: int
    n_scored: int
    rows: tuple[Row, ...]
    with_twice: tuple[Setting, ...]
    losses: Losses

    @property
    def best(self) -> Row | None:
        """The certified setting that saves most memory; of equals the unguarded one, then the milder."""
        return self._most(self.rows)

    @property
    def by_compressor(self) -> dict[str, Row | None]:
        """The best certified setting of each compressor; None: it has none."""
        names = dict.fromkeys(row.setting.compressor for row in self.rows)
        return {name: self._most(r for r in self.rows if r.setting.compressor == name) for name in names}

    def row(self, setting: Setting) -> Row | None:
        """Return the row of a setting, if it was tested."""
        return next((row for row in self.rows if row.setting == setting), None)

    @staticmethod
    def _most(rows: Iterable[Row]) -> Row | None:
        certified = [row for row in rows if row.certified]
        order = lambda row: (-row.kv_saved, row.setting.action != UNGUARDED, row.setting.ratio)  # noqa: E731
        return min(certified, key=order, default=None)


def recommend(traces: pd.DataFrame, limits: Limits, *, model: str | None = None) -> Recommendation:
    """Certify what can be certified of judged traces, all of it together at the confidence of ``limits``.

    Every policy, a compressor with or without a guard, is a fixed sequence from its mildest ratio on; see
    :mod:`kvguard.stats.certify`. All losses are 0 or 1 and all tests exact.

    Parameters
    ----------
    traces
        Judged traces of a sweep, or a live table, as :func:`kvguard.judging.judge.read_judged` reads them:
        the calibration prompts, all under the same conditions, uncompressed among them.
    model
        The model that they shall be of.

    Raises
    ------
    KvguardError
        They are another model's, or none is uncompressed; a prompt lacks a text; answers are to be kept and
        none is scored; or there are too few prompts to certify anything, with the number that would do.
    """
    others = sorted(set(traces["model"]) - {model}) if model is not None and "model" in traces else []
    if others:
        raise KvguardError(f"traces: they are of {others[0]}, not of {model}: make this model's own")
    return recommend_of(losses_of(outcomes_of(traces)), limits)


def recommend_of(losses: Losses, limits: Limits) -> Recommendation:
    """Certify what can be certified of paired losses; see :func:`recommend`."""
    n, n_scored = len(losses.prompt_ids), int(losses.scored.sum())
    check_enough(n, n_scored, len(losses.policies), limits)
    everyone = np.ones((1, n))
    [certified] = certified_by(everyone, losses, limits)
    [twice] = certified_by(2 * everyone, losses, limits)
    lost = lost_of(losses).sum(axis=0) if limits.max_lost_answers is not None else None
    rows = tuple(
        Row(
            setting,
            n,
            n_scored,
            int(losses.added[:, s].sum()),
            int(lost[s]) if lost is not None else None,
            bool(certified[s]),
            **{name: float(values[:, s].mean()) for name, values in losses.cost.items()},
        )
        for s, setting in enumerate(losses.settings)
    )
    return Recommendation(
        limits, n, n_scored, rows, tuple(np.array(losses.settings, dtype=object)[twice]), losses
    )


def certified_by(weights: Floats, losses: Losses, limits: Limits) -> NDArray[np.bool_]:
    """Return which settings each sample of the prompts certifies. [R, S]

    Parameters
    ----------
    weights
        How often each prompt is in each sample. [R, P]
    """
    p = p_values(weights, losses, limits)
    policies = list(losses.policies.values())
    found = np.zeros(p.shape, dtype=bool)
    for r, row in enumerate(p):
        for places, k in zip(
            policies, certify([row[places] for places in policies], limits.delta), strict=True
        ):
            found[r, places[:k]] = True
    return found


def p_values(weights: Floats, losses: Losses, limits: Limits) -> Floats:
    """Return the p-value of each setting's breaking one of the limits, for each sample. [R, S]"""
    n = weights.sum(axis=1, keepdims=True)
    p = p_below(weights @ losses.added, n, limits.max_added_cbr)
    if limits.max_lost_answers is None:
        return p
    n_scored = (weights @ losses.scored)[:, None]
    return both(p, p_below(weights @ lost_of(losses), n_scored, limits.max_lost_answers))


def lost_of(losses: Losses) -> Floats:
    """Return the lost answers of scored prompts, 0 of the others. [P, S]"""
    found: Floats = np.where(losses.scored[:, None], losses.lost, 0.0)
    return found


def check_enough(n: int, n_scored: int, n_policies: int, limits: Limits) -> None:
    """Reject prompts that could certify nothing, even without a loss.

    Parameters
    ----------
    n, n_scored
        Prompts, and those of them that are scored.
    n_policies
        Compressors, twice with a guard.

    Raises
    ------
    KvguardError
        With the number that would do; or answers are to be kept, and none is scored.
    """
    if limits.max_lost_answers is not None and not n_scored:
        raise KvguardError(
            "max_lost_answers: no answer of this task is scored: add answers to the prompts, or ask for no "
            "limit on them"
        )
    asked: list[tuple[str, float, int, str]] = [("max_added_cbr", limits.max_added_cbr, n, "prompts")]
    if limits.max_lost_answers is not None:
        asked.append(("max_lost_answers", limits.max_lost_answers, n_scored, "scored prompts"))
    share = limits.delta / n_policies
    for name, limit, there, what in asked:
        needed = prompts_needed(limit, share)
        if there < needed:
            policies = "1 policy" if n_policies == 1 else f"{n_policies} policies"
            least = math.ceil(1000 * (1 - math.exp(math.log(share) / there))) / 1000
            raise KvguardError(
                f"{name}: {there} {what} cannot certify a rate of {limit:g} for {policies} at confidence "
                f"{limits.confidence:g}, even without a single loss: ask {needed}, or for {least:g}, or "
                "of fewer compressors"
            )
