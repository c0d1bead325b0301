"""The figures of the chapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from kvguard.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    bars,
    canvas,
    metric,
    whiskers,
)
from kvguard.studies.instructions.arms import BASELINE, FAIR, PLAIN, PROTECTED, RESTORE, ROLLBACK, SYSTEM, Arm

_STYLES = {  # treatment: colour, marker, name
    PLAIN: (BLUE, "o", "evicted"),
    PROTECTED: (VERMILION, "s", "instructions protected"),
    SYSTEM: (ORANGE, "D", "system prompt protected"),
    FAIR: (GREEN, "^", "fair shares"),
    RESTORE: (PINK, "v", "guard: restore"),
    ROLLBACK: (SKY, "P", "guard: rollback"),
}

_BESIDE = 0.02  # of the axis: treatments at one share stand beside one another


def draw(results: pd.DataFrame, arms: Sequence[Arm], title: str, folder: Path) -> list[tuple[Path, str]]:
    """Draw what there is to draw; return each figure with its caption."""
    drawn = []
    if path := _by_ratio(results, arms, title, folder / "followed-by-ratio.png"):
        drawn.append((path, "Prompts with all instructions followed, by share removed, press and treatment"))
    if path := _heat_map(results, arms, title, folder / "types.png"):
        drawn.append((path, "Instructions followed, by type and arm"))
    if (results["table"] == "strategy").any():
        heading = f"Against random eviction,\nequal budget\n{title}"
        names = {"difference": "difference"}
        path = bars(results, "strategy", names, heading, folder / "strategy.png")
        drawn.append(
            (path, "Does the strategy matter? Prompts with all followed, less under random eviction")
        )
    return drawn


def _by_ratio(results: pd.DataFrame, arms: Sequence[Arm], title: str, path: Path) -> Path | None:
    """Draw a panel for each press: a line for each treatment, over what is removed on average."""
    presses = list(dict.fromkeys(arm.press for arm in arms if arm.press != BASELINE))
    if not presses:
        return None
    followed, removed = metric(results, "followed", "prompt_strict"), metric(results, "followed", "removed")
    columns = min(4, len(presses))
    panels = (-(-len(presses) // columns), columns)
    heading = f"All instructions of a prompt followed, strict\n{title}"
    with canvas(path, heading, panels, (2.9, 2.6), sharex=True, sharey=True) as axes:
        flat = list(axes.flat)
        for axis in flat[len(presses) :]:
            axis.set_visible(False)
        for axis, press in zip(flat, presses, strict=False):
            base = followed.loc[BASELINE]
            axis.axhline(base["value"], color=GREY, linestyle=":", label="no compression")
            axis.axhspan(base["low"], base["high"], color=GREY, alpha=0.12, linewidth=0)
            for place, (treatment, (colour, marker, name)) in enumerate(_STYLES.items()):
                own = [str(arm) for arm in arms if arm.press == press and arm.treatment == treatment]
                own = sorted(own, key=lambda subject: removed.loc[subject, "value"])
                if not own:
                    continue
                found = followed.loc[own]
                axis.errorbar(
                    removed.loc[own, "value"] + _BESIDE * place,
                    found["value"],
                    yerr=whiskers(found),
                    color=colour,
                    marker=marker,
                    label=name,
                    capsize=2,
                    linewidth=1.4,
                )
            axis.set_title(press)
            axis.set(xlim=(0, 1), ylim=(-0.02, 1.02))
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_formatter(PercentFormatter(1, decimals=0))
            axis.set_xlabel("removed")
        handles = {label: h for axis in flat for h, label in zip(*axis.get_legend_handles_labels())}
        flat[0].figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return path


def _heat_map(results: pd.DataFrame, arms: Sequence[Arm], title: str, path: Path) -> Path | None:
    """Draw the share followed of each type under each arm, with how many there are."""
    found = metric(results, "types", "instruction_strict")["value"]
    counts = metric(results, "types", "n")["value"]
    if found.empty:
        return None
    names = [str(arm) for arm in arms]
    split = [subject.split("/", 1) for subject in found.index]
    grid = pd.Series(found.to_numpy(), pd.MultiIndex.from_tuples(split)).unstack(0)
    grid = grid.reindex(columns=[name for name in names if name in grid.columns])
    grid = grid.sort_values(BASELINE, ascending=False)
    size = (2.6 + 0.42 * grid.shape[1], 1.9 + 0.25 * grid.shape[0])
    with canvas(path, f"Instructions followed, by type\n{title}", size=size) as axes:
        axis = axes[0, 0]
        image = axis.imshow(grid.to_numpy(dtype=float), cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(grid.shape[1]), grid.columns, rotation=60, ha="right", fontsize=7)
        labels = [f"{kind} ({counts.get(f'{BASELINE}/{kind}', 0):.0f})" for kind in grid.index]
        axis.set_yticks(range(grid.shape[0]), labels, fontsize=7)
        axis.grid(visible=False)
        for (row, column), value in np.ndenumerate(grid.to_numpy(dtype=float)):
            if np.isfinite(value):
                ink = "white" if value < 0.55 else INK
                axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=ink)
        axis.figure.colorbar(image, ax=axis, format=PercentFormatter(1, decimals=0), shrink=0.6)
    return path
