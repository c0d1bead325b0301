"""The tables of the live guard: what each policy did, whether the forecast came true, what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from kvguard.report.numbers import Cell, Kind, Numbers, Table
from kvguard.studies.catastrophes.chapter.figures.live import (
    ACTIONS,
    BASELINE,
    POLICIES,
    REGIMES,
    policies_table,
)
from kvguard.studies.catastrophes.chapter.pipeline import Column, Pipeline, groups_of
from kvguard.studies.catastrophes.protocols import BEFORE, HEADLINE

STAGE = "live-validate"
COMPUTED = {  # from the outcomes of others
    "mixed": "no guard, at equal memory",
    "mixed_loop": "loop detector, at equal memory",
    "mixed_entropy": "entropy trigger, at equal memory",
    "mixed_clock": "clock, at equal memory",
    "always_safe": "always safe",
    "oracle": "oracle",
    "rollback_fits": "guard: rollback, any fit of the hazard",
}
# What a guard has to beat.
BASELINES = (
    "static", "loop", "clock", "entropy", "mixed", "mixed_loop", "mixed_clock", "mixed_entropy",
    "always_safe", f"rollback_{BEFORE}", BASELINE,
)  # fmt: skip
_ACTING = tuple(policy for policy in POLICIES if policy not in ("uncompressed", "static"))
SPELLED = {**POLICIES, **COMPUTED}
_RATES: tuple[Column, ...] = (
    ("CBR, %", "cbr", Kind.PERCENT),
    ("looping, %", "looping", Kind.PERCENT),
    ("non-termination, %", "non_termination", Kind.PERCENT),
    ("accuracy, %", "accuracy", Kind.PERCENT),
    ("by the last answer, %", "accuracy_last", Kind.PERCENT),
    ("KV saved, %", "kv_saved", Kind.PERCENT),
    ("SAFE seen, %", "safe_rate", Kind.PERCENT),
)
_COSTS: tuple[Column, ...] = (
    ("restores per trace", "n_restores", Kind.SMALL),
    ("rewinds per trace", "n_rewinds", Kind.SMALL),
    ("tokens rewound", "n_rewound", Kind.TENTH),
    ("steps per token", "steps_ratio", Kind.SMALL),
)
_LEFT: tuple[Column, ...] = (
    ("of the added CBR left, %", "residual_cbr", Kind.PERCENT),
    ("of the lost accuracy left, %", "residual_accuracy", Kind.PERCENT),
    ("... by the last answer, %", "residual_accuracy_last", Kind.PERCENT),
)
_KEPT: tuple[Column, ...] = (
    ("false alarms, %", "false_alarm_rate", Kind.PERCENT),
    ("saving kept, healthy traces, %", "healthy_saving_kept", Kind.PERCENT),
    ("saving kept, all traces, %", "saving_kept", Kind.PERCENT),
)
_UNCHANGED: Column = ("unchanged without SAFE, %", "unchanged", Kind.PERCENT)
_DIFFERENCES: tuple[Column, ...] = (
    ("Δ CBR to no guard, points", "cbr_minus_static", Kind.PERCENT),
    ("Δ CBR to uncompressed, points", "cbr_minus_uncompressed", Kind.PERCENT),
    ("Δ accuracy to no guard, points", "accuracy_minus_static", Kind.PERCENT),
    ("Δ accuracy to uncompressed, points", "accuracy_minus_uncompressed", Kind.PERCENT),
    ("Δ KV saved to no guard, points", "kv_saved_minus_static", Kind.PERCENT),
)
_AGAINST: tuple[Column, ...] = (
    ("Δ CBR to rollback, points", "cbr_minus_rollback", Kind.PERCENT),
    ("Δ accuracy to rollback, points", "accuracy_minus_rollback", Kind.PERCENT),
    ("Δ KV saved to rollback, points", "kv_saved_minus_rollback", Kind.PERCENT),
)
_GAP: tuple[Column, ...] = (
    ("CBR, simulated, %", "cbr_simulated", Kind.PERCENT),
    ("CBR, live, %", "cbr_live", Kind.PERCENT),
    ("live minus simulated, points", "gap", Kind.PERCENT),
    ("failing traces", "n_failed", Kind.COUNT),
    ("prevented, says the simulation, %", "predicted", Kind.PERCENT),
    ("prevented live, %", "prevented", Kind.PERCENT),
    ("both, %", "both", Kind.PERCENT),
    ("only said, %", "predicted_only", Kind.PERCENT),
    ("only live, %", "prevented_only", Kind.PERCENT),
    ("neither, %", "neither", Kind.PERCENT),
    ("of those said, live, %", "precision", Kind.PERCENT),
)
_SWITCH: tuple[Column, ...] = (
    ("traces", "n_traces", Kind.COUNT),
    ("end without a catastrophe, %", "recovered", Kind.PERCENT),
    ("right answer, %", "correct", Kind.PERCENT),
)
_LATENCY: tuple[Column, ...] = (
    ("ms per token", "ms_per_token", Kind.FRACTION),
    ("tokens per second", "tokens_per_second", Kind.COUNT),
    ("overhead, %", "share", Kind.PERCENT),
    ("ms per restore", "ms", Kind.TENTH),
)
_ON = f"Fresh prompts that no other stage saw, balanced operating point of protocol {HEADLINE}. "
_DECODING = "decoding"


def live_tables(pipeline: Pipeline) -> list[Table]:
    """Return the tables of the ``live-validate`` stage."""
    return [
        _policies(
            pipeline, "live-policies", "Policies, live",
            f"{_ON}All conditions together. The first column of numbers is what the offline simulation says "
            "of the same prompts; the rest happened. Prefill: compressed once; decoding: a budget besides. "
            "Accuracy is by the first complete answer; stop at the answer: a stop string, no model.",
            (*POLICIES,), (*_RATES, *_COSTS), is_forecast_shown=True, everywhere=True,
        ),
        _policies(
            pipeline, "live-aims", "What is left, what it costs",
            "Left: a share of the catastrophes that compression adds, and of the right answers that it "
            "costs. False alarms: of the traces that end without a catastrophe unguarded, the share that see "
            "SAFE. Saving kept: KV memory saved, over that of no guard. The oracle restores the failing "
            "traces, and no others, at their onsets; they are taken to end as they do uncompressed. "
            "Unchanged: of the traces that never see SAFE, those with the tokens of no guard.",
            (*_ACTING, "rollback_fits", "oracle"), (*_LEFT, *_KEPT, _UNCHANGED),
        ),
        _policies(
            pipeline, "live-differences", "Policies against no guard and no compression",
            "Paired by prompt.",
            _ACTING, _DIFFERENCES,
        ),
        _policies(
            pipeline, "live-baselines", "Baselines against the guard with rollback",
            "Paired by prompt. Compressed once, rollback is that by any fit of the hazard, and intervals are "
            "over prompts and fits. Δ CBR above 0: more catastrophes than under the guard; Δ KV saved above "
            "0: more memory saved. At equal memory: so many traces, drawn by lot, are never compressed "
            "that no more is saved than by rollback.",
            BASELINES, _AGAINST,
        ),
        _by_condition(pipeline),
        _plain(
            pipeline, "live-gap", "Forecast and live result",
            f"{_ON}Prefill regime. Shares of the traces that fail without a guard: what the offline "
            "simulation says of them, and what happened.",
            "gap", "action", _GAP,
        ),
        _plain(
            pipeline, "live-switch", "How early is early enough?",
            "Traces that fail without a guard, restored d tokens before their onset (negative: after it) and "
            "left uncompressed.",
            "switch", "d", _SWITCH,
        ),
        _plain(
            pipeline, "live-latency", "Time",
            "Decoding with the guard on and never firing, against decoding without it and without reading "
            "signals; and one restore. Brackets: the middle 95 % of repeated timings.",
            "latency", "what", _LATENCY,
        ),
    ]  # fmt: skip


def _policies(
    pipeline: Pipeline,
    name: str,
    title: str,
    note: str,
    policies: Sequence[str],
    columns: Sequence[Column],
    is_forecast_shown: bool = False,
    everywhere: bool = False,
) -> Table:
    """Return what policies did over all conditions, regime by regime."""
    numbers = pipeline.numbers

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        return [
            (
                regime,
                SPELLED[policy],
                *([_forecast(numbers, model, regime, policy)] if is_forecast_shown else []),
                *_cells(numbers, model, policies_table(regime), policy, columns),
            )
            for regime in REGIMES
            for policy in policies
            if policy in numbers.subjects(STAGE, model, "", policies_table(regime))
        ]

    forecast = ("CBR, simulated, %",) if is_forecast_shown else ()
    heads = ("regime", "policy", *forecast, *(head for head, _, _ in columns))
    return Table(name, title, note, heads, 2, groups_of(pipeline, STAGE, rows, everywhere))


def _forecast(numbers: Numbers, model: str, regime: str, policy: str) -> Cell:
    """Return what the simulation says of a policy; it says nothing of a budget while decoding."""
    known = policy in ACTIONS and regime != _DECODING
    subject = policy if known else ""
    return Cell(numbers.get(STAGE, model, "", "gap", subject, "cbr_simulated"), Kind.PERCENT)


def _by_condition(pipeline: Pipeline) -> Table:
    numbers, columns = pipeline.numbers, (*_RATES, *_KEPT)

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        return [
            (regime, condition, SPELLED[policy], *_cells(numbers, model, table, subject, columns))
            for regime, table in ((regime, policies_table(regime)) for regime in REGIMES)
            for subject in numbers.subjects(STAGE, model, "", table)
            for policy, _, condition in [subject.partition("/")]
            if condition and policy in POLICIES
        ]

    heads = ("regime", "condition", "policy", *(head for head, _, _ in columns))
    groups = groups_of(pipeline, STAGE, rows)
    return Table("live-by-condition", "Policies, by condition", _ON.strip(), heads, 3, groups)


def _plain(
    pipeline: Pipeline, name: str, title: str, note: str, table: str, label: str, columns: Sequence[Column]
) -> Table:
    """Return a table of the results as it is."""
    numbers = pipeline.numbers

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        return [
            (_spelled(subject), *_cells(numbers, model, table, subject, columns))
            for subject in numbers.subjects(STAGE, model, "", table)
        ]

    heads = (label, *(head for head, _, _ in columns))
    return Table(name, title, note, heads, 1, groups_of(pipeline, STAGE, rows))


def _spelled(subject: str) -> str:
    policy, _, condition = subject.partition("/")
    return f"{SPELLED.get(policy, policy)}, {condition}" if condition else SPELLED.get(policy, policy)


def _cells(
    numbers: Numbers, model: str, table: str, subject: str, columns: Sequence[Column]
) -> tuple[Cell, ...]:
    return tuple(Cell(numbers.get(STAGE, model, "", table, subject, name), kind) for _, name, kind in columns)
