"""The protocols beside one another: what each makes of the same traces."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from kvguard.report.numbers import Cell, Kind, Table
from kvguard.report.terminal import table
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.chapter.pipeline import Pipeline, groups_of
from kvguard.studies.catastrophes.protocols import PROTOCOLS
from kvguard.studies.catastrophes.score.alarms import CLOSE

STAGE = "score"
_BEFORE_ONSET = ("train", "predictor", "pre_onset")
_CONTROLLER, _ALARMS = (("evaluate", f"{name}-balanced", "overall") for name in ("controller", "alarms"))
# What is compared: label, stage, table, subject, metric, kind.
COMPARED: tuple[tuple[str, str, str, str, str, Kind], ...] = (
    ("prompts in test", "train", "model", "hazard", "n_test_prompts", Kind.COUNT),
    ("AUROC, pre-onset tokens", *_BEFORE_ONSET, "auroc", Kind.FRACTION),
    ("... the position alone", *_BEFORE_ONSET, "auroc_position_only", Kind.FRACTION),
    ("... the best clock", *_BEFORE_ONSET, "auroc_best_clock", Kind.FRACTION),
    ("matched AUROC (a clock: 0.5)", *_BEFORE_ONSET, "matched_auroc", Kind.FRACTION),
    ("... of loops", "train", "predictor", "pre_onset_looping", "matched_auroc", Kind.FRACTION),
    ("... of run-ons", "train", "predictor", "pre_onset_non_termination", "matched_auroc", Kind.FRACTION),
    ("AUROC, all tokens", "train", "predictor", "all", "auroc", Kind.FRACTION),
    ("AUPRC, pre-onset tokens", *_BEFORE_ONSET, "auprc", Kind.FRACTION),
    ("recall at 5 % FPR, pre-onset", *_BEFORE_ONSET, "recall_at_5pct_fpr", Kind.FRACTION),
    ("F1, pre-onset tokens", *_BEFORE_ONSET, "f1", Kind.FRACTION),
    ("Brier score, pre-onset tokens", *_BEFORE_ONSET, "brier", Kind.FRACTION),
    ("failures without guard, %", *_CONTROLLER, "cbr_uncontrolled", Kind.PERCENT),
    ("failures with guard, %", *_CONTROLLER, "cbr_controlled", Kind.PERCENT),
    ("reduction, points", *_CONTROLLER, "reduction", Kind.PERCENT),
    ("reduction, relative, %", *_CONTROLLER, "reduction_relative", Kind.PERCENT),
    ("of the always-safe ceiling, %", *_CONTROLLER, "ceiling_share", Kind.PERCENT),
    ("false positives, %", *_CONTROLLER, "false_positive_rate", Kind.PERCENT),
    ("lead time, median, tokens", *_CONTROLLER, "lead_time_median", Kind.COUNT),
    ("KV memory still saved, %", *_CONTROLLER, "kv_saved_controlled", Kind.PERCENT),
    ("alarm after the onset, median", *_ALARMS, "delay_median", Kind.COUNT),
    (f"alarm within {CLOSE} tokens, %", *_ALARMS, "close", Kind.PERCENT),
    ("never alarmed, %", *_ALARMS, "never", Kind.PERCENT),
    ("tokens in vain, % of all", *_ALARMS, "share_in_vain", Kind.PERCENT),
)

Metrics = Mapping[str, float]


def comparison_text(
    models: Sequence[str], protocols: Sequence[str], find: Callable[[str, str, str], Metrics]
) -> str:
    """Lay out one table for each model, with a column for each protocol.

    Parameters
    ----------
    find
        stage, model, protocol -> its metrics under dotted names.
    """
    tables = []
    for model in models:
        columns = []
        for protocol in protocols:
            found = find(STAGE, model, protocol)
            columns.append([_cell(found, ".".join(names), kind) for _, _, *names, kind in COMPARED])
        labels = [label for label, *_ in COMPARED]
        tables.append(table([model, *protocols], list(zip(labels, *columns, strict=True))))
    note = (
        "[95 % interval over prompts]. From the last finished runs; -: not measured.",
        *_notes(protocols),
    )
    return "\n\n".join([*tables, "\n".join(textwrap.fill(line, 108) for line in note)])


def compared_table(pipeline: Pipeline) -> Table:
    """Return the report's table of the protocols."""
    numbers, protocols = pipeline.numbers, pipeline.params.protocols

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        if not any(numbers.subjects("train", model, protocol, "predictor") for protocol in protocols):
            return []
        return [
            (text, *(Cell(numbers.get(stage, model, p, table, subject, m), kind) for p in protocols))
            for text, stage, table, subject, m, kind in COMPARED
        ]

    heads = ("number", *(f"protocol {protocol}" for protocol in protocols))
    groups = groups_of(pipeline, "train evaluate", rows, everywhere=True)
    note = " ".join(["The same traces, judged by each.", *_notes(protocols)])
    return Table("protocols", "The protocols beside one another", note, heads, 1, groups)


def failures_said(protocols: Iterable[str]) -> str:
    """Return what counts as a failure in each protocol: ``CFR in v1, CBR in v2 and v3``."""
    named: dict[str, list[str]] = {}
    for name in protocols:
        named.setdefault(PROTOCOLS[name].failure, []).append(name)
    return ", ".join(f"{failure} in {listed(names)}" for failure, names in named.items())


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _notes(protocols: Sequence[str]) -> list[str]:
    return [
        *(PROTOCOLS[name].about for name in dict.fromkeys(protocols)),
        f"Failures: {failures_said(dict.fromkeys(protocols))} (CBR: loops and texts that do not end; CFR: "
        "wrong answers too).",
        "Controller and alarms at the balanced operating point; onsets are each protocol's own. Matched: "
        "tokens of one index compared.",
    ]


def _cell(metrics: Metrics, name: str, kind: Kind) -> str | None:
    if f"{name}.value" not in metrics:
        return None
    found = Interval(*(metrics.get(f"{name}.{part}", float("nan")) for part in ("value", "low", "high")))
    cell = Cell(found, kind)
    return f"{cell.value} {cell.interval}".rstrip()
