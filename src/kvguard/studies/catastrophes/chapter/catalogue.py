"""The tables of the report: what stands in each, drawn from the ``results`` tables."""

from __future__ import annotations

from collections.abc import Sequence

from kvguard.report.numbers import Cell, Kind, Table
from kvguard.studies.catastrophes.chapter.certified_tables import certified_tables
from kvguard.studies.catastrophes.chapter.comparison import compared_table, failures_said
from kvguard.studies.catastrophes.chapter.live_tables import live_tables
from kvguard.studies.catastrophes.chapter.onset_tables import onset_tables
from kvguard.studies.catastrophes.chapter.pipeline import Column, Pipeline, groups_of, table_of
from kvguard.studies.catastrophes.evaluate.operating_points import POINTS
from kvguard.studies.catastrophes.protocols import HEADLINE

_RATES: tuple[Column, ...] = (
    ("accuracy, %", "accuracy", Kind.PERCENT),
    ("CBR, %", "cbr", Kind.PERCENT),
    ("non-termination, %", "non_termination", Kind.PERCENT),
    ("looping, %", "looping", Kind.PERCENT),
    ("wrong, %", "wrong", Kind.PERCENT),
    ("amnesia, %", "amnesia", Kind.PERCENT),
    ("tokens", "tokens", Kind.TENTH),
)
_TESTED: tuple[Column, ...] = (
    ("CBR difference, points", "cbr_difference", Kind.PERCENT),
    ("p, CBR (Holm)", "cbr_p_holm", Kind.P),
    ("odds ratio, CBR", "cbr_odds_ratio", Kind.SMALL),
    ("accuracy difference, points", "accuracy_difference", Kind.PERCENT),
    ("p, accuracy (Holm)", "accuracy_p_holm", Kind.P),
    ("odds ratio, accuracy", "accuracy_odds_ratio", Kind.SMALL),
)
_RANKING: tuple[Column, ...] = (
    ("AUROC", "auroc", Kind.FRACTION),
    ("AUPRC", "auprc", Kind.FRACTION),
    ("recall at 5 % FPR", "recall_at_5pct_fpr", Kind.FRACTION),
)
_MATCHED: Column = ("matched AUROC", "matched_auroc", Kind.FRACTION)
_PREDICTOR: tuple[Column, ...] = (
    *_RANKING,
    ("F1", "f1", Kind.FRACTION),
    ("Brier score", "brier", Kind.FRACTION),
    ("traces detected, %", "trace_detection_rate", Kind.PERCENT),
    ("lead time, median", "lead_time_median", Kind.COUNT),
    ("lead time, quartile 1", "lead_time_q25", Kind.COUNT),
    ("lead time, quartile 3", "lead_time_q75", Kind.COUNT),
)
_GUARDED: tuple[Column, ...] = (
    ("reduction, points", "reduction", Kind.PERCENT),
    ("false positives, %", "false_positive_rate", Kind.PERCENT),
    ("KV saved, %", "kv_saved", Kind.PERCENT),
)
_CONTROLLER: tuple[Column, ...] = (
    ("failures, no guard, %", "cbr_uncontrolled", Kind.PERCENT),
    ("failures, guard, %", "cbr_controlled", Kind.PERCENT),
    ("reduction, points", "reduction", Kind.PERCENT),
    ("reduction, relative, %", "reduction_relative", Kind.PERCENT),
    ("of the ceiling, %", "ceiling_share", Kind.PERCENT),
    ("false positives, %", "false_positive_rate", Kind.PERCENT),
    ("accuracy, no guard, %", "accuracy_uncontrolled", Kind.PERCENT),
    ("accuracy, guard, %", "accuracy_controlled", Kind.PERCENT),
    ("lead time, median", "lead_time_median", Kind.COUNT),
    ("KV saved, no guard, %", "kv_saved_uncontrolled", Kind.PERCENT),
    ("KV saved, guard, %", "kv_saved_controlled", Kind.PERCENT),
)
_KINDS: tuple[Column, ...] = (
    ("looping, no guard, %", "looping_uncontrolled", Kind.PERCENT),
    ("looping, guard, %", "looping_controlled", Kind.PERCENT),
    ("non-termination, no guard, %", "non_termination_uncontrolled", Kind.PERCENT),
    ("non-termination, guard, %", "non_termination_controlled", Kind.PERCENT),
)
_POINT: tuple[Column, ...] = (
    ("tau_low", "tau_low", Kind.FRACTION),
    ("tau_high", "tau_high", Kind.FRACTION),
    ("k", "k_escalate", Kind.COUNT),
    ("j", "j_deescalate", Kind.COUNT),
    *_GUARDED,
)
_SWEPT: tuple[Column, ...] = (*_GUARDED, ("lead time, median", "lead_time_median", Kind.COUNT))


