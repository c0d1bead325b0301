"""What all figures share: colours, style, and a file whose bytes depend on nothing but its data.

Numbers come from the ``results`` tables, so a figure shows what the tables say; bars and bands are the 95 %
intervals found there. Colours are those of Okabe and Ito, told apart under every common colour blindness,
and what differs in colour differs in its marker, its line or its label too.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
)  # fmt: skip
INK, GREY, PALE = "#222222", "#7a7a7a", "#c9c9c9"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.dpi": 120,
}
_SHORT = 24  # characters of a bar's name that take nothing from the bar's room


def metric(results: pd.DataFrame, table: str, name: str) -> pd.DataFrame:
    """Return value, low and high of one metric of one table, indexed by subject."""
    chosen = results[(results["table"] == table) & (results["metric"] == name)]
    return chosen.set_index("subject")[["value", "low", "high"]]


def titled(results: pd.DataFrame, text: str, title: str) -> str:
    """Return a figure's heading: what it shows, of which model, under which protocol."""
    protocol = results["protocol"].iloc[0]
    return f"{text}\n{title}" + (f", protocol {protocol}" if protocol else "")


@contextmanager
def canvas(
    path: Path,
    title: str,
    panels: tuple[int, int] = (1, 1),
    size: tuple[float, float] = (5.6, 3.9),
    **layout: Any,
) -> Iterator[NDArray[Any]]:
    """Yield rows x columns of axes, each of ``size`` inches; write the figure afterwards."""
    rows, columns = panels
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        figure.suptitle(title, fontsize=11.5, fontweight="bold", x=0.01, ha="left")
        yield figure.subplots(rows, columns, squeeze=False, **layout)
        drawn = BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
        path.parent.mkdir(parents=True, exist_ok=True)
        # 256 colours are plenty for a chart, and take a third of the room in the report.
        image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        image.save(path, "PNG", optimize=True)


def whiskers(found: pd.DataFrame) -> NDArray[np.float64]:
    """Return the lengths of the error bars of values with intervals. [2, N]"""
    below, above = found["value"] - found["low"], found["high"] - found["value"]
    return np.nan_to_num(np.clip(np.stack([below, above]), 0, None))


def line_with_band(axis: Axes, x: Sequence[float], found: pd.DataFrame, colour: str, **style: Any) -> None:
    """Draw values as a line and their intervals as a band."""
    axis.plot(x, found["value"], color=colour, **style)
    axis.fill_between(x, found["low"], found["high"], color=colour, alpha=0.18, linewidth=0)


def bars(
    results: pd.DataFrame,
    table: str,
    names: Mapping[str, str],
    title: str,
    path: Path,
    dark: Collection[str] = (),
) -> Path:
    """Draw a panel of horizontal bars for each metric, a bar for each subject of the table.

    Parameters
    ----------
    names
        Metric -> what its axis is called.
    dark
        Subjects that stand out.
    """
    subjects = list(results.loc[results["table"] == table, "subject"].drop_duplicates())
    long = max([0, *(len(subject) - _SHORT for subject in subjects)])
    size = (3.3 + (0.9 + 0.08 * long) / len(names), 1.6 + 0.32 * len(subjects))
    with canvas(path, title, (1, len(names)), size, sharey=True) as (axes,):
        for axis, (name, label) in zip(axes, names.items(), strict=True):
            found = metric(results, table, name).reindex(subjects)
            start = 0.5 if name == "auroc" else 0.0  # chance
            colours = [BLUE if subject in dark else SKY for subject in subjects]
            names_shown = [subject.replace("->", " → ") for subject in subjects]
            axis.barh(names_shown, found["value"] - start, left=start, color=colours, height=0.62)
            axis.errorbar(
                found["value"],
                names_shown,
                xerr=whiskers(found),
                color=INK,
                fmt="none",
                capsize=2.5,
                linewidth=1,
            )
            axis.set_xlabel(label)
            axis.set_xlim(*_range(found, start))
            axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axis.grid(visible=False, axis="y")
        axes[0].invert_yaxis()
    return path


def _range(found: pd.DataFrame, start: float) -> tuple[float, float]:
    """Return limits that hold ``start`` and every interval, with room to spare."""
    edges = found.to_numpy(dtype=np.float64)
    edges = np.append(edges[np.isfinite(edges)], start)
    room = max(edges.max() - edges.min(), 0.02) * 0.06
    return float(edges.min() - (room if edges.min() < start else 0)), float(edges.max() + room)
