"""Whether a model's caches are exact once they are cut and moved."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from kvguard import stage
from kvguard.cli.asking import Asked, check_model, serving_options

if TYPE_CHECKING:
    from kvguard.engine.surgery.gate import GateReport


@click.command()
@serving_options
@stage.one_line_errors
def gate(asked: Asked) -> None:
    """Check that a model's caches are exact after they were cut, moved and asked; exit with 1 if they are
    not.

    Six checks against the model itself, in float32 unless --dtype says otherwise: the bounds are those of
    float32.
    """
    from kvguard.engine.surgery.gate import gate as check
    from kvguard.errors import KvguardError
    from kvguard.models.load import load_model
    from kvguard.studies.directed.tokens import Tokens

    model, known = dataclasses.replace(asked, dtype=asked.dtype or "float32").settings()
    check_model(known, model)
    loaded = load_model(model, known.spec(model), known.device)
    report = check(loaded.model, bos=Tokens.of(loaded).bos)
    click.echo(_told(report))
    if not report.passed:
        raise KvguardError(
            f"{model}: the gate failed: directed caches of this model are not exact in {report.dtype}; use "
            "it in float32, or another model"
        )


def _told(report: GateReport) -> str:
    from kvguard.report.terminal import table

    rows = [
        [
            f"{check.number} {check.says}",
            f"{check.error:.1e}",
            f"{check.bound:.0e}",
            check.unit,
            "pass" if check.passed else "FAIL",
        ]
        for check in report.checks
    ]
    windows = ", ".join(map(str, report.windows)) or "none"
    narrowed = f" (narrowed from {report.narrowed_from})" if report.narrowed_from else ""
    return "\n".join(
        [
            f"{report.model} in {report.dtype}, sliding windows: {windows}{narrowed}",
            "",
            table(["check", "error", "at most", "in", ""], rows),
            "",
            "passed" if report.passed else "FAILED",
        ]
    )
