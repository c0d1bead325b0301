"""The study's tables."""

from __future__ import annotations

from collections.abc import Iterator

from kvguard.report.numbers import Cell, Group, Kind, Table
from kvguard.studies.directed.analysis.analyse import ALL
from kvguard.studies.directed.chapter.found import SUBSETS, Found

_NOTE = (
    "Better by: the baseline's value less the condition's, or the reverse where higher is better. d: Cohen's "
    "d of the paired differences. Intervals: 95 %, from resampled documents. p: Wilcoxon's signed-rank test, "
    "corrected by Holm over the rows of a group."
)


def tables(found: Found) -> Iterator[Table]:
    """Yield every table of an experiment."""
    yield _effects(found)
    if found.protocol.reference:
        yield _semantic(found)
    if len(found.protocol.gradient) > 2:
        yield _gradient(found)
    if len(found.protocol.settings) > 1:
        yield _contrasts(found, "survival", f"{found.name}: does the effect survive?", _SURVIVAL)
    if found.protocol.grids:
        yield _contrasts(found, "grid", f"{found.name}: interactions", _GRID)
    if len(found.datasets) > 1:
        yield _pooled(found)


def _effects(found: Found) -> Table:
    groups = []
    for dataset, subset, setting, metric in _families(found):
        at = (dataset, subset, setting, metric)
        rows = []
        for condition in found.protocol.conditions:
            level, effect = (("levels", *at), condition), (("effects", *at), condition)
            rows.append(
                (
                    condition,
                    Cell(found.get(*level, "n"), Kind.COUNT),
                    Cell(found.get(*level, "mean"), Kind.FRACTION),
                    Cell(found.get(*level, "rank"), Kind.SMALL),
                    Cell(found.get(*effect, "benefit"), Kind.FRACTION),
                    Cell(found.get(*effect, "d"), Kind.SMALL),
                    Cell(found.get(*effect, "win_rate"), Kind.SMALL),
                    Cell(found.get(*effect, "p_holm"), Kind.P),
                )
            )
        groups.append(Group(_label(*at), tuple(rows)))
    heads = ("condition", "n", "mean", "rank", "better by", "d", "win rate", "p (Holm)")
    title = f"{found.name}: each condition against {found.protocol.baseline}"
    return Table(f"directed-{found.name}-effects", title, _NOTE, heads, 1, tuple(groups))


def _semantic(found: Found) -> Table:
    groups = []
    for dataset, subset, setting, metric in _families(found):
        at = (dataset, subset, setting, metric)
        table = ("semantic", *at)
        rows: list[tuple[str | Cell, ...]] = [
            (condition, *_compared(found, table, condition), *_shares(found, at, condition))
            for condition in found.subjects(table)
        ]
        groups.append(Group(_label(*at), tuple(rows)))
    heads = ("condition", "n", "better by", "d", "p (Holm)", "structural fraction", "semantic fraction")
    note = (
        f"Semantic delta: against {found.protocol.reference}, which is as long and means nothing. Structural "
        f"fraction: the share of {found.protocol.oracle}'s benefit that {found.protocol.reference} has as "
        "well; a dash where that benefit is not distinguishable from 0. Choosing hard examples by the "
        "baseline's own value makes every condition look better on them (regression to the mean); this "
        "comparison does not suffer from that."
    )
    title = f"{found.name}: what meaning adds to a prefix"
    return Table(f"directed-{found.name}-semantic", title, note, heads, 1, tuple(groups))


def _shares(found: Found, at: tuple[str, ...], condition: str) -> tuple[Cell, Cell]:
    """Return the fractions of the oracle's row; of others there are none."""
    structural, semantic = (
        found.get(("structure", *at), condition, name)
        for name in ("structural_fraction", "semantic_fraction")
    )
    return Cell(structural, Kind.SMALL), Cell(semantic, Kind.SMALL)


