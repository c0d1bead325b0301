"""The tables of the ``certify`` stage: whether certificates hold, and what they allowed on fresh prompts."""

from __future__ import annotations

from collections.abc import Sequence

from kvguard.report.numbers import Cell, Kind, Table
from kvguard.studies.catastrophes.chapter.pipeline import Column, Pipeline, groups_of

STAGE = "certify"
_COVERAGE: tuple[Column, ...] = (
    ("anything certified, % of splits", "certified", Kind.PERCENT),
    ("KV saved, %", "kv_saved", Kind.PERCENT),
    ("broken, held-out rate, %", "violations", Kind.PERCENT),
    ("contradicted, %", "contradicted", Kind.PERCENT),
    ("broken, known rate, %", "violations_known", Kind.PERCENT),
)
_FRESH: tuple[Column, ...] = (
    ("certified", "certified", Kind.COUNT),
    ("of settings", "tested", Kind.COUNT),
    ("up to the ratio", "ratio", Kind.FRACTION),
    ("KV saved, %", "kv_saved", Kind.PERCENT),
    ("added CBR, held out, %", "added", Kind.PERCENT),
    ("lost answers, held out, %", "lost", Kind.PERCENT),
    ("broken", "broken", Kind.COUNT),
)


def certified_tables(pipeline: Pipeline) -> list[Table]:
    """Return the tables of the ``certify`` stage."""
    settings = pipeline.params.certify
    asked = (
        f"Limits: alpha on added catastrophes, {settings.max_lost_answers:g} on lost answers, confidence "
        f"{settings.confidence:g}. "
    )
    return [
        _table(
            pipeline, "certified-coverage", "Do certificates hold?",
            f"{asked}{settings.n_splits} random splits of the sweep's prompts: one part certifies, the other "
            "checks. Broken, held-out rate: a certified setting's rate on the other part is above a limit, "
            "which chance does as well to one just below it; contradicted: so far above that an exact test "
            "at 5 % says so. Broken, known rate: the same prompts as the whole "
            "population, calibration prompts drawn from it with replacement. Brackets: exact intervals "
            "of so many splits. KV saved: a mean over splits, 0 where nothing is certified. All: one family, "
            "the others each by themselves. The guard is simulated.",
            "coverage", _COVERAGE,
        ),
        _table(
            pipeline, "certified-fresh", "Certified and checked live",
            f"{asked}Fresh prompts of the live guard: half of them certify, each policy by itself, and half "
            "check. The guard acted. Brackets: exact 95 % intervals.",
            "fresh", _FRESH,
        ),
    ]  # fmt: skip


def _table(
    pipeline: Pipeline, name: str, title: str, note: str, table: str, columns: Sequence[Column]
) -> Table:
    numbers = pipeline.numbers

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        return [
            (
                *subject.split("/"),
                *(Cell(numbers.get(STAGE, model, "", table, subject, m), kind) for _, m, kind in columns),
            )
            for subject in numbers.subjects(STAGE, model, "", table)
        ]

    heads = ("compressor", "guard", "alpha", *(head for head, _, _ in columns))
    return Table(name, title, note, heads, 3, groups_of(pipeline, STAGE, rows))
