"""What was found, in sentences whose every number, and every word of comparison, comes from the results."""

from __future__ import annotations

from collections.abc import Iterator

from kvguard.engine.presses import NONE
from kvguard.report.numbers import Cell, Kind, Numbers, fraction, known, percent, points
from kvguard.report.page import Tile
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.chapter import onset_findings
from kvguard.studies.catastrophes.chapter.comparison import failures_said, listed
from kvguard.studies.catastrophes.chapter.live_findings import live_headline, live_tiles
from kvguard.studies.catastrophes.chapter.live_tables import STAGE
from kvguard.studies.catastrophes.chapter.pipeline import Pipeline
from kvguard.studies.catastrophes.protocols import HEADLINE

OVERALL = "overall"
BALANCED = "controller-balanced"
LEVEL = 0.05  # of the tests

CAVEAT = (
    "The reference models are small models of our own that ship with kvguard and solve made-up arithmetic: "
    "their numbers show how the tool works, and say nothing about language models at large."
)


def tiles(pipeline: Pipeline, model: str) -> list[Tile]:
    """Return the headline numbers of a model that were measured."""
    numbers = pipeline.numbers
    controller = ("evaluate", model, HEADLINE, BALANCED, OVERALL)
    outcomes = ("measure", model, "", "outcomes")
    wanted = (
        ("CBR uncompressed", numbers.get(*outcomes, NONE, "cbr"), Kind.PERCENT, " %"),
        ("CBR, all compressed", numbers.get(*outcomes, OVERALL, "cbr"), Kind.PERCENT, " %"),
        (
            "AUROC before the onset",
            numbers.get("train", model, HEADLINE, "predictor", "pre_onset", "auroc"),
            Kind.FRACTION,
            "",
        ),
        (
            "AUROC, tokens of one index",
            numbers.get("train", model, HEADLINE, "predictor", "pre_onset", "matched_auroc"),
            Kind.FRACTION,
            "",
        ),
        ("CBR reduction, simulated", numbers.get(*controller, "reduction"), Kind.PERCENT, " points"),
        ("its false positives", numbers.get(*controller, "false_positive_rate"), Kind.PERCENT, " %"),
        ("KV memory still saved", numbers.get(*controller, "kv_saved_controlled"), Kind.PERCENT, " %"),
        *((label, found, Kind.PERCENT, " %") for label, found in live_tiles(numbers, model)),
    )
    return [Tile(label, Cell(found, kind), unit) for label, found, kind, unit in wanted if known(found)]


def sentences(pipeline: Pipeline, model: str) -> list[str]:
    """Return what was found on a model; stages that were not run add nothing."""
    numbers = pipeline.numbers
    return [
        *_outcomes(numbers, model),
        *_tests(numbers, model),
        *onset_findings.answers(numbers, model),
        *onset_findings.onsets(numbers, model),
        *_forecast(numbers, model),
        *onset_findings.clocks(numbers, model, [OVERALL]),
        *_control(numbers, model),
        *onset_findings.alarms(numbers, model),
        *live_headline(numbers, model),
        *_protocols(pipeline, model),
        *_transfer(numbers, model),
    ]


def _outcomes(numbers: Numbers, model: str) -> Iterator[str]:
    def rate(subject: str, metric: str) -> Interval:
        return numbers.get("measure", model, "", "outcomes", subject, metric)

    conditions = [
        subject
        for subject in numbers.subjects("measure", model, "", "outcomes")
        if subject not in (NONE, OVERALL) and known(rate(subject, "cbr"))
    ]
    if not conditions or not known(rate(NONE, "cbr"), rate(OVERALL, "cbr")):
        return
    before, after = rate(NONE, "accuracy"), rate(OVERALL, "accuracy")
    scored = f" Accuracy: {percent(before)} and {percent(after)}." if known(before, after) else ""
    yield (
        f"Uncompressed, {percent(rate(NONE, 'cbr'))} of the traces end in a catastrophe; over the "
        f"{len(conditions)} compressed conditions together it is {percent(rate(OVERALL, 'cbr'))}.{scored}"
    )
    ordered = sorted(conditions, key=lambda subject: rate(subject, "cbr").value)
    low, high = ordered[0], ordered[-1]
    yield (
        f"The lowest CBR of a condition is {percent(rate(low, 'cbr'))} ({low}), "
        f"the highest {percent(rate(high, 'cbr'))} ({high})."
    )