def _gradient(found: Found) -> Table:
    groups = []
    for dataset, subset, setting, metric in _families(found):
        at = (("gradient", dataset, subset, setting, metric), "order")
        row = (
            " → ".join(found.protocol.gradient),
            Cell(found.get(*at, "n"), Kind.COUNT),
            Cell(found.get(*at, "rho"), Kind.SMALL),
            Cell(found.get(*at, "p"), Kind.P),
            Cell(found.get(*at, "within"), Kind.SMALL),
            Cell(found.get(*at, "p_within"), Kind.P),
        )
        groups.append(Group(_label(dataset, subset, setting, metric), (row,)))
    heads = ("order", "n", "rho of means", "p", "rho within examples", "p")
    note = (
        "Spearman's correlation of the benefit with the semantic order: of the conditions' means, with how "
        "many orders have as strong a one; and within each example, with p by exchanging conditions in each."
    )
    return Table(
        f"directed-{found.name}-gradient",
        f"{found.name}: is there a gradient?",
        note,
        heads,
        1,
        tuple(groups),
    )


_SURVIVAL = (
    "How much better each condition is than the baseline in this setting, less how much better it is in the "
    "first one: above 0 the directed cache loses less."
)
_GRID = (
    "Differences of differences: what the column's factor adds at this row's level, less at the first row's."
)


def _contrasts(found: Found, kind: str, title: str, note: str) -> Table:
    groups = []
    for dataset in found.datasets:
        for subset in SUBSETS:
            for metric in found.protocol.metrics:
                names = found.protocol.settings[1:] if kind == "survival" else tuple(found.protocol.grids)
                for name in names:
                    table = (kind, dataset, subset, name, metric)
                    rows: list[tuple[str | Cell, ...]] = [
                        (one, *_compared(found, table, one)) for one in found.subjects(table)
                    ]
                    groups.append(Group(_label(dataset, subset, name, metric), tuple(rows)))
    heads = ("contrast", "n", "better by", "d", "p (Holm)")
    return Table(f"directed-{found.name}-{kind}", title, note, heads, 1, tuple(groups))


def _pooled(found: Found) -> Table:
    groups = []
    for subset in SUBSETS:
        for setting in found.protocol.settings:
            for metric in found.protocol.metrics:
                table = ("pooled", subset, setting, metric)
                rows = tuple(
                    (
                        condition,
                        Cell(found.get(table, condition, "datasets"), Kind.COUNT),
                        Cell(found.get(table, condition, "positive"), Kind.COUNT),
                        Cell(found.get(table, condition, "d"), Kind.SMALL),
                        Cell(found.get(table, condition, "d_tau"), Kind.SMALL),
                        Cell(found.get(table, condition, "d_i2"), Kind.SMALL),
                    )
                    for condition in found.others
                )
                groups.append(Group(_label("all data sets", subset, setting, metric), rows))
    heads = ("condition", "data sets", "of them better", "d", "tau", "I²")
    note = "Random effects (DerSimonian, Laird): the mean of a population of data sets, and its spread."
    return Table(
        f"directed-{found.name}-pooled", f"{found.name}: data sets together", note, heads, 1, tuple(groups)
    )


def _compared(found: Found, table: tuple[str, ...], subject: str) -> tuple[Cell, ...]:
    return (
        Cell(found.get(table, subject, "n"), Kind.COUNT),
        Cell(found.get(table, subject, "benefit"), Kind.FRACTION),
        Cell(found.get(table, subject, "d"), Kind.SMALL),
        Cell(found.get(table, subject, "p_holm"), Kind.P),
    )


def _families(found: Found) -> Iterator[tuple[str, str, str, str]]:
    for dataset in found.datasets:
        for subset in SUBSETS:
            for setting in found.protocol.settings:
                for metric in found.protocol.metrics:
                    yield dataset, subset, setting, metric


def _label(dataset: str, subset: str, setting: str, metric: str) -> str:
    called = "" if subset == ALL else f", {SUBSETS[subset]} examples"
    return f"{dataset}{called}, {setting}, {metric}"
