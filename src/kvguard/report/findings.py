"""What was found, in sentences whose every number, and every word of comparison, comes from the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kvguard.compressors import NONE
from kvguard.report.catalogue import Cell, Kind, Numbers, Pipeline
from kvguard.statistics import Interval

OVERALL = "overall"
BALANCED = "controller-balanced"
HEADLINE = "v2"
LEVEL = 0.05  # of the tests

CAVEAT = (
    "The reference models are small models of our own that ship with kvguard and solve made-up arithmetic: "
    "their numbers show how the tool works, and say nothing about language models at large."
)


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    number: Cell
    unit: str


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
        ("CBR reduction, simulated", numbers.get(*controller, "reduction"), Kind.PERCENT, " points"),
        ("its false positives", numbers.get(*controller, "false_positive_rate"), Kind.PERCENT, " %"),
        ("KV memory still saved", numbers.get(*controller, "kv_saved_controlled"), Kind.PERCENT, " %"),
    )
    return [Tile(label, Cell(found, kind), unit) for label, found, kind, unit in wanted if _known(found)]


def sentences(pipeline: Pipeline, model: str) -> list[str]:
    """Return what was found on a model; stages that were not run add nothing."""
    numbers = pipeline.numbers
    return [
        *_outcomes(numbers, model),
        *_tests(numbers, model),
        *_forecast(numbers, model),
        *_control(numbers, model),
        *_protocols(pipeline, model),
        *_transfer(numbers, model),
    ]


def _known(*found: Interval) -> bool:
    return bool(np.isfinite([interval.value for interval in found]).all())


def _percent(found: Interval) -> str:
    return _written(found, Kind.PERCENT, " %")


def _points(found: Interval) -> str:
    return _written(found, Kind.PERCENT, " points")


def _fraction(found: Interval) -> str:
    return _written(found, Kind.FRACTION, "")


def _written(found: Interval, kind: Kind, unit: str) -> str:
    cell = Cell(found, kind)
    return f"{cell.value}{unit} {cell.interval}".rstrip()


def _outcomes(numbers: Numbers, model: str) -> Iterator[str]:
    def rate(subject: str, metric: str) -> Interval:
        return numbers.get("measure", model, "", "outcomes", subject, metric)

    conditions = [
        subject
        for subject in numbers.subjects("measure", model, "", "outcomes")
        if subject not in (NONE, OVERALL) and _known(rate(subject, "cbr"))
    ]
    if not conditions or not _known(rate(NONE, "cbr"), rate(OVERALL, "cbr")):
        return
    before, after = rate(NONE, "accuracy"), rate(OVERALL, "accuracy")
    scored = f" Accuracy: {_percent(before)} and {_percent(after)}." if _known(before, after) else ""
    yield (
        f"Uncompressed, {_percent(rate(NONE, 'cbr'))} of the traces end in a catastrophe; over the "
        f"{len(conditions)} compressed conditions together it is {_percent(rate(OVERALL, 'cbr'))}.{scored}"
    )
    ordered = sorted(conditions, key=lambda subject: rate(subject, "cbr").value)
    low, high = ordered[0], ordered[-1]
    yield (
        f"The lowest CBR of a condition is {_percent(rate(low, 'cbr'))} ({low}), "
        f"the highest {_percent(rate(high, 'cbr'))} ({high})."
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
    if not _known(auroc):
        return
    clock = numbers.get("ablate", model, "", "features", "position_only", "auroc")
    seen = "; a model that sees nothing but the token's position reaches "
    beside = f"{seen}{_fraction(clock)}" if _known(clock) else ""
    yield (
        "On prompts that it never saw, the hazard model ranks tokens before an onset with an AUROC of "
        f"{_fraction(auroc)}{beside}."
    )


def _control(numbers: Numbers, model: str) -> Iterator[str]:
    def rate(metric: str) -> Interval:
        return numbers.get("evaluate", model, HEADLINE, BALANCED, OVERALL, metric)

    if not _known(rate("cbr_uncontrolled"), rate("cbr_controlled")):
        return
    yield (
        f"Simulated on test prompts at the balanced operating point, CBR goes from "
        f"{_percent(rate('cbr_uncontrolled'))} to {_percent(rate('cbr_controlled'))}, with SAFE in "
        f"{_percent(rate('false_positive_rate'))} of the traces without a catastrophe; the KV memory saved "
        f"goes from {_percent(rate('kv_saved_uncontrolled'))} to {_percent(rate('kv_saved_controlled'))}. "
        "This is a forecast: the live effect is not measured here."
    )


def _protocols(pipeline: Pipeline, model: str) -> Iterator[str]:
    if set(pipeline.params.protocols) != {"v1", "v2"}:
        return
    aurocs, reductions, alarms = (
        [pipeline.numbers.get(stage, model, protocol, table, subject, metric) for protocol in ("v1", "v2")]
        for stage, table, subject, metric in (
            ("train", "predictor", "pre_onset", "auroc"),
            ("evaluate", BALANCED, OVERALL, "reduction"),
            ("evaluate", BALANCED, OVERALL, "false_positive_rate"),
        )
    )
    if _known(*aurocs, *reductions, *alarms):
        yield (
            f"On the same traces protocol v1 claims an AUROC of {_fraction(aurocs[0])} where v2 finds "
            f"{_fraction(aurocs[1])}, and a reduction of {_points(reductions[0])} at {_percent(alarms[0])} "
            f"false positives where v2 finds {_points(reductions[1])} at {_percent(alarms[1])} (v1 counts "
            "wrong answers as failures, v2 does not)."
        )


def _transfer(numbers: Numbers, model: str) -> Iterator[str]:
    subjects = numbers.subjects("transfer", model, "", "transfer")
    for subject in subjects:
        source, _, target = subject.partition("->")
        there = numbers.get("transfer", model, "", "transfer", subject, "auroc")
        at_home = numbers.get("transfer", model, "", "transfer", f"{target}->{target}", "auroc")
        if source != target and _known(there, at_home):
            yield (
                f"Trained on {source} and tested on {target}, the hazard model has an AUROC of "
                f"{_fraction(there)}; trained on {target} itself, {_fraction(at_home)}."
            )
