"""A recommendation as one screen, and as a certificate."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvguard.engine.presses import Condition
from kvguard.guard.certificate import Bounds, Certificate, Certified, GuardOf, PressOf, promise, usage
from kvguard.guard.settings import Action
from kvguard.report.terminal import table
from kvguard.stats.binomial import rate
from kvguard.studies.catastrophes.certify.losses import UNGUARDED
from kvguard.studies.catastrophes.certify.make import Guarded, Price
from kvguard.studies.catastrophes.certify.recommend import Recommendation, Row
from kvguard.sweep.settings import CompressorSpec

_HEADS = ("setting", "certified", "saved", "added", "lost", "alarms", "regenerated")


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
        scores=tuple(round(float(one), 4) for one in scores) if guarded else (),
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
        table(_HEADS, [_cells(row, found) for row in _shown(found)]),
        _twice(found),
    ]
    if found.best is not None:
        parts += [certificate(found, about).promise, _lines(found.best, about, path)]
    return "\n\n".join(parts)


def _shown(found: Recommendation) -> list[Row]:
    """Return each policy's last certified setting and the first that is not."""
    shown = []
    for policy in dict.fromkeys(row.setting.policy for row in found.rows):
        rows = [row for row in found.rows if row.setting.policy == policy]
        k = sum(row.certified for row in rows)
        shown += rows[max(k - 1, 0) : k + 1]
    return shown


def _cells(row: Row, found: Recommendation) -> list[str | float | None]:
    def counted(losses: int | None, n: int) -> str | None:
        return None if losses is None else f"{losses} of {n}"

    guarded = row.setting.action != UNGUARDED
    return [
        str(row.setting) + (" *" if row == found.best else ""),
        "yes" if row.certified else "no",
        row.kv_saved,
        counted(row.added, row.n),
        counted(row.lost, row.n_scored),
        row.acted if guarded else None,
        row.n_rewound if guarded else None,
    ]


def _best(found: Recommendation, about: About) -> str:
    best = found.best
    if best is None:
        return "best: nothing is certified: do not compress, or allow more losses"
    lines = [
        f"best: {best.setting}: saves {best.kv_saved:.0%} of the KV memory, a mean over the steps of a text"
    ]
    at_most = rate(best.added, best.n).high
    lines[0] += f"; added catastrophes {best.added / best.n:.3f} (95 % interval to {at_most:.3f})"
    if best.setting.action != UNGUARDED:
        bare = found.row(type(best.setting)(best.setting.compressor, UNGUARDED, best.setting.ratio))
        lines.append(_price(best, bare, about.price))
    return "\n".join(lines)


def _price(best: Row, bare: Row | None, price: Price | None) -> str:
    """Say what the guard costs at the best setting."""
    said = [f"acts on {best.acted:.0%} of texts", f"regenerates {best.n_rewound:.1f} tokens a text"]
    if bare is not None:
        said.append(f"draws {best.n_steps:.0f} tokens a text ({bare.n_steps:.0f} without it)")
    if price is not None:
        said.append(f"{price.per_token:+.0%} time a token, {price.restore_ms:.0f} ms a restore")
    return f"price of the guard: {', '.join(said)}"


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
    if about.guard is None or setting.action == UNGUARDED:
        call = f"with {press}(model): model.generate(...)  # kvpress"
        call = f"press = {press}"
    else:
        load = f"Guard.load({str(about.guard.bundle)!r}, {about.guard.point!r}, policy={str(path)!r})"
        call = (
            f"{load}.generate(\n    model, tokenizer, prompts, press={press},\n"
            f"    action={setting.action!r}, max_new_tokens={about.max_new_tokens})"
        )
        serve += [
            "--guard",
            str(about.guard.bundle),
            "--action",
            setting.action,
            "--point",
            about.guard.point,
        ]
    serve += ["--policy", str(path)]
    return f"{call}\n{shlex.join(serve)}"
