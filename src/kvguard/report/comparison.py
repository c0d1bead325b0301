"""Two protocols side by side: what the one claims and the other finds on the same traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvguard.report.terminal import table

STAGES = ("train", "evaluate")
_CONTROLLER = "controller-balanced.overall"
ROWS = {
    "prompts in test": "model.hazard.n_test_prompts",
    "AUROC, all tokens": "predictor.all.auroc",
    "AUROC, pre-onset tokens": "predictor.pre_onset.auroc",
    "recall at 5 % FPR, all tokens": "predictor.all.recall_at_5pct_fpr",
    "recall at 5 % FPR, pre-onset": "predictor.pre_onset.recall_at_5pct_fpr",
    "F1, all tokens": "predictor.all.f1",
    "F1, pre-onset tokens": "predictor.pre_onset.f1",
    "failure rate, uncontrolled": f"{_CONTROLLER}.cbr_uncontrolled",
    "failure rate, controlled": f"{_CONTROLLER}.cbr_controlled",
    "relative reduction": f"{_CONTROLLER}.reduction_relative",
    "false positives": f"{_CONTROLLER}.false_positive_rate",
}
_NOTE = """\
[95 % interval over prompts]. Controller at its balanced operating point. A failure is in v1 a catastrophe or
a wrong answer (CFR), in v2 a catastrophe (CBR): looping or non-termination. From the last finished runs."""

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
            found = {key: value for stage in STAGES for key, value in find(stage, model, protocol).items()}
            columns.append([_cell(found, name) for name in ROWS.values()])
        tables.append(table([model, *protocols], list(zip(ROWS, *columns, strict=True))))
    return "\n\n".join([*tables, _NOTE])


def _cell(metrics: Metrics, name: str) -> str | None:
    value, low, high = (metrics.get(f"{name}.{part}") for part in ("value", "low", "high"))
    if value is None:
        return None
    if low is None or high is None:
        return f"{value:.3f}".removesuffix(".000")
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
