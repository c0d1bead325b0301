"""Figures, from the tables of the analysis alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvguard.report.drawing import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION, canvas

_COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY)
_MARKS = "osD^vP"
# file: metric, its label, what it is divided by, whether it begins at 0 and ends at 1
FIGURES: dict[str, tuple[tuple[str, ...], str, float, bool]] = {
    "acc_vs_len": (("score",), "mean {headline}", 1.0, True),
    "std_vs_len": (("std",), "standard deviation of {headline}", 1.0, False),
    "failrate_vs_len": (("failure_rate",), "failure rate", 1.0, True),
    "latency_vs_len": (
        ("latency_s_p50", "latency_s_p95"),
        "latency in s: median, and p95 dotted",
        1.0,
        False,
    ),
    "memory_vs_len": (("memory_bytes_p95",), "cache held, p95, in MiB", 2**20, False),
}


def draw(
    stats: pd.DataFrame, zones: pd.DataFrame, bins: pd.DataFrame, headline: str, title: str, folder: Path
) -> list[Path]:
    """Draw every figure for which there are numbers; return the files.

    Parameters
    ----------
    stats, zones, bins
        Rows of bin_stats and transition_summary of one scope, and of the bins.
    """
    drawn = []
    budgets = sorted(stats["budget"].unique(), reverse=True)
    for name, (metrics, label, unit, is_share) in FIGURES.items():
        known = stats[stats["metric"].isin(metrics) & stats["value"].notna()]
        if known.empty:
            continue
        path = folder / f"{name}.png"
        with canvas(path, title, size=(6.4, 3.9)) as axes:
            axis = axes[0, 0]
            _lines(axis, known, budgets, metrics, bins, unit)
            _zones(axis, zones, is_first=name == "acc_vs_len")
            axis.set_xlabel("prompt tokens (mean of the bin)")
            axis.set_ylabel(label.format(headline=headline))
            axis.set_ylim(*((-0.03, 1.03) if is_share else (0, None)))
            axis.legend()
        drawn.append(path)
    return drawn


def _lines(
    axis: Any,
    known: pd.DataFrame,
    budgets: Sequence[float],
    metrics: Sequence[str],
    bins: pd.DataFrame,
    unit: float,
) -> None:
    """Draw the budgets that have numbers; a budget has one colour in all figures."""
    for number, budget in enumerate(budgets):
        if budget not in set(known["budget"]):
            continue
        colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
        for metric, style in zip(metrics, ("-", ":"), strict=False):
            rows = known[(known["budget"] == budget) & (known["metric"] == metric)].sort_values("bin_index")
            x = bins.loc[rows["bin_index"], "mean_tokens"].to_numpy(float)
            value, low, high = (rows[key].to_numpy(float) / unit for key in ("value", "low", "high"))
            label = f"budget {budget:g}" if metric == metrics[0] else None
            axis.plot(x, value, style, color=colour, marker=mark, label=label)
            if np.isfinite(low).any():
                axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _zones(axis: Any, zones: pd.DataFrame, is_first: bool) -> None:
    """Shade the zones that were found."""
    for zone in zones[zones["found"] == 1].itertuples():
        axis.axvspan(zone.start_tokens, zone.end_tokens, color=GREY, alpha=0.12, linewidth=0)
        if is_first:
            axis.annotate(f"zone at {zone.budget:g}", (zone.start_tokens, 0.02), fontsize=8, color=GREY)
