"""Two protocols side by side: what the one claims and the other finds on the same traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvguard.report.numbers import Cell, Kind
from kvguard.report.terminal import table
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.chapter.catalogue import COMPARED

STAGE = "score"
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
            found = find(STAGE, model, protocol)
            columns.append([_cell(found, ".".join(names), kind) for _, _, *names, kind in COMPARED])
        labels = [label for label, *_ in COMPARED]
        tables.append(table([model, *protocols], list(zip(labels, *columns, strict=True))))
    return "\n\n".join([*tables, _NOTE])


def _cell(metrics: Metrics, name: str, kind: Kind) -> str | None:
    if f"{name}.value" not in metrics:
        return None
    found = Interval(*(metrics.get(f"{name}.{part}", float("nan")) for part in ("value", "low", "high")))
    cell = Cell(found, kind)
    return f"{cell.value} {cell.interval}".rstrip()
