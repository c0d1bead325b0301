"""What a run's report is made of: numbers, tables, figures and a page, all from its results on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvguard.report import markup, page
from kvguard.report.numbers import Cell, Kind, Numbers, Table
from kvguard.report.page import Chapter, Findings, Picture, Section, Tile
from kvguard.store.files import write_json, write_text
from kvguard.store.results import Results
from kvguard.studies.instructions import journal, layout
from kvguard.studies.instructions.arms import BASELINE
from kvguard.studies.instructions.chapter.figures import draw
from kvguard.studies.instructions.chapter.findings import findings
from kvguard.studies.instructions.chapter.tables import tables
from kvguard.studies.instructions.statistics.answers import Answers
from kvguard.studies.instructions.statistics.judged import add_calls
from kvguard.studies.instructions.statistics.measure import STAGE, measure

TITLE = "Does a model still do what it was told?"
_SECTIONS = (  # anchor, title, text, tables, figures
    (
        "followed",
        "Instructions followed",
        "The model reads the whole prompt; then a part of its cache is evicted, and it answers.",
        ("followed", "against-baseline"),
        ("followed-by-ratio.png",),
    ),
    (
        "strategy",
        "Does the strategy matter?",
        "Or would chance do as well? Each press against random eviction that keeps as many entries.",
        ("strategy",),
        ("strategy.png",),
    ),
    (
        "treatments",
        "Protection, fair shares, guard",
        "What is protected is paid for by other entries: the budget is the same.",
        ("treatments",),
        (),
    ),
    (
        "types",
        "Which instructions",
        "By type (the table of all is tables/types.md), by where they stand, and which of two goes first.",
        ("positions", "first-forgotten"),
        ("types.png",),
    ),
    (
        "text-removal",
        "Text removal",
        "Never to have heard a sentence is not the same as to have heard and forgotten it.",
        ("text-removal",),
        (),
    ),
    (
        "foreseen",
        "Catastrophes and the hazard",
        "Failures of the same answers, and whether the guard's hazard foresees a forgotten instruction.",
        ("foreseen",),
        (),
    ),
    (
        "judge",
        "Rules and judge",
        "Rules first; the judge where there is none, blind to how an answer came about.",
        ("judge", "judge-calls"),
        (),
    ),
)


def build(folder: Path, n_resamples: int, seed: int) -> Results:
    """Measure a run and write its numbers, tables, figures and page into its folder.

    Raises
    ------
    KvguardError
        The folder holds no results.
    """
    settings, rows, notes = journal.read(folder)
    model, suite = settings["model"], settings["suite"]
    answers = Answers.of(rows, n_resamples, seed)
    results = measure(answers, model, suite)
    add_calls(results, notes)
    results.write(layout.results(folder))
    frame = results.frame
    numbers = Numbers(frame, by_protocol=(STAGE,))
    found = tables(numbers, model, suite)
    markup.write(found.values(), layout.tables(folder))
    title = f"{model}, {suite}, {len(answers.keys)} examples"
    pictures = {
        path.name: Picture.read(path, caption, model)
        for path, caption in draw(frame, answers.arms, title, layout.figures(folder))
    }
    chapter = _chapter(settings, answers, numbers, found, pictures)
    write_text(layout.page(folder), page.render([chapter]))
    write_json(layout.metrics(folder), results.metrics(*found))
    return results


def _chapter(
    settings: Mapping[str, Any],
    answers: Answers,
    numbers: Numbers,
    found: Mapping[str, Table],
    pictures: Mapping[str, Picture],
) -> Chapter:
    model, suite = settings["model"], settings["suite"]
    lead = (
        f"{model} on {len(answers.keys)} examples of the suite {suite}, instructions in the "
        f"{settings['placement']} prompt, {len(answers.arms)} arms, up to {settings['max_new_tokens']} new "
        "tokens, greedy."
    )
    tile = Tile(
        "prompts with all instructions followed, uncompressed",
        Cell(numbers.get(STAGE, model, suite, "followed", BASELINE, "prompt_strict"), Kind.PERCENT),
        "%",
    )
    sections = [
        Section(
            anchor,
            title,
            text,
            pictures=_there(pictures, figures),
            tables=_there(found, names),
        )
        for anchor, title, text, names, figures in _SECTIONS
        if _there(found, names) or _there(pictures, figures)
    ]
    said = Findings(model, findings(answers, numbers, model, suite), [tile])
    return Chapter("Instructions", TITLE, lead, [said], sections, caveat=_caveat(settings))


def _there(found: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    return [found[name] for name in names if name in found]


def _caveat(settings: Mapping[str, Any]) -> str:
    judge = settings["judge"]
    if judge["url"] or judge["command"]:
        return ""
    return "No judge was asked: instructions that no rule can check are not scored."
