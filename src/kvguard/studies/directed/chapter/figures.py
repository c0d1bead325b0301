"""The study's figures: forest of effects, gradient along the semantic order, heat map of hardness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvguard.report.drawing import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, VERMILION, canvas, whiskers
from kvguard.stats.bootstrap import Interval
from kvguard.studies.directed.analysis.analyse import ALL
from kvguard.studies.directed.chapter.found import SUBSETS, Found
from kvguard.studies.directed.params import PLAIN

_COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(found: Found) -> Iterator[tuple[Path, str]]:
    """Draw the figures of an experiment's first metric; yield the file and caption of each."""
    folder, metric = found.layout.figures(found.name), next(iter(found.protocol.metrics))
    for setting in found.protocol.settings:
        yield _forest(found, setting, metric, folder / f"forest-{setting.replace('@', '-')}-{metric}.png")
    if len(found.protocol.gradient) > 2:
        yield _gradient(found, metric, folder / f"gradient-{metric}.png")
    yield _quantiles(found, metric, folder / f"quantiles-{metric}.png")


def _forest(found: Found, setting: str, metric: str, path: Path) -> tuple[Path, str]:
    """Draw d of each condition and data set, and over data sets, of all and of hard examples."""
    conditions, several = found.others, len(found.datasets) > 1
    size = (4.4, 1.6 + 0.34 * len(conditions) * max(1, 0.6 * (len(found.datasets) + several)))
    title = f"{found.model}: effect on {metric}{_under(setting)}; right is better"
    with canvas(path, title, (1, 2), size, sharey=True) as (axes,):
        for axis, (subset, called) in zip(axes, SUBSETS.items(), strict=True):
            for place, dataset in enumerate(found.datasets):
                table = ("effects", dataset, subset, setting, metric)
                rows = _frame(found.get(table, one, "d") for one in conditions)
                _dots(axis, rows, _offset(place, len(found.datasets) + several), place, dataset)
            if several:
                pooled = ("pooled", subset, setting, metric)
                rows = _frame(found.get(pooled, one, "d") for one in conditions)
                last = len(found.datasets)
                axis.errorbar(
                    rows["value"], np.arange(len(rows)) + _offset(last, last + 1), xerr=whiskers(rows),
                    fmt="D", color=INK, capsize=2.5, label="pooled",
                )  # fmt: skip
            axis.axvline(0, color=GREY, linewidth=1)
            axis.set_title(f"{called} examples")
            axis.set_xlabel(f"d against {found.protocol.baseline}")
        axes[0].set_yticks(np.arange(len(conditions)), conditions)
        axes[0].invert_yaxis()
        if several:
            axes[1].legend(loc="best")
    return path, f"{found.name}: d of each condition on {metric}{_under(setting)}, with 95 % intervals"


def _gradient(found: Found, metric: str, path: Path) -> tuple[Path, str]:
    """Draw the mean benefit along the semantic order."""
    order = found.protocol.gradient
    with canvas(path, f"{found.model}: along the semantic order", size=(6.4, 4.2)) as ((axis,),):
        for place, dataset in enumerate(found.datasets):
            table = ("effects", dataset, ALL, found.first, metric)
            rows = _frame(found.get(table, one, "benefit") for one in order)
            trend = ("gradient", dataset, ALL, found.first, metric)
            within, p = found.get(trend, "order", "within").value, found.get(trend, "order", "p_within").value
            x = np.arange(len(order)) + _offset(place, len(found.datasets))
            axis.errorbar(
                x, rows["value"], yerr=whiskers(rows), color=_COLOURS[place % 6], marker=_MARKERS[place % 6],
                capsize=2.5, label=f"{dataset}: rho within examples {within:.2f}, p {p:.3g}",
            )  # fmt: skip
        axis.axhline(0, color=GREY, linewidth=1)
        axis.set_xticks(np.arange(len(order)), order, rotation=25, ha="right")
        axis.set_ylabel(f"better than {found.protocol.baseline} ({metric})")
        axis.legend(loc="best")
    return path, f"{found.name}: does the benefit rise with the prefix's relation to the question?"


def _quantiles(found: Found, metric: str, path: Path) -> tuple[Path, str]:
    """Draw d of each condition in every group of examples, easiest first."""
    conditions = found.others
    groups = sorted(
        {
            int(subject.rpartition(" ")[2])
            for subject in found.subjects(("quantiles", found.datasets[0], ALL, found.first, metric))
        }
    )
    size = (1.9 + 0.62 * len(groups), 1.4 + 0.34 * len(conditions))
    title = f"{found.model}: d by hardness"
    with canvas(path, title, (1, len(found.datasets)), size, sharey=True) as (axes,):
        for axis, dataset in zip(axes, found.datasets, strict=True):
            table = ("quantiles", dataset, ALL, found.first, metric)
            d = np.array(
                [[found.get(table, f"{one} {group}", "d").value for group in groups] for one in conditions]
            )
            _heat(axis, d)
            axis.set_title(dataset)
            axis.set_xticks(range(len(groups)), [str(group) for group in groups])
            axis.set_xlabel(f"group by {found.protocol.baseline}'s NLL; hardest last")
        axes[0].set_yticks(range(len(conditions)), conditions)
    return (
        path,
        f"{found.name}: d of each condition in examples from easy to hard; see the note on regression",
    )


def _heat(axis: Axes, d: np.ndarray) -> None:
    limit = max(0.1, float(np.nanmax(np.abs(d), initial=0)))
    axis.imshow(d, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axis.grid(visible=False)
    for row, values in enumerate(d):
        for column, value in enumerate(values):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 * limit else INK
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8.5)


def _dots(axis: Axes, rows: pd.DataFrame, offset: float, place: int, label: str) -> None:
    axis.errorbar(
        rows["value"], np.arange(len(rows)) + offset, xerr=whiskers(rows), fmt=_MARKERS[place % 6],
        color=_COLOURS[place % 6], capsize=2.5, label=label,
    )  # fmt: skip


def _under(setting: str) -> str:
    return "" if setting == PLAIN else f" under {setting}"


def _offset(place: int, n: int) -> float:
    """Return how far beside a tick the ``place``-th of ``n`` marks stands."""
    return 0.6 * ((place + 0.5) / n - 0.5)


def _frame(found: Iterator[Interval] | Sequence[Interval]) -> pd.DataFrame:
    return pd.DataFrame([one.as_dict() for one in found], columns=["value", "low", "high"])
