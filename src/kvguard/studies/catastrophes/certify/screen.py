"""A recommendation as one screen, and as a certificate."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvguard.engine.presses import Condition
from kvguard.guard.certificate import Bounds, Certificate, Certified, GuardOf, PressOf, promise, usage
from kvguard.guard.settings import Action
from kvguard.report.terminal import table
from kvguard.studies.catastrophes.certify.losses import UNGUARDED, Setting
from kvguard.studies.catastrophes.certify.make import Guarded, Price
from kvguard.studies.catastrophes.certify.recommend import Recommendation, Row
from kvguard.sweep.settings import CompressorSpec

_HEADS = (
    *("policy", "certified to", "added", "lost", "KV saved", "alarms", "redrawn"),
    *("not", "added", "lost"),
)
_NOTE = "losses: of so many prompts; alarms: share of texts; redrawn: tokens a text that the guard threw away"
_WIDTH = 108

Cell = str | float | None


@dataclass(frozen=True)
class About:
    """What a recommendation is about.

    Attributes
    ----------
    model, weights, task, max_new_tokens
        See :class:`~kvguard.guard.certificate.Certificate`.
    source
        What ``--model`` was given.
    guard
        With which it was made, if with one.
    """

    model: str
    weights: str
    source: str
    task: str
    max_new_tokens: int
    compressors: Mapping[str, CompressorSpec]
    guard: Guarded | None = None
    guard_of: GuardOf | None = None
    price: Price | None = None


def certificate(found: Recommendation, about: About) -> Certificate:
    """Return the certificate of a recommendation."""
    limits = found.limits
    bounds = Bounds(
        max_added_cbr=limits.max_added_cbr,
        max_lost_answers=limits.max_lost_answers,
        confidence=limits.confidence,
    )
    rows = [row for row in found.rows if row.certified]
    names = dict.fromkeys(row.setting.compressor for row in rows)
    return Certificate(
        model=about.model,
        weights=about.weights,
        task=about.task,
        n=found.n,
        n_scored=found.n_scored,
        max_new_tokens=about.max_new_tokens,
        bounds=bounds,
        promise=promise(about.model, about.task, found.n, bounds),
        compressors={
            name: PressOf(press=spec.press, params=spec.params)
            for name, spec in about.compressors.items()
            if name in names
        },
        guard=about.guard_of if any(row.setting.action != UNGUARDED for row in rows) else None,
        certified=tuple(_certified(found, row) for row in rows),
        recommended=rows.index(found.best) if found.best is not None else None,
    )


def _certified(found: Recommendation, row: Row) -> Certified:
    setting = row.setting
    guarded = setting.action != UNGUARDED
    scores = found.losses.score[:, found.losses.settings.index(setting)]
    return Certified(
        compressor=setting.compressor,
        ratio=setting.ratio,
        action=Action(setting.action),
        added=row.added,
        lost=row.lost,
        kv_saved=round(row.kv_saved, 6),
        scores=tuple(round(float(one), 4) for one in scores[~np.isnan(scores)]) if guarded else (),
    )


def screen(found: Recommendation, about: About, path: Path) -> str:
    """Lay out a recommendation.

    Parameters
    ----------
    path
        Of its certificate.
    """
    limits = found.limits
    lost = (
        f", lost answers at most {limits.max_lost_answers:g}" if limits.max_lost_answers is not None else ""
    )
    parts = [
        f"{about.model}: {found.n} {about.task} prompts, {about.max_new_tokens} new tokens, greedy\n"
        f"asked for: added catastrophes at most {limits.max_added_cbr:g}{lost}, "
        f"confidence {limits.confidence:g}",
        _best(found, about),
        f"{table(_HEADS, _policies(found))}\n{_NOTE}",
        _twice(found),
    ]
    if found.best is not None:
        promised = textwrap.fill(certificate(found, about).promise, _WIDTH)
        parts += [promised, _lines(found.best, about, path)]
    return "\n\n".join(parts)


def _policies(found: Recommendation) -> list[list[Cell]]:
    """Return a row for each policy: how far it is certified, and what keeps it from the next ratio."""
    lines = []
    for policy in dict.fromkeys(row.setting.policy for row in found.rows):
        rows = [row for row in found.rows if row.setting.policy == policy]
        k = sum(row.certified for row in rows)
        last, following = (rows[k - 1] if k else None), (rows[k] if k < len(rows) else None)
        guarded = policy[1] != UNGUARDED
        star = " *" if last is not None and last == found.best else ""
        lines.append(
            [
                policy[0] + (f" under {policy[1]}" if guarded else "") + star,
                *_ratio_and_losses(last, "nothing"),
                last.kv_saved if last is not None else None,
                last.acted if last is not None and guarded else None,
                last.n_rewound if last is not None and guarded else None,
                *_ratio_and_losses(following, "-"),
            ]
        )
    return lines


def _ratio_and_losses(row: Row | None, otherwise: str) -> list[Cell]:
    if row is None:
        return [otherwise, None, None]
    lost = None if row.lost is None else f"{row.lost}/{row.n_scored}"
    return [f"{row.setting.ratio:g}", f"{row.added}/{row.n}", lost]


def _best(found: Recommendation, about: About) -> str:
    """Say what saves most, and what the guard costs where it serves most."""
    best = found.best
    if best is None:
        return "best: nothing is certified: do not compress, or allow more losses"
    saved = f"{best.kv_saved:.0%} of the KV memory, a mean over the steps of a text"
    lines = [f"best (*): {best.setting} saves {saved}"]
    guarded = [row for row in found.rows if row.certified and row.setting.action != UNGUARDED]
    if guarded:
        lines.append(_price(found, max(guarded, key=lambda row: row.kv_saved), about.price))
    return "\n".join(lines)


def _price(found: Recommendation, row: Row, price: Price | None) -> str:
    """Say what the guard costs at a setting."""
    setting = row.setting
    bare = found.row(Setting(setting.compressor, UNGUARDED, setting.ratio))
    said = [f"acts on {row.acted:.0%} of texts", f"draws {row.n_steps:.0f} tokens a text"]
    if bare is not None:
        said[-1] += f" ({bare.n_steps:.0f} without it)"
    said.append(f"{row.n_rewound:.1f} of them again")
    lines = [f"price of the guard, {setting}: {', '.join(said)}"]
    if price is not None:
        lines.append(f"  {price.per_token:+.0%} time a token, {price.restore_ms:.0f} ms a restore")
    return "\n".join(lines)


def _twice(found: Recommendation) -> str:
    """Say what twice the prompts would certify, were the rates of loss the same."""
    now = {row.setting for row in found.rows if row.certified}
    more = [setting for setting in found.with_twice if setting not in now]
    last = {setting.policy: setting for setting in more}
    said = ", ".join(map(str, last.values())) or "nothing more"
    return f"with {2 * found.n} prompts of the same rates of loss: {said}"


def _lines(best: Row, about: About, path: Path) -> str:
    """Return the lines that put the best setting to use."""
    setting = best.setting
    entry = Certified(
        compressor=setting.compressor,
        ratio=setting.ratio,
        action=Action(setting.action),
        added=best.added,
        lost=best.lost,
        kv_saved=best.kv_saved,
    )
    spec = about.compressors[setting.compressor]
    press = usage(entry, {setting.compressor: PressOf(press=spec.press, params=spec.params)})
    condition = Condition(setting.compressor, setting.ratio)
    serve = ["kvguard", "serve", "--model", about.source]
    serve += ["--compressor", condition.compressor, "--ratio", f"{condition.ratio:g}"]
    if about.guard is None:
        call = f"press = {press}  # of kvpress"
    else:
        bundle, point = str(about.guard.bundle), about.guard.point
        call = (
            f"guard = Guard.load({bundle!r}, {point!r}, policy={str(path)!r})\n"
            f"guard.generate(model, tokenizer, prompts, press={press},\n"
            f"    action={setting.action!r}, max_new_tokens={about.max_new_tokens})"
        )
        if setting.action != UNGUARDED:
            serve += ["--guard", bundle, "--action", setting.action, "--point", point]
    serve += ["--policy", str(path)]
    return f"{call}\n{shlex.join(serve)}"