def tables(pipeline: Pipeline) -> dict[str, Table]:
    """Return every table of the report by name."""
    groups = (
        _measured,
        onset_tables,
        _trained,
        _evaluated,
        _ablated,
        _transferred,
        live_tables,
        certified_tables,
    )
    return {table.name: table for group in groups for table in group(pipeline)}


def _measured(pipeline: Pipeline) -> list[Table]:
    """What compression does."""
    return [
        table_of(
            pipeline, "experiment-001", "Outcomes by compressor and ratio",
            "Over all prompts. Accuracy is by the first complete answer. CBR: looping or non-termination. "
            "Wrong answers and amnesia (the question's numbers and names are gone) are no catastrophes and "
            "are reported beside it.",
            "measure", "outcomes", (("n", "n", Kind.COUNT), *_RATES), everywhere=True,
        ),
        _signals(pipeline),
        table_of(
            pipeline, "onset-entropy", "Entropy before the onset",
            "Mean entropy (nats) of the 10 tokens before an onset, and at the same positions of healthy "
            "traces of the same condition or, lacking those, of uncompressed ones.",
            "measure", "onset_entropy",
            (
                ("before the onset", "before_onset", Kind.FRACTION),
                ("matched, healthy", "matched", Kind.FRACTION),
                ("difference", "difference", Kind.FRACTION),
            ),
        ),
        table_of(
            pipeline, "against-none", "Against no compression",
            "Paired by prompt with the uncompressed model: McNemar's exact test, p values after Holm's "
            "correction over the family; odds ratio of the discordant pairs.",
            "measure", "against_none", _TESTED,
        ),
        table_of(
            pipeline, "against-random", "Against random eviction",
            "The same tests against evicting KV pairs at random, at equal ratio: does the strategy matter?",
            "measure", "against_random", _TESTED,
        ),
    ]  # fmt: skip


def _trained(pipeline: Pipeline) -> list[Table]:
    """How well catastrophes are forecast."""
    each = pipeline.params.protocols
    return [
        table_of(
            pipeline, "predictor", "Hazard model",
            "On test prompts. Pre-onset tokens are the headline: they show what is known before the failure. "
            "Lead times in tokens.",
            "train", "predictor", _PREDICTOR, each, everywhere=True,
            subjects={"pre_onset": "pre-onset", "all": "all"},
        ),
        table_of(
            pipeline, "horizons", "Horizon",
            "Pre-onset metrics of models trained for other horizons H (tokens ahead).",
            "train", "horizons", _RANKING, each,
        ),
        table_of(
            pipeline, "cross-validation", "Leave one compressor out",
            "Each compressor is left out of the training in turn; pre-onset metrics on its own traces.",
            "train", "cross_validation",
            (*_RANKING, ("tokens", "n_tokens", Kind.COUNT), ("positive", "n_positive", Kind.COUNT)), each,
        ),
    ]  # fmt: skip


def _evaluated(pipeline: Pipeline) -> list[Table]:
    """What the forecast is good for, simulated."""
    each = pipeline.params.protocols
    return [
        table_of(
            pipeline, "operating-points", "Operating points",
            "Picked from the threshold search; the last three columns are what the search saw.",
            "evaluate", "operating_points", _POINT, each,
        ),
        _controller(
            pipeline, "controller", "Controller, all compressed conditions",
            f"Simulated on test prompts. Failures: {failures_said(each)}. False positives: share of the "
            "traces without a failure in which SAFE fired.",
            _CONTROLLER, everywhere=True,
        ),
        _controller(
            pipeline, "controller-kinds", "Controller, by kind of failure",
            "Shares of the traces of all compressed conditions.", _KINDS,
        ),
        table_of(
            pipeline, "controller-by-condition", "Controller, by condition",
            f"Balanced operating point of protocol {HEADLINE}, simulated on test prompts.",
            "evaluate", "controller-balanced", (*_CONTROLLER, *_KINDS), (HEADLINE,),
        ),
        compared_table(pipeline),
    ]  # fmt: skip


