"""Where failures begin, which answer counts, when alarms come, and what a clock cannot pass: the tables."""

from __future__ import annotations

from kvguard.report.numbers import Cell, Kind, Numbers, Table
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.chapter.figures.live import POLICIES
from kvguard.studies.catastrophes.chapter.live_tables import STAGE
from kvguard.studies.catastrophes.chapter.pipeline import Column, Pipeline, groups_of, table_of
from kvguard.studies.catastrophes.score.alarms import CLOSE

RULES = {  # how the onset of a failure was found
    "by_answer": "after the first complete answer",
    "by_uncompressed": "beyond the uncompressed length",
    "by_proxy": "by the proxy (a share of the budget)",
    "by_looping": "at the repeat of a loop",
}
KINDS = {"overall": "all", "looping": "loops", "non_termination": "run-ons"}
PRE_ONSET = {  # how the forecasts of each are called
    "overall": "pre_onset",
    "looping": "pre_onset_looping",
    "non_termination": "pre_onset_non_termination",
}
_ONSETS: tuple[Column, ...] = (
    ("failing traces", "n_failing", Kind.COUNT),
    *((f"{rule}, %", name, Kind.PERCENT) for name, rule in RULES.items()),
)
_MATCHED: tuple[Column, ...] = (
    ("AUROC", "auroc", Kind.FRACTION),
    ("position alone", "auroc_position_only", Kind.FRACTION),
    ("best clock", "auroc_best_clock", Kind.FRACTION),
    ("matched AUROC", "matched_auroc", Kind.FRACTION),
    ("by positives", "matched_auroc_by_positives", Kind.FRACTION),
    ("position alone, matched", "matched_auroc_position_only", Kind.FRACTION),
    ("tokens", "n_tokens", Kind.COUNT),
    ("positive", "n_positive", Kind.COUNT),
)
_ALARMS: tuple[Column, ...] = (
    ("failing traces", "n_failing", Kind.COUNT),
    ("delay, quartile 1", "delay_q25", Kind.COUNT),
    ("delay, median", "delay_median", Kind.COUNT),
    ("delay, quartile 3", "delay_q75", Kind.COUNT),
    (f"within {CLOSE} tokens, %", "close", Kind.PERCENT),
    ("at or after the onset, %", "after_onset", Kind.PERCENT),
    ("never, %", "never", Kind.PERCENT),
    ("tokens in vain", "tokens_in_vain", Kind.TENTH),
    ("... no guard", "tokens_in_vain_unguarded", Kind.TENTH),
    ("in vain, % of all tokens", "share_in_vain", Kind.PERCENT),
    ("... no guard, %", "share_in_vain_unguarded", Kind.PERCENT),
)
_DELAY = (
    "Delay: tokens from the onset to the alarm, negative in advance; quartiles are of the failing traces "
    "that are alarmed. In vain: tokens of a failing trace from its onset up to the alarm, or to its end."
)


def onset_tables(pipeline: Pipeline) -> list[Table]:
    """Return the tables of several stages that are about onsets."""
    each = pipeline.params.protocols
    return [
        _answers(pipeline),
        table_of(
            pipeline, "onsets", "Where failures begin",
            "Shares of the traces with a catastrophe, by the rule that found their onset. The proxy is what "
            "is left where neither the text nor the uncompressed one tells.",
            "measure", "onsets", _ONSETS,
        ),
        table_of(
            pipeline, "matched", "What a clock cannot pass",
            "Pre-onset tokens of test prompts, all and for each kind of failure (its own positives, the same "
            "negatives). Best clock: no score of the token's index alone has a higher AUROC. Matched: only "
            "tokens of one index are compared, so that every clock has 0.5; the mean over indices, and the "
            "same weighted by positives.",
            "train", "predictor", _MATCHED, each,
            subjects={PRE_ONSET[kind]: spelled for kind, spelled in KINDS.items()},
        ),
        table_of(
            pipeline, "alarms", "When the alarm comes",
            f"Balanced operating point, test prompts, simulated. {_DELAY} Onsets are each protocol's own.",
            "evaluate", "alarms-balanced", _ALARMS, each, subjects=KINDS,
        ),
        _live_alarms(pipeline),
    ]  # fmt: skip


def answer_rates(numbers: Numbers, model: str, subject: str) -> tuple[Interval, Interval]:
    """Return the accuracy by the first complete answer, and by the last."""
    first, last = (
        numbers.get("measure", model, "", "outcomes", subject, name) for name in ("accuracy", "accuracy_last")
    )
    return first, last


def _answers(pipeline: Pipeline) -> Table:
    numbers = pipeline.numbers

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        found: list[tuple[str | Cell, ...]] = []
        for subject in numbers.subjects("measure", model, "", "outcomes"):
            first, last = answer_rates(numbers, model, subject)
            difference = Interval(first.value - last.value, float("nan"), float("nan"))
            label = "all compressed" if subject == "overall" else subject
            found.append((label, *(Cell(rate, Kind.PERCENT) for rate in (first, last, difference))))
        return found

    note = (
        "Accuracy by the first complete answer, which a reader who stops there takes (elsewhere: accuracy); "
        "and by the last one that the whole text states, with its corrections and inventions."
    )
    heads = ("condition", "first answer, %", "last answer, %", "difference, points")
    return Table("answers", "Which answer counts", note, heads, 1, groups_of(pipeline, "measure", rows))


def _live_alarms(pipeline: Pipeline) -> Table:
    """Return when each policy first acts, against the onsets of the traces without a guard."""
    numbers = pipeline.numbers

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        return [
            (
                spelled,
                KINDS[kind],
                *(Cell(numbers.get(STAGE, model, "", f"alarms-{policy}", kind, m), k) for _, m, k in _ALARMS),
            )
            for policy, spelled in POLICIES.items()
            for kind in KINDS
            if kind in numbers.subjects(STAGE, model, "", f"alarms-{policy}")
        ]

    note = (
        f"Fresh prompts, compressed once; onsets are those of the traces without a guard. {_DELAY} Stop at "
        "the answer acts where it stops."
    )
    heads = ("policy", "failures", *(head for head, _, _ in _ALARMS))
    groups = groups_of(pipeline, STAGE, rows)
    return Table("live-alarms", "When the alarm comes, live", note, heads, 2, groups)