def _tests(numbers: Numbers, model: str) -> Iterator[str]:
    for table, against in (
        ("against_none", "no compression"),
        ("against_random", "random eviction at the same ratio"),
    ):
        subjects = numbers.subjects("measure", model, "", table)
        found = [
            numbers.get("measure", model, "", table, subject, "cbr_difference").value
            for subject in subjects
            if numbers.get("measure", model, "", table, subject, "cbr_p_holm").value < LEVEL
        ]
        if subjects:
            yield (
                f"Against {against}, {len(found)} of {len(subjects)} conditions differ in CBR at "
                f"{LEVEL * 100:.0f} % after Holm's correction: {sum(d > 0 for d in found)} have more "
                f"catastrophes, {sum(d < 0 for d in found)} fewer."
            )


def _forecast(numbers: Numbers, model: str) -> Iterator[str]:
    auroc = numbers.get("train", model, HEADLINE, "predictor", "pre_onset", "auroc")
    if not known(auroc):
        return
    clock = numbers.get("ablate", model, "", "features", "position_only", "auroc")
    seen = "; a model that sees nothing but the token's position reaches "
    beside = f"{seen}{fraction(clock)}" if known(clock) else ""
    yield (
        "On prompts that it never saw, the hazard model ranks tokens before an onset with an AUROC of "
        f"{fraction(auroc)}{beside}."
    )


def _control(numbers: Numbers, model: str) -> Iterator[str]:
    def rate(metric: str) -> Interval:
        return numbers.get("evaluate", model, HEADLINE, BALANCED, OVERALL, metric)

    if not known(rate("cbr_uncontrolled"), rate("cbr_controlled")):
        return
    yield (
        f"Simulated on test prompts at the balanced operating point, CBR goes from "
        f"{percent(rate('cbr_uncontrolled'))} to {percent(rate('cbr_controlled'))}, with SAFE in "
        f"{percent(rate('false_positive_rate'))} of the traces without a catastrophe; the KV memory saved "
        f"goes from {percent(rate('kv_saved_uncontrolled'))} to {percent(rate('kv_saved_controlled'))}. "
        f"This is a forecast; {_live_effect(numbers, model)}."
    )


def _live_effect(numbers: Numbers, model: str) -> str:
    if numbers.subjects(STAGE, model, "", "gap"):
        return "what the guard did live stands beside it below"
    return f"the live effect is not measured: run `dvc repro {layout.made_by(STAGE)}`"


def _protocols(pipeline: Pipeline, model: str) -> Iterator[str]:
    """Say what each protocol finds on the same traces, if two or more were run."""
    told = {}
    for protocol in pipeline.params.protocols:
        auroc, reduction, alarms = (
            pipeline.numbers.get(stage, model, protocol, table, subject, metric)
            for stage, table, subject, metric in (
                ("train", "predictor", "pre_onset", "auroc"),
                ("evaluate", BALANCED, OVERALL, "reduction"),
                ("evaluate", BALANCED, OVERALL, "false_positive_rate"),
            )
        )
        if known(auroc, reduction, alarms):
            told[protocol] = (
                f"{protocol} finds an AUROC of {fraction(auroc)} and a reduction of {points(reduction)} at "
                f"{percent(alarms)} false positives"
            )
    if len(told) > 1:
        yield f"On the same traces {listed(list(told.values()))}. Failures: {failures_said(told)}."


def _transfer(numbers: Numbers, model: str) -> Iterator[str]:
    subjects = numbers.subjects("transfer", model, "", "transfer")
    for subject in subjects:
        source, _, target = subject.partition("->")
        there = numbers.get("transfer", model, "", "transfer", subject, "auroc")
        at_home = numbers.get("transfer", model, "", "transfer", f"{target}->{target}", "auroc")
        if source != target and known(there, at_home):
            yield (
                f"Trained on {source} and tested on {target}, the hazard model has an AUROC of "
                f"{fraction(there)}; trained on {target} itself, {fraction(at_home)}."
            )