def _ablated(pipeline: Pipeline) -> list[Table]:
    """What is left without parts of it."""
    return [
        table_of(
            pipeline, "ablation-features", "Feature sets",
            f"Protocol {HEADLINE}. Each set is trained again and goes through the controller again; "
            "Δ is the difference from the full set, paired by prompt.",
            "ablate", "features", _with_differences((*_RANKING[:2], _MATCHED, *_GUARDED), "full"),
        ),
        table_of(
            pipeline, "ablation-controllers", "Controllers",
            f"Protocol {HEADLINE}. Always-safe is the ceiling of the simulation; random switches as often as "
            "the hazard model; the risk score needs no model. Δ is the difference from the hazard model.",
            "ablate", "controllers",
            (
                *_with_differences(_GUARDED, "hazard"),
                ("reduction of looping, points", "looping_reduction", Kind.PERCENT),
                ("reduction of non-termination, points", "non_termination_reduction", Kind.PERCENT),
            ),
        ),
        table_of(
            pipeline, "ablation-hysteresis", "Hysteresis k",
            f"Protocol {HEADLINE}, test prompts; the rest as at the balanced operating point.",
            "ablate", "hysteresis", _SWEPT,
        ),
        table_of(
            pipeline, "ablation-thresholds", "Threshold tau",
            f"Protocol {HEADLINE}, test prompts; the rest as at the balanced operating point.",
            "ablate", "thresholds", _SWEPT,
        ),
    ]  # fmt: skip


def _transferred(pipeline: Pipeline) -> list[Table]:
    """What is left of it on another model."""
    return [
        table_of(
            pipeline, "transfer", "Transfer",
            f"Protocol {HEADLINE}. A → B: trained on A's traces, tested on the test prompts of B; "
            "Δ is the difference from B → B, paired by prompt.",
            "transfer", "transfer", _with_differences((*_RANKING, _MATCHED, *_GUARDED), "in_domain"),
        ),
    ]  # fmt: skip


def _with_differences(columns: Sequence[Column], base: str) -> tuple[Column, ...]:
    return tuple(
        column
        for head, metric, kind in columns
        for column in ((head, metric, kind), (f"Δ {head}", f"{metric}_minus_{base}", kind))
    )


def _controller(
    pipeline: Pipeline, name: str, title: str, note: str, columns: Sequence[Column], everywhere: bool = False
) -> Table:
    """Return the pooled outcome of each operating point."""
    numbers = pipeline.numbers

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        return [
            (
                protocol,
                point,
                *(
                    Cell(numbers.get("evaluate", model, protocol, f"controller-{point}", "overall", m), k)
                    for _, m, k in columns
                ),
            )
            for protocol in pipeline.params.protocols
            for point in POINTS
            if numbers.subjects("evaluate", model, protocol, f"controller-{point}")
        ]

    heads = ("protocol", "operating point", *(head for head, _, _ in columns))
    return Table(name, title, note, heads, 2, groups_of(pipeline, "evaluate", rows, everywhere))


def _signals(pipeline: Pipeline) -> Table:
    numbers = pipeline.numbers
    columns = (
        ("signals", "mean_entropy"),
        ("signals", "max_entropy"),
        ("signals", "min_top1_prob"),
        ("max_entropy", "auroc"),
    )

    def rows(model: str) -> list[tuple[str | Cell, ...]]:
        known = (numbers.subjects("measure", model, "", table) for table in ("signals", "max_entropy"))
        return [
            (
                subject,
                *(
                    Cell(numbers.get("measure", model, "", table, subject, m), Kind.FRACTION)
                    for table, m in columns
                ),
            )
            for subject in dict.fromkeys(subject for subjects in known for subject in subjects)
        ]

    note = (
        "Entropies in nats. The last column asks how well the largest entropy of a trace tells traces with a "
        "catastrophe from the others of its condition (0.5: not at all; below 0.5: the other way round)."
    )
    heads = ("condition", "mean entropy", "max entropy", "min top-1 probability", "AUROC of max entropy")
    return Table("signals", "Signals by condition", note, heads, 1, groups_of(pipeline, "measure", rows))
