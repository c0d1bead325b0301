"""An experiment's headline as text for a terminal."""

from __future__ import annotations

from kvguard.report.numbers import Kind
from kvguard.report.terminal import table
from kvguard.stats.bootstrap import Interval
from kvguard.store.results import Results
from kvguard.studies.directed.params import Protocol

_HEADS = ("", "n", "mean", "better by", "d", "win rate", "p (Holm)", "d hard")


def told(results: Results, protocol: Protocol) -> str:
    """Return a table for each data set, setting and metric: each condition against the baseline."""
    frame = results.frame
    found = {
        (table, subject, metric): Interval(value, low, high)
        for table, subject, metric, value, low, high in frame[
            ["table", "subject", "metric", "value", "low", "high"]
        ].itertuples(index=False)
    }
    said = []
    for name in frame.loc[frame["table"].str.startswith("levels "), "table"].drop_duplicates():
        _, dataset, subset, setting, metric = name.split(" ")
        if subset != "all":
            continue
        rows = []
        for condition in protocol.conditions:
            level = (name, condition)
            effect = (f"effects {dataset} all {setting} {metric}", condition)
            hard = (f"effects {dataset} hard {setting} {metric}", condition)
            rows.append(
                [
                    condition,
                    _one(found.get((*level, "n")), Kind.COUNT),
                    _one(found.get((*level, "mean")), Kind.FRACTION),
                    _one(found.get((*effect, "benefit")), Kind.FRACTION),
                    _one(found.get((*effect, "d")), Kind.SMALL, interval=True),
                    _one(found.get((*effect, "win_rate")), Kind.SMALL),
                    _one(found.get((*effect, "p_holm")), Kind.P),
                    _one(found.get((*hard, "d")), Kind.SMALL, interval=True),
                ]
            )
        said.append(f"{dataset}, {setting}, {metric}\n{table(_HEADS, rows)}")
    return "\n\n".join(said)


def _one(found: Interval | None, kind: Kind, interval: bool = False) -> str | None:
    if found is None:
        return None
    value = kind.write(found.value)
    return f"{value} [{kind.write(found.low)}, {kind.write(found.high)}]" if interval else value
